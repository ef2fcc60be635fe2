"""The tasks by name: which there are, what each demands, and what its shape decides.

A task is a class in a file of its own, which registers itself:

    @register("text")
    class TextTask: ...

`MODULES` says where each one stands, and its module is imported when a configuration names it. To
add a task, write its file and add its line here (and its name to the values of task.name in
config/task.py).

No task's module imports JAX until its loss is computed, so that broken settings and broken data are
refused early.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cerebra_jax import checks
from cerebra_jax.checks import Problem
from cerebra_jax.config import RunCfg, reads
from cerebra_jax.errors import UserError

if TYPE_CHECKING:
    from cerebra_jax.tasks.task import Log, Shape, Task

MODULES = {
    "text": "cerebra_jax.tasks.text.task",
    "tabular": "cerebra_jax.tasks.tabular.task",
    "intent": "cerebra_jax.tasks.intent.task",
    "long_sequence": "cerebra_jax.tasks.long_sequence.task",
    "listops": "cerebra_jax.tasks.listops",
    "mixed": "cerebra_jax.tasks.mixed",
}
EARLIER = {"longseq": "long_sequence"}  # names of before, which old configurations hold
TABLES = ("tabular", "intent")  # tasks whose files version 0.1 read in another way
DECIDED = ("outputs", "features", "subwords", "answers", "tasks")  # keys of net that a task decides

_CLASSES: dict[str, type[Task]] = {}


def register(name: str) -> Callable[[type], type]:
    """Returns a decorator that makes a class the task of this name.

    Raises ValueError where another class has it.
    """

    def keep(cls: type) -> type:
        other = _CLASSES.setdefault(name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"two tasks are called {name}: {other.__module__}, {cls.__module__}")
        _CLASSES[name] = cls
        return cls

    return keep


def find(name: str) -> type[Task]:
    """Returns the class of a task; its module is imported where that was not done before."""
    name = EARLIER.get(name, name)
    if name not in _CLASSES:
        importlib.import_module(MODULES[name])
    return _CLASSES[name]


def check(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what the task of a configuration forbids."""
    task = find(cfg.task.name)

    # keys that only some tasks have
    if cfg.task.buckets > 1 and not task.padded:
        what = f"task.buckets is {cfg.task.buckets}, but the examples of task.name={cfg.task.name}"
        hint = "use task.buckets=0, or a task whose examples are padded: intent or listops"
        yield f"{what} are of one length", hint
    if cfg.task.subwords and cfg.task.name != "intent":
        hint = "use task.name=intent with task.tokenizer=words, or task.subwords=0"
        yield f"task.subwords is set for {cfg.task.name}", f"they are parts of words: {hint}"
    if cfg.task.tfds and cfg.task.name not in ("intent", "mixed"):
        hint = "it is for task.name=intent, in the place of task.path"
        yield f"task.tfds is set beside task.name={cfg.task.name}", hint

    if cfg.task.tokenizer_from:
        if cfg.task.name not in ("text", "intent"):
            hint = "it is for texts and intents: leave it empty"
            yield f"task.tokenizer_from is set for task.name={cfg.task.name}", hint
        elif cfg.task.tokenizer not in ("bpe", "words"):
            hint = "nothing of it is learnt: leave it empty"
            yield f"task.tokenizer_from is set for task.tokenizer={cfg.task.tokenizer}", hint
    if cfg.task.class_weights and cfg.task.name not in TABLES:
        hint = "it is for the classes of tabular and intent: leave it empty"
        yield f"task.class_weights is set for task.name={cfg.task.name}", hint
    if cfg.task.target_scale != "standard" and cfg.task.name != "tabular":
        hint = "it is for the numbers of tabular: use task.target_scale=standard"
        yield f"task.target_scale is set for task.name={cfg.task.name}", hint

    yield from task.check(cfg)


def build(cfg: RunCfg, log: Log = print, before: bool = False) -> Task:
    """Returns the task of a configuration, its data ready.

    `log` is told what takes time or must be known. before: files are read as version 0.1 did.
    """
    task_class = find(cfg.task.name)
    if before and cfg.task.name in TABLES:
        task = task_class.build(cfg, log, before=True)
    else:
        task = task_class.build(cfg, log)
    if cfg.task.buckets > 1:
        task.bucket(cfg.task.buckets, cfg.train.batch_size)
    return task


def learnt(task: Task) -> dict[str, Any]:
    """Returns all that a task learnt from its data, for JSON; {} of one that learns nothing."""
    return task.learnt() if hasattr(task, "learnt") else {}


def restored(cfg: RunCfg, learnt: dict[str, Any], info: dict[str, Any]) -> Task | None:
    """Returns the task of a run without its data, None of one that cannot do without.

    learnt and info: what these functions returned of the task that the run was trained on.
    """
    task = find(cfg.task.name)
    return task.restored(cfg, learnt, info) if hasattr(task, "restored") else None


def _log_nothing(line: str) -> None:
    pass


def sketch(cfg: RunCfg, log: Log = _log_nothing) -> Task:
    """Returns what shapes, prices and losses need of a task.

    No text is prepared for it; smaller data are read.
    """
    task = find(cfg.task.name)
    return task.sketch(cfg) if hasattr(task, "sketch") else build(cfg, log)


def fitted(cfg: RunCfg, shape: Shape) -> RunCfg:
    """Returns the configuration with what its task decides: L, and the keys in DECIDED that are 0.

    Raises UserError where such a key is set to another value, or where the task does not give what
    the router looks at.
    """
    net, decided = cfg.net, {}
    for key in DECIDED:
        given, found = getattr(net, key), getattr(shape, key)
        if given not in (0, found):
            what = f"net.{key} is {given}, the task has {found}"
            raise UserError(what, f"use net.{key}=0: the task sets it")
        decided[key] = found
    if net.route.mode == "oracle" and not shape.needed:
        what = f"net.route.mode is oracle, but task.name={cfg.task.name} does not mark"
        hint = "use task.name=long_sequence, or another router"
        raise UserError(f"{what} the tokens that its answers need", hint)
    if net.route.k > shape.seq_len:
        what = f"net.route.k is {net.route.k}, an example has {shape.seq_len} tokens"
        raise UserError(what, "keep fewer, or use net.route.k=0 and net.route.rate")
    if net.name == "chiar" and net.route.meta == "task" and not shape.tasks:
        what = f"net.route.meta is task, but task.name={cfg.task.name} is one task"
        raise UserError(what, "use task.name=mixed, or net.route.meta=prefix")

    fitted_net = dataclasses.replace(net, **decided)
    fitted_task = dataclasses.replace(cfg.task, seq_len=shape.seq_len)
    cfg = dataclasses.replace(cfg, net=fitted_net, task=fitted_task)
    with reads.paused():
        checks.together(cfg)
    return cfg
