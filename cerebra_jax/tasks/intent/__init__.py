"""Short texts with labels: reading them, their tokens, and the task."""

from cerebra_jax.tasks.intent.task import build as build
