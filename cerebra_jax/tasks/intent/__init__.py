"""Short texts with labels: reading them, their tokens, and the task."""
