"""The one table of tasks."""

from __future__ import annotations

from collections.abc import Callable

from cerebra_jax.config import RunCfg
from cerebra_jax.tasks import text

TASKS: dict[str, Callable[[RunCfg, Callable[[str], None]], text.TextTask]] = {"text": text.build}


def build(cfg: RunCfg, say: Callable[[str], None] = print) -> text.TextTask:
    """The task of a configuration, its data ready. Imports no JAX: broken data is refused before JAX is loaded."""
    return TASKS[cfg.task.name](cfg, say)
