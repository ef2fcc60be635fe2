"""The one table of tasks, and what a task's shape means for a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from cerebra_jax import checks
from cerebra_jax.config import RunCfg
from cerebra_jax.tasks import intent, listops, mixed, tabular, text
from cerebra_jax.tasks import long_sequence as longseq
from cerebra_jax.tasks.task import Shape, Task

TASKS: dict[str, Callable[[RunCfg, Callable[[str], None]], Task]] = {
    "text": text.build,
    "tabular": tabular.build,
    "intent": intent.build,
    "long_sequence": longseq.build,
    "listops": listops.build,
    "mixed": mixed.build,
}


def build(cfg: RunCfg, say: Callable[[str], None] = print) -> Task:
    """The task of a configuration, its data ready. Imports no JAX: broken data is refused before JAX is loaded."""
    task = TASKS[cfg.task.name](cfg, say)
    if cfg.task.buckets > 1:
        task.bucket(cfg.task.buckets, cfg.train.batch_size)
    return task


def sketch(cfg: RunCfg) -> Any:
    """Shape, example and loss of the task of a configuration; a text is not needed for it, smaller data are read."""
    return text.sketch(cfg) if cfg.task.name == "text" else build(cfg, lambda line: None)


def fitted(cfg: RunCfg, shape: Shape) -> RunCfg:
    """The configuration with what its task decides: L, and the input and head of the net where they are 0."""
    decided = ("outputs", "features", "subwords", "answers", "tasks")
    net = dataclasses.replace(
        cfg.net, **{key: getattr(cfg.net, key) or getattr(shape, key) for key in decided}
    )
    for key in decided:
        given, wanted = getattr(net, key), getattr(shape, key)
        checks.need(
            given == wanted,
            f"net.{key} is {given}, the task has {wanted}",
            f"use net.{key}=0: the task sets it",
        )
    checks.need(
        shape.needed or net.route.mode != "oracle",
        f"net.route.mode is oracle, but task.name={cfg.task.name} does not mark the tokens that its answers need",
        "use task.name=long_sequence, or another router",
    )
    checks.need(
        shape.tasks > 0 or net.name != "chiar" or net.route.meta != "task",
        f"net.route.meta is task, but task.name={cfg.task.name} is one task",
        "use task.name=mixed, or net.route.meta=prefix",
    )
    cfg = dataclasses.replace(
        cfg, net=net, task=dataclasses.replace(cfg.task, seq_len=shape.seq_len)
    )
    checks.together(cfg)
    return cfg
