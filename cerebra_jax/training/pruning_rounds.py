"""Pruning in a run: the policy inside the training step, and the rounds on the host between steps.

The method, without a model, is policies/pruning.py; here it meets the units, the prices and the
state of a model.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax import checks
from cerebra_jax.config import PruneCfg, RunCfg
from cerebra_jax.layers import prunable
from cerebra_jax.layers.prunable import KINDS, Group, Masks
from cerebra_jax.models.model import Model, cost_of
from cerebra_jax.models.prunable import groups as groups_of
from cerebra_jax.models.prunable import shape_of
from cerebra_jax.policies import pruning
from cerebra_jax.policies.policy import Metrics, Outcome, Policy, Seen
from cerebra_jax.policies.schedule import Length
from cerebra_jax.trees import named_leaves

TOLERANCE = 0.02  # of prune.keep: how much less the last round may leave without a word
NAMES = {
    "ffn": "hidden features",
    "rest": "hidden features of the heavy path",
    "dct": "DCT coefficients",
}


@dataclasses.dataclass(frozen=True)
class Pruning(Policy):
    """Runs the model with its masks, and keeps the slopes that the rounds choose by.

    Its state holds "units" and "slopes", {group: (n,)}, and "elements", {parameter: mask}. The step
    changes the slopes only; the rounds change the masks.
    """

    cfg: PruneCfg
    groups: tuple[Group, ...]

    owns: ClassVar[str] = "prune"

    def init(self, variables: Any, key: jax.Array) -> Masks:
        """Returns masks of ones, of a model of which nothing is pruned yet."""
        named = named_leaves(variables["params"])
        ones = {group.name: jnp.ones(group.n) for group in self.groups}
        elements = {}
        if self.cfg.unstructured:
            matrices = [name for name, leaf in named.items() if elementwise(name, leaf)]
            elements = {name: jnp.ones(named[name].shape) for name in matrices}
        slopes = {name: jnp.zeros_like(mask) for name, mask in ones.items()}
        return {"units": ones, "slopes": slopes, "elements": elements}

    def probe(self, own: Masks) -> dict[str, jax.Array]:
        """Returns the masks of the units: dL/dm says what the loss of a unit costs."""
        return own["units"]

    def view(self, params: Any, own: Masks, probe: dict[str, jax.Array]) -> Any:
        """Returns the parameters with what is pruned at zero."""
        return prunable.masked(params, own | {"units": probe})

    def after(self, own: Masks, seen: Seen, outcome: Outcome) -> tuple[Masks, Metrics]:
        """Enters the step's slopes into their running mean."""
        slopes = pruning.follow(own["slopes"], seen.slopes, outcome.step)
        return own | {"slopes": outcome.keep(slopes, own["slopes"])}, {}


def policy(cfg: RunCfg) -> Pruning:
    """Returns the policy of a configuration that prunes."""
    return Pruning(cfg.prune, tuple(groups_of(cfg.net)))


def elementwise(name: str, leaf: Any) -> bool:
    """Returns whether unstructured pruning takes entries of a parameter.

    It takes them of matrices, but not of the embedding or a router.
    """
    routers = {"router", "meta_router"}
    return leaf.ndim >= 2 and name.endswith("/kernel") and not routers & set(name.split("/"))


class Rounds:
    """When, what and how far to prune.

    The price is the executed FLOPs of one example, of the program that the run ends in. Without
    pruning there is only an empty plan.
    """

    def __init__(self, cfg: RunCfg, model: Model, vocab: int, length: Length):
        self.cfg = cfg.prune
        self.seed = cfg.seed
        self.model = model
        self.vocab = vocab
        self.plan = pruning.plan(cfg.prune, length)
        self.groups = groups_of(model.net) if cfg.prune.on else []
        self.full = model.cost.executed_flops
        if cfg.prune.on:
            self._check_floor()

    def _check_floor(self) -> None:
        """Raises UserError where the target is below the cost with the fewest units everywhere."""
        fewest = {group.name: min(group.n, self.tile(group)) for group in self.groups}
        floor = self.flops(fewest) / self.full
        checks.require(
            self.cfg.keep >= floor or self.cfg.keep == 1.0,
            f"prune.keep is {self.cfg.keep:g}",
            f"{floor:.3f} of the FLOPs are left with the fewest units everywhere",
        )

    @property
    def last(self) -> int:
        """The step of the last round; a model is judged after it. −1: at any step."""
        return self.plan.steps[-1] if self.plan.steps else -1

    def tile(self, group: Group) -> int:
        """Returns how many units of a group go together; heads go alone."""
        return 1 if group.kind == "heads" else self.cfg.tile

    def flops(self, left: dict[str, int]) -> int:
        """Returns the executed FLOPs of an example with so many units left of each group."""
        net = shape_of(self.model.net, left)
        platform = self.model.pricing.platform
        return cost_of(net, self.model.L, self.vocab, platform).executed_flops

    def relative(self, masks: Masks) -> float:
        """Returns what the model would execute if shrunk to its masks, relative to dense."""
        left = {name: int(np.asarray(mask).sum()) for name, mask in masks["units"].items()}
        return self.flops(left) / self.model.dense.executed_flops

    def turn(self, step: int, params: Any, masks: Masks) -> tuple[Masks, str]:
        """Returns the masks after the round at a step, and a line that says what went.

        Works on the host, from arrays of the state alone, so that a resumed run repeats it.
        """
        params, masks = jax.device_get((params, masks))
        progress = self.plan.progress(step)
        worth = self._worth(step, params, masks)

        # units that save FLOPs, up to the target of this round
        kept = pruning.choose(*self._choice(worth, masks["units"], progress))

        # what saves nothing goes by its share: coefficients of filters, single weights
        for group in self.groups:
            if group.kind == "dct":
                fraction = self.cfg.dct * progress
                alive = masks["units"][group.name]
                kept[group.name] = pruning.least(worth[group.name], alive, fraction)
        named = named_leaves(params)
        fraction = self.cfg.unstructured * progress
        elements = {
            name: pruning.least(np.abs(named[name]), mask, fraction)
            for name, mask in masks["elements"].items()
        }
        new = masks | {"units": kept, "elements": elements}
        return new, self._line(step, masks["units"], new)

    def missed(self, masks: Masks) -> list[str]:
        """Returns a warning where the last round could not leave prune.keep of the FLOPs.

        Units go in tiles: it names the share that is left, and the nearest one with a tile more.
        """
        keep = self.cfg.keep
        left = {name: int(np.asarray(mask).sum()) for name, mask in masks["units"].items()}
        share = self.flops(left) / self.full
        if share > (1.0 - TOLERANCE) * keep:
            return []
        more = [
            left | {group.name: min(group.n, left[group.name] + self.tile(group))}
            for group in self.groups
            if group.kind in KINDS and left[group.name] < group.n
        ]
        shares = [self.flops(units) / self.full for units in more]
        above = min((x for x in shares if x > keep), default=1.0)
        what = f"warning: prune.keep is {keep:g}, which no choice of whole tiles leaves"
        finer = "; a smaller prune.tile comes nearer" if self.cfg.tile > 1 else ""
        return [f"{what}: it is {share:.3f} of the FLOPs now, a tile more is {above:.3f}{finer}"]

    def _choice(self, worth: pruning.Vectors, alive: pruning.Vectors, progress: float) -> tuple:
        """Returns what `pruning.choose` takes: candidates, their price, and the round's target."""
        now = {name: int(mask.sum()) for name, mask in alive.items()}
        price = self.flops(now)
        per_flop = self.cfg.score == "sensitivity"
        groups = {}
        for group in self.groups:
            if group.kind not in KINDS:
                continue
            # what one unit saves, with what is left elsewhere; the last of a group never goes
            name = group.name
            saved = price - self.flops(now | {name: max(1, now[name] - 1)}) if per_flop else 1
            groups[name] = pruning.Candidates(
                worth[name], alive[name], max(1, saved), self.tile(group)
            )

        def priced(left: dict[str, int]) -> int:
            return self.flops(now | left)

        return groups, priced, self.full * (1.0 - (1.0 - self.cfg.keep) * progress)

    def _worth(self, step: int, params: Any, masks: Masks) -> pruning.Vectors:
        """Returns how much each unit matters, (n,): |ΔL|, the size of its weights, or chance."""
        if self.cfg.score in ("sensitivity", "taylor"):
            return masks["slopes"]
        if self.cfg.score == "random":
            dice = np.random.default_rng((self.seed, step))
            return {group.name: dice.random(group.n) for group in self.groups}
        named = named_leaves(params)
        return {group.name: size(named, group) for group in self.groups}

    def _line(self, step: int, old: pruning.Vectors, masks: Masks) -> str:
        """Returns a line about what a round removed, by kind, and what is left would cost."""
        # units by kind
        gone: dict[str, int] = {}
        left: dict[str, int] = {}
        for group in self.groups:
            before, after = int(old[group.name].sum()), int(masks["units"][group.name].sum())
            gone[group.kind] = gone.get(group.kind, 0) + before - after
            left[group.kind] = left.get(group.kind, 0) + after
        parts = [
            f"{n} {NAMES.get(kind, kind)} ({left[kind]} left)" for kind, n in gone.items() if n
        ]

        # what saves nothing
        zeros = sum(int(mask.size - mask.sum()) for mask in masks["elements"].values())
        if zeros:
            parts.append(f"{zeros:,} single weights at zero, which saves nothing")
        if "dct" in gone and gone["dct"]:
            parts.append("DCT coefficients save nothing")

        place = f"round {self.plan.steps.index(step) + 1} of {len(self.plan.steps)} of pruning"
        cost = f"shrunk, {self.relative(masks):.3f} of dense FLOPs"
        return f"step {step:,} · {place}: {', '.join(parts) or 'nothing'}; {cost}"


def size(named: dict[str, Any], group: Group) -> np.ndarray:
    """Returns the root mean square of the weights of each unit, (n,)."""
    total, entries = np.zeros(group.n), 0
    for member in group.members or (prunable.Member(group.name, 0),):
        weights = np.asarray(named[member.name], np.float64)
        weights = np.moveaxis(weights, member.axis, 0)
        squares = np.square(weights).reshape(member.blocks, group.n, -1)
        total = total + squares.sum((0, 2))
        entries += squares.shape[0] * squares.shape[2]
    return np.sqrt(total / entries)
