"""How a run begins from the weights of another one: init_from.

An array is taken where the other run has one of the same name and shape. What stands for tokens,
columns or classes is taken only where these mean the same in both runs; the rest begins afresh.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from flax import serialization

from cerebra_jax.checks import require
from cerebra_jax.config import RunCfg
from cerebra_jax.tasks import registry
from cerebra_jax.tasks.task import Task
from cerebra_jax.training import imported, preprocessing
from cerebra_jax.training.checkpoint import fill, leaves
from cerebra_jax.training.imported import PARAMS, PARTS, Named
from cerebra_jax.training.state import TrainState

OF_INPUTS = ("embed/", "columns/", "features/")  # parameters that stand for tokens or columns
OF_OUTPUTS = ("head/",)  # and for classes
TABLE = "params/embed/table"
TEXTS = {"text", "intent"}  # an intent has rows for padding and n-grams behind those of a text


class Meaning(NamedTuple):
    """What the ids that a model reads stand for, and the outputs that it gives."""

    inputs: Any
    outputs: Any


def begun(cfg: RunCfg, task: Task, state: TrainState, say: Callable[[str], None]) -> TrainState:
    """Returns a fresh state with the weights of cfg.init_from; says what was not taken.

    UserError where that is no run, or none of its arrays is of this model.
    """
    if not cfg.init_from:
        _doubt(cfg, [name for name in leaves(state) if name.startswith(PARAMS)], say)
        return state
    folder = Path(cfg.init_from).expanduser()
    hint = "name the folder of a run: --config.init_from=runs/NAME"
    require((folder / "checkpoints").is_dir(), f"init_from: {folder} holds no run", hint)

    # which arrays
    found = imported.load(folder, say)
    own = leaves(state)
    is_int8 = any(name.endswith("/int8") for name in found.named)
    hint = "name the run that it was converted from"
    require(not is_int8, f"init_from: the weights of {folder} are int8", hint)
    kept = preprocessing.read(folder) or {"task": "", "learnt": {"classes": "not known"}}
    there, here = meaning(kept["learnt"]), meaning(registry.learnt(task))
    taken = _matching(own, found.named, _strangers(there, here))
    texts = {kept["task"], cfg.task.name} == TEXTS and there.inputs == here.inputs
    if texts and TABLE in found.named:
        taken |= _shared_rows(found.named[TABLE], own[TABLE])
    require(
        any(name.startswith(PARAMS) for name in taken),
        f"init_from: no array of {folder} has the name and shape of one of this model",
        "use the model of that run: the same net.name, net.width, net.heads, net.scan …",
    )

    # what a person should know of it
    names = [name for name in own if name.startswith(PARTS)]
    afresh = [name.removeprefix(PARAMS) for name in names if name not in taken]
    line = f"begins from step {found.step:,} of {folder}: {len(taken):,} of {len(names):,} arrays"
    say(f"{line}; afresh: {_some(afresh)}" if afresh else line)
    if kept["task"] in TEXTS and cfg.task.name in TEXTS and there.inputs != here.inputs:
        say(f"its tokens are others: --config.task.tokenizer_from={folder} takes them too")

    _doubt(cfg, afresh, say)

    # in their places
    filled = fill(serialization.to_state_dict(state), own | taken)
    return cast(TrainState, serialization.from_state_dict(state, filled))


def _doubt(cfg: RunCfg, afresh: Iterable[str], say: Callable[[str], None]) -> None:
    """Says which parameters train.freeze holds still although they begin at random."""
    params = [name.removeprefix(PARAMS) for name in afresh]
    still = [name for name in params if any(fnmatch.fnmatch(name, x) for x in cfg.train.freeze)]
    if still:
        say(f"warning: train.freeze holds still what begins at random: {_some(still)}")


def _strangers(there: Meaning, here: Meaning) -> tuple[str, ...]:
    """Returns how the names of parameters begin that mean something else in another run."""
    inputs = OF_INPUTS if there.inputs != here.inputs else ()
    return inputs + (OF_OUTPUTS if there.outputs != here.outputs else ())


def _matching(own: Named, there: Named, strangers: tuple[str, ...]) -> Named:
    """Returns the arrays of another run that stand in one of these places."""
    taken = {}
    for name, array in own.items():
        fits = name.startswith(PARTS) and name in there and there[name].shape == array.shape
        if fits and not name.removeprefix(PARAMS).startswith(strangers):
            taken[name] = there[name].astype(array.dtype)
    return taken


def _shared_rows(there_VxD: np.ndarray, own_VxD: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the table of tokens with the rows that both runs have: those of the tokenizer."""
    if there_VxD.shape[1] != own_VxD.shape[1]:
        return {}
    rows = min(len(there_VxD), len(own_VxD))
    table_VxD = np.array(own_VxD)
    table_VxD[:rows] = there_VxD[:rows]
    return {TABLE: table_VxD}


def meaning(learnt: dict[str, Any]) -> Meaning:
    """Returns the meaning of what a task learnt; tasks that learn nothing have one for all."""
    columns = {name: column.get("categories") for name, column in learnt.get("columns", {}).items()}
    target = learnt.get("target", {})
    number = [target.get("name"), target.get("scale", "standard")]
    outputs = learnt.get("classes", target.get("classes", number))
    return Meaning([learnt.get("tokenizer"), list(columns.items())], outputs)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")
