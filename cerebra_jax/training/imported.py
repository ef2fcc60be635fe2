"""Parameters from outside become the checkpoint of a run; those of a run go out by name."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import serialization, traverse_util

from cerebra_jax.config import RunCfg, to_dict
from cerebra_jax.errors import UserError
from cerebra_jax.layers import prunable
from cerebra_jax.models import quantization, quantized_names
from cerebra_jax.policies import division
from cerebra_jax.policies.division import Division
from cerebra_jax.tasks import registry as tasks
from cerebra_jax.tasks.task import Task
from cerebra_jax.training import frozen, results
from cerebra_jax.training.checkpoint import Checkpoints, Saved, fill, leaves
from cerebra_jax.training.experiment import prepare

Named = dict[str, np.ndarray]
PARAMS, ROUTING = "params/", "routing/"
PARTS = (PARAMS, ROUTING)  # what goes out and comes in; the optimizer begins anew
TRAINING = (PARAMS, "opt_state/", "sampler/", "prune/")  # what int8 weights have no use for


class Weights(NamedTuple):
    """Parameters by name, and thresholds or anything else of the state of a run, if given."""

    named: Named
    step: int  # optimizer steps that they were trained for
    score: float | None = None  # of their validation, if known
    data: dict[str, Any] | None = None  # what they were trained on, if known


class Bytes(NamedTuple):
    """What the parameters of a model take: those of its linear layers, and all."""

    linear: int
    all: int


class Converted(NamedTuple):
    """What a conversion to int8 did."""

    step: int
    before: dict[str, int]
    after: dict[str, int]


class Loaded(NamedTuple):
    """Parameters and thresholds of a run's best checkpoint, as `eval` has them."""

    step: int
    named: Named
    score: float
    by_layer: Division  # how its slots are divided, where the run did so


def save(cfg: RunCfg, workdir: Path, weights: Weights, say: Callable[[str], None]) -> None:
    """Writes the checkpoint of a run that ended with these weights.

    Raises UserError where an array is missing, unknown or of another shape.
    """
    # the state of such a run, with the arrays that are given in place of its own
    task = _task(cfg, weights.named, say)
    train = dataclasses.replace(cfg.train, devices=1)
    experiment = prepare(dataclasses.replace(cfg, train=train), task)
    state = experiment.fresh().replace(step=np.int32(weights.step))
    own = leaves(state)
    _check(own, weights.named)
    filled = fill(serialization.to_state_dict(state), own | weights.named)
    state = serialization.from_state_dict(state, filled)

    # as good as guessing where nothing is known: whatever is trained further is better
    score = weights.score
    if score is None:
        score = math.log(task.shape.vocab_size)
    meta = {
        "step": weights.step,
        "score": score,
        "wall_s": 0.0,
        "config": to_dict(cfg),
        "data": weights.data or {"dataset": "not known here"},
        "environment": results.environment(jax.local_devices()[:1]),
    }
    checkpoints = Checkpoints(workdir / "checkpoints", say)
    with contextlib.closing(checkpoints):
        checkpoints.preflight(experiment.like)
        checkpoints.save(weights.step, state, meta, score)
        checkpoints.wait()


def _task(cfg: RunCfg, named: Named, say: Callable[[str], None]) -> Task:
    """Returns the task of a run, without its data where nothing of the state depends on them."""
    # the sampler has a table of the examples, which only the text itself can count
    task = tasks.build(cfg, say) if cfg.sampler.on else tasks.sketch(cfg)
    table = "params/embed/table"
    # a small text gives a BPE fewer tokens than were asked for
    if cfg.task.name == "text" and table in named:
        task.shape = task.shape._replace(vocab_size=len(named[table]))
    return task


def _check(own: Named, given: Named) -> None:
    """Raises UserError where the arrays that are given are not those of the state.

    Thresholds may be missing.
    """

    def shape(arrays: Named, name: str) -> str:
        return str(list(arrays[name].shape)) if name in arrays else "none"

    for name in sorted({n for n in own if n.startswith(PARTS)} | set(given)):
        if name not in given and name.startswith(ROUTING):
            continue
        here, there = shape(own, name), shape(given, name)
        if here != there:
            raise UserError(
                f"{name} is {there} in the file, {here} in the model", "their configurations differ"
            )


def convert(cfg: RunCfg, workdir: Path, to: Path, say: Callable[[str], None]) -> Converted:
    """Writes the best checkpoint of a run with int8 weights into another folder.

    `cfg` is that of the new run. Bytes are told of the weights that are int8 now, and of all
    parameters. Masks are in the weights.
    """
    step, named, meta = _best(workdir, say)
    params = _part(named, PARAMS)
    tree = traverse_util.unflatten_dict(params, sep="/")
    rounded = traverse_util.flatten_dict(quantization.convert(tree, cfg.net.dtype), sep="/")
    after = {name: np.asarray(a) for name, a in rounded.items()}
    state = {name: a for name, a in named.items() if not name.startswith(TRAINING)}
    state |= {PARAMS + name: a for name, a in after.items()}
    checkpoints = Checkpoints(to / "checkpoints", say)
    with contextlib.closing(checkpoints):
        checkpoints.save(step, state, meta | {"config": to_dict(cfg)}, meta["score"])
        checkpoints.wait()
    return Converted(step, _sizes(params)._asdict(), _sizes(after)._asdict())


def _sizes(params: Named) -> Bytes:
    """Returns the bytes of parameters, in float or in int8 with their scales."""
    linear = total = 0
    for name, array in params.items():
        total += array.nbytes
        if quantized_names.holds(re.sub("/(int8|scale)$", "", name)):
            linear += array.nbytes
    return Bytes(linear, total)


def masked(named: Named) -> Named:
    """Returns the arrays of a checkpoint with what is pruned at zero."""
    out = dict(named)
    for part in ("prune/units/", "prune/elements/"):
        for name, mask in _part(named, part).items():
            weights = out[PARAMS + name]
            out[PARAMS + name] = weights * prunable.spread(name, mask, weights)
    return out


def load(workdir: Path, say: Callable[[str], None]) -> Loaded:
    """Returns the parameters and thresholds of a run's best checkpoint, as `eval` has them."""
    step, named, meta = _best(workdir, say)
    kept = {name: a for name, a in named.items() if name.startswith(PARTS)}
    by_layer = named["division/by_layer_R"].tolist() if "division/by_layer_R" in named else ()
    return Loaded(step, kept, meta["score"], division.stored(by_layer))


def best_named(workdir: Path, say: Callable[[str], None], hint: str) -> Saved:
    """Returns the best checkpoint of a run as arrays by name.

    Raises UserError with the hint where there is none.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", say, read_only=True)
    with contextlib.closing(checkpoints):
        found = checkpoints.named()
    if found is None:
        raise UserError(f"{workdir} has no intact validated checkpoint", hint)
    return found


def _best(workdir: Path, say: Callable[[str], None]) -> Saved:
    """Returns the best checkpoint of a run, with masks and thresholds as readers take them."""
    step, named, meta = best_named(workdir, say, "train it first")
    named = masked(named)
    routing = frozen.applied(workdir, step, _part(named, ROUTING), say)
    return Saved(step, named | {ROUTING + name: a for name, a in routing.items()}, meta)


def _part(named: Named, prefix: str) -> Named:
    """Returns the arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): a for name, a in named.items() if name.startswith(prefix)}
