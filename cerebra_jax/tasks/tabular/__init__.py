"""Tables: reading one, turning its columns into tokens, and the task."""

from cerebra_jax.tasks.tabular.task import build as build
