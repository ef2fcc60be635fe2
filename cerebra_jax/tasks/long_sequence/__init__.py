"""Synthetic long-range recall: how its sequences are made, and the task."""
