"""The rounds of pruning of one run: `policies.pruning` with the units, the prices and the state of its model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax import checks
from cerebra_jax.config import RunCfg
from cerebra_jax.layers import prunable as layer_units
from cerebra_jax.layers.prunable import KINDS, Group, Masks
from cerebra_jax.models import prunable as units
from cerebra_jax.models.model import Model, cost_of
from cerebra_jax.policies import pruning as prune
from cerebra_jax.trees import named_leaves


def init(cfg: RunCfg, params: Any) -> Masks:
    """Nothing is pruned: masks of ones, and no slope seen; empty where nothing ever is."""
    c = cfg.prune
    if not c.on:
        return {}
    named = named_leaves(params)
    ones = {g.name: jnp.ones(g.n) for g in units.groups(cfg.net)}
    matrices = (
        [name for name, leaf in named.items() if elementwise(name, leaf)] if c.unstructured else []
    )
    elements = {name: jnp.ones(named[name].shape) for name in matrices}
    return {
        "units": ones,
        "slopes": {name: jnp.zeros_like(m) for name, m in ones.items()},
        "elements": elements,
    }


def elementwise(name: str, leaf: Any) -> bool:
    """Whether unstructured pruning takes entries of a parameter: of matrices, but not of the embedding or a router."""
    return (
        leaf.ndim >= 2
        and name.endswith("/kernel")
        and not {"router", "meta_router"} & set(name.split("/"))
    )


class Rounds:
    """When, what and how far. The price is the executed FLOPs of one example, of the program that the run ends in."""

    def __init__(self, cfg: RunCfg, model: Model, vocab: int, total: int, per_epoch: int):
        self.cfg, self.c, self.model, self.vocab = cfg, cfg.prune, model, vocab
        self.plan = prune.plan(self.c, total, per_epoch)
        if not self.c.on:
            return
        self.groups = units.groups(model.net)
        self.costly = {g.name: g for g in self.groups if g.kind in KINDS}
        self.full = model.cost.executed_flops
        floor = self.flops({g.name: min(g.n, self.tile(g)) for g in self.groups}) / self.full
        checks.need(self.c.keep >= floor or self.c.keep == 1.0, f"prune.keep is {self.c.keep:g}",
                    f"{floor:.3f} of the FLOPs are left with the fewest units everywhere")  # fmt: skip

    @property
    def last(self) -> int:
        """The step of the last round; a model is judged after it. −1: at any step."""
        return self.plan.steps[-1] if self.plan.steps else -1

    def tile(self, g: Group) -> int:
        """Units of a group that go together; heads go alone."""
        return 1 if g.kind == "heads" else self.c.tile

    def flops(self, left: dict[str, int]) -> int:
        """Executed FLOPs of an example with so many units left of each group."""
        net = units.shape_of(self.model.net, left)
        return cost_of(net, self.model.L, self.vocab, self.model.pricing.platform).executed_flops

    def relative(self, masks: Masks) -> float:
        """What the model would execute if it were shrunk to its masks, relative to the dense Transformer."""
        left = {name: int(np.asarray(m).sum()) for name, m in masks["units"].items()}
        return self.flops(left) / self.model.dense.executed_flops

    def turn(self, at: int, params: Any, masks: Masks) -> tuple[Masks, str]:
        """The masks after the round at a step, and a line that says what went. On the host, from arrays of the state
        alone: a resumed run repeats it."""
        params, masks = jax.device_get((params, masks))
        way, old = self.plan.of(at), masks["units"]
        worth, named = self._worth(at, params, masks), named_leaves(params)
        now = {name: int(m.sum()) for name, m in old.items()}
        price = self.flops(now)
        # of one unit, with what is left elsewhere; the last unit of a group never goes
        unit = {name: price - self.flops(now | {name: max(1, n - 1)}) for name, n in now.items()}
        target = self.full * (1.0 - (1.0 - self.c.keep) * way)
        pick = lambda of: {name: of[name] for name in self.costly}  # noqa: E731
        new = prune.choose(pick(worth), pick(old), {name: max(1, f) for name, f in unit.items()},
                           {name: self.tile(g) for name, g in self.costly.items()},
                           lambda left: self.flops(now | left), target, self.c.score == "sensitivity")  # fmt: skip
        new |= {
            g.name: prune.least(worth[g.name], old[g.name], self.c.dct * way)
            for g in self.groups
            if g.kind == "dct"
        }
        elements = {name: prune.least(np.abs(named[name]), m, self.c.unstructured * way)
                    for name, m in masks["elements"].items()}  # fmt: skip
        fresh = masks | {"units": new, "elements": elements}
        return fresh, self._line(at, old, fresh)

    def _worth(self, at: int, params: Any, masks: Masks) -> prune.Vectors:
        """How much each unit matters, (n,) of each group: |ΔL|, the size of its weights, or chance."""
        if self.c.score in ("sensitivity", "taylor"):
            return masks["slopes"]
        if self.c.score == "random":
            dice = np.random.default_rng((self.cfg.seed, at))
            return {g.name: dice.random(g.n) for g in self.groups}
        named = named_leaves(params)
        return {g.name: size(named, g) for g in self.groups}

    def _line(self, at: int, old: prune.Vectors, masks: Masks) -> str:
        """What a round removed, by kind, and what is left would cost."""
        gone = {}
        for g in self.groups:
            before, after = int(old[g.name].sum()), int(masks["units"][g.name].sum())
            n, of = gone.get(g.kind, (0, 0))
            gone[g.kind] = n + before - after, of + after
        names = {
            "ffn": "hidden features",
            "rest": "hidden features of the heavy path",
            "dct": "DCT coefficients",
        }
        parts = [
            f"{n} {names.get(kind, kind)} ({left} left)" for kind, (n, left) in gone.items() if n
        ]
        zero = sum(int(m.size - m.sum()) for m in masks["elements"].values())
        parts += [f"{zero:,} single weights at zero, which saves nothing"] if zero else []
        parts += ["DCT coefficients save nothing"] if gone.get("dct", (0, 0))[0] else []
        cost = f"shrunk, {self.relative(masks):.3f} of dense FLOPs"
        which = f"round {self.plan.steps.index(at) + 1} of {len(self.plan.steps)} of pruning"
        return f"step {at:,} · {which}: {', '.join(parts) or 'nothing'}; {cost}"


def size(named: dict[str, Any], g: Group) -> np.ndarray:
    """Root mean square of the weights of each unit, (n,)."""
    total, entries = np.zeros(g.n), 0
    for m in g.members or (layer_units.Member(g.name, 0),):
        w = np.moveaxis(np.asarray(named[m.name], np.float64), m.axis, 0)
        w = np.square(w).reshape(m.blocks, g.n, -1)
        total, entries = total + w.sum((0, 2)), entries + w.shape[0] * w.shape[2]
    return np.sqrt(total / entries)
