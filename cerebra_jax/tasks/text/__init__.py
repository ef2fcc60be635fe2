"""Language modelling: where a text comes from, its tokens, and the task."""
