"""A pruned run becomes a smaller one.

What its masks hold at zero is cut out of parameters and optimizer state.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cerebra_jax import config
from cerebra_jax.checks import require
from cerebra_jax.config import NetCfg, PruneCfg, RunCfg
from cerebra_jax.cost.device import present_platform
from cerebra_jax.layers import prunable
from cerebra_jax.layers.prunable import KINDS, Group
from cerebra_jax.models.model import neutral_knobs
from cerebra_jax.models.prunable import groups as groups_of
from cerebra_jax.models.prunable import shape_of
from cerebra_jax.tasks.task import Task
from cerebra_jax.training import frozen, imported
from cerebra_jax.training import workdir as folder
from cerebra_jax.training.checkpoint import fill
from cerebra_jax.training.experiment import Experiment, prepare
from cerebra_jax.training.imported import Named, Weights

BATCHES = 4  # of the validation split, on which both models answer


class Target(NamedTuple):
    """The run to be written."""

    cfg: RunCfg  # its shapes become those that are left
    folder: Path
    tile: int = 0  # hidden features and channels stay in multiples of it; 0: of the device's


class Model(NamedTuple):
    """Figures of one of the two models."""

    params: int
    bytes: int  # of its weights, as a file holds them
    flops: int  # executed, forward, per example
    relative: float  # of the dense Transformer's


class Shrunk(NamedTuple):
    """What shrinking did."""

    before: Model
    after: Model
    gap: float  # the largest difference between any two outputs on real batches
    largest: float  # the largest output
    net: NetCfg
    filled: int  # units that stay for the tile though they are masked


def shrink(
    cfg: RunCfg, task: Task, workdir: Path, target: Target, say: Callable[[str], None]
) -> Shrunk:
    """Writes the target run, with the shapes that are left, from the best checkpoint of a run.

    Raises UserError where nothing was pruned.
    """
    # what was pruned, and what stays of it
    step, named, meta = imported.best_named(workdir, say, "train it to the end of its pruning")
    groups = groups_of(cfg.net)
    masks = {
        g.name: named[f"prune/units/{g.name}"] for g in groups if f"prune/units/{g.name}" in named
    }
    require(bool(masks), f"{workdir} pruned nothing", "train it with --config.prune.keep=0.5, say")
    full = prepare(cfg, task)
    tile = target.tile or _device_tile()
    keep = {g.name: left(g, masks[g.name], named[f"prune/slopes/{g.name}"], tile) for g in groups}

    # the smaller run
    named = imported.masked(named)
    net = shape_of(cfg.net, {name: len(indices) for name, indices in keep.items()})
    new = dataclasses.replace(target.cfg, net=net, prune=PruneCfg())
    cut = prunable.cut(named, groups, keep)
    smaller = {name: a for name, a in cut.items() if not name.startswith("prune/")}
    small = prepare(new, task)
    folder.prepare(target.folder, False, say)
    imported.save(new, target.folder, Weights(smaller, step, meta["score"], meta["data"]), say)
    if (workdir / frozen.FILE).exists():
        shutil.copy(workdir / frozen.FILE, target.folder)
    folder.write_json(target.folder / "config.json", config.to_dict(new))

    # both, side by side
    gap, largest = difference((full, variables(full, named)), (small, variables(small, smaller)))
    filled = sum(len(keep[g.name]) - int(masks[g.name].sum()) for g in groups if g.kind in KINDS)
    return Shrunk(figures(full), figures(small), gap, largest, net, filled)


def _device_tile() -> int:
    """Returns the multiple of units that the device at hand computes without waste."""
    # lanes of a TPU's register; NVIDIA's tensor cores want multiples of 8 in 16 bits
    return 128 if present_platform() == "tpu" else 8


def left(group: Group, mask: np.ndarray, slope: np.ndarray, tile: int) -> np.ndarray:
    """Returns the indices of the units that stay.

    They are those not masked, and of the others the most important up to a multiple of the tile.
    Heads go one by one; DCT coefficients stay, at zero.
    """
    if group.kind == "dct":
        return np.arange(group.n)
    tile = 1 if group.kind == "heads" else tile
    count = min(group.n, math.ceil(max(1, int(mask.sum())) / tile) * tile)
    return np.sort(np.lexsort((-slope, -mask))[:count])


def variables(e: Experiment, named: Named) -> dict[str, Any]:
    """Returns the variables of a model from arrays by name."""
    return {part: fill(getattr(e.like, part), named, part) for part in ("params", "routing")}


def figures(e: Experiment) -> Model:
    """Returns the figures of a model."""
    leaves = jax.tree.leaves(e.like.params)
    size = sum(math.prod(leaf.shape) for leaf in leaves)
    memory = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    return Model(size, memory, e.model.cost.executed_flops, e.model.executed)


Ready = tuple[Experiment, dict[str, Any]]  # with variables


def difference(full: Ready, small: Ready) -> tuple[float, float]:
    """Returns the largest difference of two outputs, and the largest output, both models in float.

    They answer on the first validation batches.
    """
    gap = largest = 0.0
    experiment, _ = full
    answers = [_answers(*ready) for ready in (full, small)]
    batches = experiment.task.eval_batches("valid", experiment.micro)
    for batch in itertools.islice(batches, BATCHES):
        ours, theirs = (answer(batch) for answer in answers)
        gap = max(gap, float(np.abs(ours - theirs).max()))
        largest = max(largest, float(np.abs(ours).max()))
    return gap, largest


def _answers(e: Experiment, variables: dict[str, Any]) -> Callable[[Any], np.ndarray]:
    """Returns a function from batches to the outputs of the model that a run ends in."""

    @functools.cache
    def compiled(tokens: int) -> Callable[..., jax.Array]:
        model = e.sizes.model(e.sizes.final, tokens)

        @jax.jit
        def answer(variables, batch):
            out, _ = model.apply(variables, batch, neutral_knobs())
            return jax.numpy.einsum("bld,vd->blv", out.h.astype("float32"), out.head_VxD)

        return answer

    return lambda batch: np.asarray(compiled(e.tokens(batch))(variables, batch))
