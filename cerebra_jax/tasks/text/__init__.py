"""Language modelling: where a text comes from, its tokens, and the task."""

from cerebra_jax.tasks.text.task import build as build
from cerebra_jax.tasks.text.task import sketch as sketch
