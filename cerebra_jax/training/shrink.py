"""A pruned run becomes a smaller one: what its masks hold at zero is cut out of parameters and optimizer state."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax import config
from cerebra_jax.checks import need
from cerebra_jax.config import PruneCfg, RunCfg
from cerebra_jax.layers import prunable as layer_units
from cerebra_jax.layers.prunable import KINDS
from cerebra_jax.models import prunable as units
from cerebra_jax.models.model import neutral_knobs
from cerebra_jax.training import frozen
from cerebra_jax.training import imported as outside
from cerebra_jax.training import workdir as folder
from cerebra_jax.training.checkpoint import Checkpoints, fill
from cerebra_jax.training.experiment import Session

BATCHES = 4  # of the validation split, on which both models answer
TILES = {
    "tpu": 128
}  # lanes of a register; elsewhere 8 (NVIDIA: tensor cores want multiples of 8 in 16 bits)


class Model(NamedTuple):
    """Figures of one of the two models."""

    params: int
    bytes: int  # of its weights, as a file holds them
    flops: int  # executed, forward, per example
    relative: float  # of the dense Transformer's


class Shrunk(NamedTuple):
    """`gap`: the largest difference between any two outputs on real batches, and the largest output."""

    before: Model
    after: Model
    gap: float
    largest: float
    net: Any
    filled: int  # units that stay for the tile though they are masked


def shrink(cfg: RunCfg, new: RunCfg, task: Any, workdir: Path, to: Path, tile: int,
           say: Callable[[str], None]) -> Shrunk:  # fmt: skip
    """Writes the run `to`, of the configuration `new` with the shapes that are left, from the best checkpoint of a run.

    Hidden features and channels stay in multiples of `tile` (0: of the device's). UserError where nothing was pruned.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", say, read_only=True)
    try:
        found = checkpoints.named()
    finally:
        checkpoints.close()
    need(
        found is not None,
        f"{workdir} has no intact checkpoint that was validated after pruning",
        "train it to its end",
    )
    step, named, meta = found
    masks = {
        name.removeprefix("prune/units/"): a
        for name, a in named.items()
        if name.startswith("prune/units/")
    }
    need(bool(masks), f"{workdir} pruned nothing", "train it with --config.prune.keep=0.5, say")
    full = Session(cfg, task)
    groups = units.groups(cfg.net)
    slopes = {g.name: named[f"prune/slopes/{g.name}"] for g in groups}
    keep = {
        g.name: left(g, masks[g.name], slopes[g.name], tile or TILES.get(jax.default_backend(), 8))
        for g in groups
    }
    named = outside.masked(named)
    net = units.shape_of(cfg.net, {name: len(j) for name, j in keep.items()})
    new = dataclasses.replace(new, net=net, prune=PruneCfg())
    smaller = {
        name: a
        for name, a in layer_units.cut(named, groups, keep).items()
        if not name.startswith("prune/")
    }
    small = Session(new, task)
    folder.prepare(to, False, say)
    outside.save(new, to, smaller, step, meta["score"], say, meta["data"])
    if (workdir / frozen.FILE).exists():
        shutil.copy(workdir / frozen.FILE, to)
    folder.write_json(to / "config.json", config.to_dict(new))
    gap, largest = difference(full, small, tree(full, named), tree(small, smaller))
    filled = sum(
        len(keep[g.name]) - int(masks[g.name].sum()) for g in groups if g.kind in KINDS
    )
    return Shrunk(figures(full), figures(small), gap, largest, net, filled)


def left(g: units.Group, mask: np.ndarray, slope: np.ndarray, tile: int) -> np.ndarray:
    """Indices of the units that stay: those not masked, and of the others the most important up to a multiple of the
    tile. Heads go one by one; DCT coefficients stay, at zero."""
    if g.kind == "dct":
        return np.arange(g.n)
    tile = 1 if g.kind == "heads" else tile
    count = min(g.n, math.ceil(max(1, int(mask.sum())) / tile) * tile)
    return np.sort(np.lexsort((-slope, -mask))[:count])


def tree(s: Session, named: dict[str, np.ndarray]) -> dict[str, Any]:
    """Variables of a model from arrays by name."""
    return {part: fill(getattr(s.like, part), named, part) for part in ("params", "routing")}


def figures(s: Session) -> Model:
    leaves, m = jax.tree.leaves(s.like.params), s.model
    size = sum(math.prod(leaf.shape) for leaf in leaves)
    return Model(
        size,
        sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves),
        m.cost.executed_flops,
        m.executed,
    )


def difference(
    full: Session, small: Session, wide: dict[str, Any], narrow: dict[str, Any]
) -> tuple[float, float]:
    """(largest difference of two outputs, largest output) on the first validation batches, both models in float."""
    gap = largest = 0.0
    for batch in itertools.islice(full.task.eval_batches("valid", full.micro), BATCHES):
        answers = []
        for s, variables in ((full, wide), (small, narrow)):
            model = s.built(s.final, s.length(batch))
            out, _ = jax.jit(lambda v, b, model=model: model.apply(v, b, neutral_knobs()))(
                variables, batch
            )
            answers.append(
                np.asarray(jnp.einsum("bld,vd->blv", out.h.astype(jnp.float32), out.head_VxD))
            )
        gap = max(gap, float(np.abs(answers[0] - answers[1]).max()))
        largest = max(largest, float(np.abs(answers[0]).max()))
    return gap, largest
