"""budget=: lands the cost of a routed model where the user asked, by dual ascent on one multiplier λ ≥ 0.

Two things follow the budget. The compiled program: `plan` finds, from the integer costs, the net.route.rate whose slots
are the most that the budget pays for; a few larger programs lead down to it. And the decisions, whose hard cost C is
held at the share of the slots that net.route.capacity leaves filled, λ ← clip(λ + η·e, 0, λ_max),
e = (C − H(t)) / (H(t) − all-light cost), while the target H(t) falls from the dense cost to the budget. What λ moves:

    penalty  a learned router: the weight of the expected cost in J, with a proportional term against oscillation
    rate     a running threshold, which would undo any penalty: its rate is (slots of the target)·exp(−λ)

Nothing here knows a model: prices are functions that the caller gives. Dual ascent: Boyd & Vandenberghe 2004, §5.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.config import NetCfg, ObjectiveCfg, to_steps
from cerebra_jax.errors import UserError
from cerebra_jax.types import Knobs

POINTS = 65  # of the tables that turn an executed cost into a rate, and a rate into a hard cost
DAMPING = 20.0  # steps of ascent that the proportional term is worth
MEMORY = 0.9  # of the smoothed gap that it sees


class Plan(NamedTuple):
    """A budget in numbers, all of them fixed before the first step. Costs are relative, 1.0 = dense."""

    rates: tuple[
        float, ...
    ]  # net.route.rate of each program, the dearest first; the last is the budget's
    levels: tuple[float, ...]  # executed cost of each program
    table: (
        np.ndarray
    )  # (3, P): rate, executed cost, hard cost when the filled share of the slots is kept
    light: float  # hard cost of a model that keeps nothing
    warm: int
    ramp: int
    steers: str  # "penalty", "rate", or "" where only the program follows

    def executed_at(self, step: Any) -> Any:
        """Executed cost to stand at: that of the first program while warm, then falling linearly."""
        t = (step - self.warm) / self.ramp
        t = min(1.0, max(0.0, t)) if isinstance(step, int) else jnp.clip(t, 0.0, 1.0)
        return self.levels[0] + (self.levels[-1] - self.levels[0]) * t

    def bucket(self, step: int) -> int:
        """The program of a step: the cheapest that pays for the target. A function of the step, so resuming is free."""
        target = self.executed_at(step)
        return max(i for i, level in enumerate(self.levels) if level >= target - 1e-12 or i == 0)


def plan(cfg: ObjectiveCfg, net: NetCfg, L: int, executed: Callable[[float], float], hard: Callable[[float], float],
         total: int, per_epoch: int) -> Plan:  # fmt: skip
    """The plan of cfg.budget. executed(rate) and hard(share of tokens kept) are relative costs, growing.

    Raises UserError, with the interval that can be reached, for a budget outside of it.
    """
    capacity = net.route.capacity
    unit = (
        L * capacity * max((1.0, *net.route.by_layer))
    )  # a slot more in the layer that gets the most
    rates = [k / unit for k in range(1, math.floor(unit * (1 - 1 / L)) + 1)]
    floor, ceiling = executed(rates[0]), executed(rates[-1])
    steers = _steers(net)
    if not floor < ceiling:
        raise UserError(f"objective.budget is set, but this model executes {ceiling:.4f} of dense at any rate",
                        "use objective.budget=0, or a model that is dispatched (net.route.dispatch=True)")  # fmt: skip
    if not floor <= cfg.budget <= ceiling:
        raise UserError(f"objective.budget is {cfg.budget:g}, out of this model's reach",
                        f"choose {math.ceil(floor * 1e4) / 1e4:g} (almost every token light) "
                        f"to {math.floor(ceiling * 1e4) / 1e4:g} (every token heavy)")  # fmt: skip
    if steers == "penalty" and capacity <= 1.0:
        raise UserError(f"net.route.capacity is {capacity:g} under a budget", "a learned router needs more than 1: "
                        "tokens without a slot would hide that it asks for too many")  # fmt: skip
    start = max(cfg.budget, min(1.0, ceiling))
    wanted = (
        np.linspace(start, cfg.budget, cfg.buckets) if cfg.buckets > 1 else np.array([cfg.budget])
    )
    found = [_cheapest(executed, rates, level) for level in wanted]
    chosen = sorted(set(found), reverse=True)
    points = np.unique(
        np.geomspace(rates[0], _cheapest(executed, rates, ceiling), POINTS).tolist() + chosen
    )
    costs = np.array([executed(r) for r in points])
    keep = np.concatenate(
        [costs[1:] > costs[:-1], [True]]
    )  # executed costs rise in steps: the last rate of each
    keep |= np.isin(points, chosen)
    points, costs = points[keep], costs[keep]
    table = np.stack([points, costs, np.array([hard(min(1.0, r)) for r in points])])
    warm, ramp = to_steps(cfg.warm, total, per_epoch), max(1, to_steps(cfg.ramp, total, per_epoch))
    levels = tuple(executed(r) for r in chosen)
    return Plan(tuple(chosen), levels, table, hard(0.0), warm, ramp, steers)


def _steers(net: NetCfg) -> str:
    """What can move the decisions; UserError where nothing can follow."""
    if net.route.mode == "soft":
        raise UserError("objective.budget is set, but net.route.mode=soft runs both branches for every token",
                        "use hard or threshold, or objective.lam")  # fmt: skip
    if net.route.mode == "hard" or (net.route.mode == "threshold" and net.route.tau == "learned"):
        return "penalty"
    if net.route.mode != "threshold":
        return ""
    if net.route.tau == "calibrated":
        raise UserError("objective.budget is set, but a calibrated threshold stays where it is",
                        "use net.route.tau=running, or a learned router")  # fmt: skip
    return "rate"


def _cheapest(executed: Callable[[float], float], rates: list[float], level: float) -> float:
    """The largest rate whose cost is within `level`; where slots are rounded up, the last rate that fills them."""
    found = rates[max(0, bisect.bisect_right(rates, level + 1e-12, key=executed) - 1)]
    if executed(found) == executed(rates[-1]):  # all slots there are: more rate only overflows them
        return rates[bisect.bisect_left(rates, executed(found), key=executed)]
    return found


Dual = dict[
    str, jax.Array
]  # multiplier, gap: float32 scalars in the training state; empty without a budget


def init(cfg: ObjectiveCfg, net: NetCfg) -> Dual:
    """λ at the start: objective.lam for a penalty; for a rate log(capacity), at which the target's slots are filled as
    net.route.capacity says."""
    if cfg.budget == 0.0:
        return {}
    first = cfg.lam if _steers(net) == "penalty" else max(0.0, math.log(net.route.capacity))
    return {"multiplier": jnp.float32(first), "gap": jnp.float32(0)}


class Control(NamedTuple):
    """The budget inside the training step of one program; pure functions of arrays."""

    plan: Plan
    bucket: int
    capacity: float
    dual_rate: float
    lam_max: float

    @property
    def _unit(self) -> float:
        """λ of a penalty is a weight in J: one unit of it costs one nat for the whole routed part of the budget."""
        end = self.plan.table[2][list(self.plan.table[0]).index(self.plan.rates[-1])]
        return 1.0 / max(1e-9, end - self.plan.light) if self.plan.steers == "penalty" else 1.0

    def rate(self, step: jax.Array) -> jax.Array:
        """Share of tokens to keep: that at which the target, or this program, fills its slots as configured."""
        rate_P, executed_P, _ = jnp.asarray(self.plan.table, jnp.float32)
        executed = jnp.minimum(
            self.plan.executed_at(step.astype(jnp.float32)), self.plan.levels[self.bucket]
        )
        return jnp.minimum(jnp.interp(executed, executed_P, rate_P), self.plan.rates[self.bucket])

    def target(self, step: jax.Array) -> jax.Array:
        """Hard cost to hold."""
        rate_P, _, hard_P = jnp.asarray(self.plan.table, jnp.float32)
        return jnp.interp(self.rate(step), rate_P, hard_P)

    def knobs(self, dual: Dual, step: jax.Array, knobs: Knobs) -> Knobs:
        """The knobs of a step with the multiplier at work."""
        push = dual["multiplier"] + DAMPING * self.dual_rate * self._unit * dual["gap"]
        lam = jnp.clip(push, 0.0, self.lam_max)
        if self.plan.steers == "penalty":
            return knobs._replace(lam=lam)
        if self.plan.steers == "rate":
            slots = jnp.minimum(1.0, self.capacity * self.rate(step))
            return knobs._replace(
                lam=jnp.float32(0), rate=slots * jnp.exp(-lam) / self.plan.rates[self.bucket]
            )
        return knobs._replace(lam=jnp.float32(0))

    def ascend(self, dual: Dual, step: jax.Array, hard: jax.Array) -> Dual:
        """One step of dual ascent on the hard cost of the step's batch, over all devices."""
        target = self.target(step)
        miss = jnp.clip((hard - target) / jnp.maximum(1e-9, target - self.plan.light), -1.0, 1.0)
        lam = jnp.clip(dual["multiplier"] + self.dual_rate * self._unit * miss, 0.0, self.lam_max)
        return {"multiplier": lam, "gap": MEMORY * dual["gap"] + (1 - MEMORY) * miss}
