"""Synthetic long-range recall; `build` is its entry in the table of tasks."""

from cerebra_jax.tasks.long_sequence.task import build

__all__ = ["build"]
