"""Tasks: numpy batches, (sum, count) losses, and the text they are made of."""
