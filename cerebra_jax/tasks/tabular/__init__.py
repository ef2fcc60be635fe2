"""Tables: reading one, turning its columns into tokens, and the task."""
