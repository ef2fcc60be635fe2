"""budget=: lands the cost of a routed model where the user asked, by dual ascent on one multiplier
λ ≥ 0.

Two things follow the budget. The compiled program: `plan` finds, from the integer costs, the
net.route.rate whose slots are the most that the budget pays for; a few larger programs lead down to
it. And the decisions, whose hard cost C is held at the share of the slots that net.route.capacity
leaves filled, λ ← clip(λ + η·e, 0, λ_max), e = (C − H(t)) / (H(t) − all-light cost), while the
target H(t) falls from the dense cost to the budget. What λ moves:

    penalty  of a learned router: the weight of the expected cost in J, with a proportional term
             against oscillation
    rate     of a running threshold, which would undo any penalty: (slots of the target)·exp(−λ)

Nothing here knows a model: prices are functions that the caller gives. Dual ascent: Boyd &
Vandenberghe 2004, §5.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.config import NetCfg, ObjectiveCfg
from cerebra_jax.errors import UserError
from cerebra_jax.policies.policy import Metrics, Outcome, Policy, Seen, once
from cerebra_jax.policies.schedule import Length
from cerebra_jax.types import Knobs

POINTS = 65  # of the tables that turn an executed cost into a rate, and a rate into a hard cost
TOLERANCE = 0.02  # of the budget: how far from it the last program may be without a word
DAMPING = 20.0  # steps of ascent that the proportional term is worth
MEMORY = 0.9  # of the smoothed gap that it sees


class Plan(NamedTuple):
    """A budget in numbers, all of them fixed before the first step.

    Costs are relative, 1.0 = dense.
    """

    rates: tuple[float, ...]  # net.route.rate of each program, the dearest first, the budget's last
    levels: tuple[float, ...]  # executed cost of each program
    table: (
        np.ndarray
    )  # (3, P): rate, executed cost, hard cost when the slots are filled as configured
    light: float  # hard cost of a model that keeps nothing
    next: float  # executed cost of the next dearer program than the last, of all that there are
    warm: int
    ramp: int
    steers: str  # "penalty", "rate", or "" where only the program follows

    def over(self, cfg: ObjectiveCfg, length: Length) -> Plan:
        """Returns the plan of a run of another length: the same programs, at other steps."""
        return self._replace(warm=length.steps(cfg.warm), ramp=max(1, length.steps(cfg.ramp)))

    def misses(self, budget: float) -> bool:
        """Returns whether the last program is farther from the budget than TOLERANCE of it."""
        return abs(self.levels[-1] / budget - 1.0) > TOLERANCE

    def executed_at(self, step: Any) -> Any:
        """Returns the executed cost to stand at.

        It is that of the first program while warm, then falls linearly.
        """
        t = (step - self.warm) / self.ramp
        t = min(1.0, max(0.0, t)) if isinstance(step, int) else jnp.clip(t, 0.0, 1.0)
        return self.levels[0] + (self.levels[-1] - self.levels[0]) * t

    def bucket(self, step: int) -> int:
        """Returns the program of a step: the cheapest that pays for the target.

        It is a function of the step alone, so that a resumed run needs to know nothing else.
        """
        target = self.executed_at(step)
        return max(i for i, level in enumerate(self.levels) if level >= target - 1e-12 or i == 0)

    def counts(self, total: int) -> list[int]:
        """Returns how many of the first `total` steps each program takes."""
        programs = range(len(self.levels))
        ends = [bisect.bisect_right(range(total), i, key=self.bucket) for i in programs]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]

    def changes(self, total: int) -> list[int]:
        """Returns the steps, of `total`, before which the program becomes another one."""
        return sorted({end for end in itertools.accumulate(self.counts(total)) if 0 < end < total})


class Prices(NamedTuple):
    """What a model costs, relative to dense; both grow."""

    executed: Callable[[float], float]  # of its program, at a net.route.rate
    hard: Callable[[float], float]  # of its decisions, when this share of the tokens is kept


def plan(cfg: ObjectiveCfg, net: NetCfg, L: int, prices: Prices, length: Length) -> Plan:
    """Returns the plan of cfg.budget for a model that reads L tokens.

    Raises UserError, with the interval that can be reached, for a budget outside of it.
    """
    rates = _rates(net, L)
    steers = _steers(net)
    _check_reach(cfg, net, steers, (prices.executed(rates[0]), prices.executed(rates[-1])))

    # the programs: from the cost of dense, or as near as there is, down to the budget
    start = max(cfg.budget, min(1.0, prices.executed(rates[-1])))
    if cfg.buckets > 1:
        wanted = np.linspace(start, cfg.budget, cfg.buckets)
    else:
        wanted = np.array([cfg.budget])
    found = {_cheapest(prices.executed, rates, level) for level in wanted}
    chosen = tuple(sorted(found, reverse=True))
    levels = tuple(prices.executed(rate) for rate in chosen)
    dearer = bisect.bisect_right(rates, levels[-1] + 1e-12, key=prices.executed)
    return Plan(
        rates=chosen,
        levels=levels,
        table=_table(prices, rates, chosen),
        light=prices.hard(0.0),
        next=prices.executed(rates[min(dearer, len(rates) - 1)]),
        warm=0,
        ramp=1,
        steers=steers,
    ).over(cfg, length)


def divided(plan: Plan, program: int, budget: float, net: NetCfg, L: int, prices: Prices) -> Plan:
    """Returns the plan for slots that are divided as in `net`, as one of its programs follows it.

    That program and the last one have new rates, of the same executed costs; the steps at which
    programs change are those of `plan`.
    """
    every, rates, levels = _rates(net, L), list(plan.rates), list(plan.levels)
    last = len(rates) - 1
    for i, level in {program: levels[program], last: budget}.items():
        rates[i] = _cheapest(prices.executed, every, level)
        levels[i] = prices.executed(rates[i])
    return plan._replace(
        rates=tuple(rates),
        levels=tuple(levels),
        table=_table(prices, every, (rates[program], rates[last])),
        light=prices.hard(0.0),
    )


def _rates(net: NetCfg, L: int) -> list[float]:
    """Returns the rates that add one slot after another, in the layer that gets the most."""
    unit = L * net.route.capacity * max((1.0, *net.route.by_layer))
    most = math.floor(unit * (1 - 1 / L))
    return [k / unit for k in range(1, most + 1)]


def named(cost: float) -> float:
    """Returns a budget of 4 digits, for a person to read, that pays for a program of this cost."""
    return math.ceil(cost * 1e4 - 1e-9) / 1e4


def _check_reach(cfg: ObjectiveCfg, net: NetCfg, steers: str, reach: tuple[float, float]) -> None:
    """Raises UserError where the budget is not between the least and the largest cost in reach."""
    floor, ceiling = reach
    if not floor < ceiling:
        raise UserError(
            f"objective.budget is set, but this model executes {ceiling:.4f} of dense at any rate",
            "use objective.budget=0, or a model that is dispatched (net.route.dispatch=True)",
        )
    least, most = named(floor), named(ceiling)
    if not floor <= cfg.budget <= most:
        raise UserError(
            f"objective.budget is {cfg.budget:g}, out of this model's reach",
            f"choose {least:g} (almost every token light) to {most:g} (every token heavy)",
        )
    if steers == "penalty" and net.route.capacity <= 1.0:
        raise UserError(
            f"net.route.capacity is {net.route.capacity:g} under a budget",
            "a learned router needs more than 1: "
            "tokens without a slot would hide that it asks for too many",
        )


def _table(prices: Prices, rates: list[float], chosen: tuple[float, ...]) -> np.ndarray:
    """Returns (3, P): rates, the chosen ones among them, and executed and hard cost at each."""
    last = _cheapest(prices.executed, rates, prices.executed(rates[-1]))
    points = np.unique([*np.geomspace(rates[0], last, POINTS).tolist(), *chosen])
    costs = np.array([prices.executed(rate) for rate in points])
    # executed costs rise in steps: the last rate of each step stands for it
    rises = np.concatenate([costs[1:] > costs[:-1], [True]])
    kept = rises | np.isin(points, chosen)
    points, costs = points[kept], costs[kept]
    hard = np.array([prices.hard(min(1.0, rate)) for rate in points])
    return np.stack([points, costs, hard])


def _steers(net: NetCfg) -> str:
    """Returns what can move the decisions; raises UserError where nothing can follow a budget."""
    route = net.route
    if route.mode == "soft":
        raise UserError(
            "objective.budget is set, but net.route.mode=soft runs both branches for every token",
            "use hard or threshold, or objective.lam",
        )
    if route.mode == "hard" or (route.mode == "threshold" and route.tau == "learned"):
        return "penalty"
    if route.mode != "threshold":
        return ""
    if route.tau == "calibrated":
        raise UserError(
            "objective.budget is set, but a calibrated threshold stays where it is",
            "use net.route.tau=running, or a learned router",
        )
    return "rate"


def _cheapest(executed: Callable[[float], float], rates: list[float], level: float) -> float:
    """Returns the largest rate whose cost is within `level`.

    Where slots are rounded up, it is the last that fills them.
    """
    found = rates[max(0, bisect.bisect_right(rates, level + 1e-12, key=executed) - 1)]
    if executed(found) == executed(rates[-1]):  # all slots there are: more rate only overflows them
        return rates[bisect.bisect_left(rates, executed(found), key=executed)]
    return found


Dual = dict[str, jax.Array]
"""multiplier, gap: float32 scalars in the training state."""


@dataclasses.dataclass(frozen=True, eq=False)
class Budget(Policy):
    """Holds the cost at a budget, inside the training step of one of the plan's programs."""

    plan: Plan
    program: int  # its place among the plan's rates
    capacity: float  # net.route.capacity
    cfg: ObjectiveCfg

    owns: ClassVar[str] = "dual"

    def init(self, variables: Any, key: jax.Array) -> Dual:
        """Returns λ at the start.

        That is objective.lam for a penalty; for a rate it is log(capacity), at which the target's
        slots are filled as net.route.capacity says.
        """
        filled = max(0.0, math.log(self.capacity))
        first = self.cfg.lam if self.plan.steers == "penalty" else filled
        return {"multiplier": jnp.float32(first), "gap": jnp.float32(0)}

    def knobs(self, own: Dual, step: jax.Array, knobs: Knobs) -> Knobs:
        """Returns the knobs of a step with the multiplier at work."""
        push = own["multiplier"] + DAMPING * self.cfg.dual_rate * self._unit * own["gap"]
        lam = jnp.clip(push, 0.0, self.cfg.lam_max)
        if self.plan.steers == "penalty":
            return knobs._replace(lam=lam)
        if self.plan.steers == "rate":
            slots = jnp.minimum(1.0, self.capacity * self.rate(step))
            rate = slots * jnp.exp(-lam) / self.plan.rates[self.program]
            return knobs._replace(lam=jnp.float32(0), rate=rate)
        return knobs._replace(lam=jnp.float32(0))

    def after(self, own: Dual, seen: Seen, outcome: Outcome) -> tuple[Dual, Metrics]:
        """Moves the multiplier by how far the hard cost of the step's batch is from its target."""
        total, examples = outcome.metrics["hard"]
        hard = total / examples
        target = self.target(outcome.step)
        metrics = {
            "budget_target": once(target),
            "budget_gap": once(hard - target),
            "multiplier": once(own["multiplier"]),
            "rate": once(self.rate(outcome.step)),
        }
        return outcome.keep(self.ascend(own, outcome.step, hard), own), metrics

    @property
    def _unit(self) -> float:
        """λ of a penalty in units of one nat for the whole routed part of the budget."""
        if self.plan.steers != "penalty":
            return 1.0
        rates, _, hard = self.plan.table
        end = hard[list(rates).index(self.plan.rates[-1])]
        return 1.0 / max(1e-9, end - self.plan.light)

    def rate(self, step: jax.Array) -> jax.Array:
        """Returns the share of tokens to keep.

        At it the target, or this program, fills its slots as configured.
        """
        rate_P, executed_P, _ = jnp.asarray(self.plan.table, jnp.float32)
        wanted = self.plan.executed_at(step.astype(jnp.float32))
        executed = jnp.minimum(wanted, self.plan.levels[self.program])
        return jnp.minimum(jnp.interp(executed, executed_P, rate_P), self.plan.rates[self.program])

    def target(self, step: jax.Array) -> jax.Array:
        """Returns the hard cost to hold."""
        rate_P, _, hard_P = jnp.asarray(self.plan.table, jnp.float32)
        return jnp.interp(self.rate(step), rate_P, hard_P)

    def ascend(self, dual: Dual, step: jax.Array, hard: jax.Array) -> Dual:
        """Takes one step of dual ascent on the hard cost of the step's batch, over all devices."""
        target = self.target(step)
        reach = jnp.maximum(1e-9, target - self.plan.light)
        miss = jnp.clip((hard - target) / reach, -1.0, 1.0)
        lam = dual["multiplier"] + self.cfg.dual_rate * self._unit * miss
        gap = MEMORY * dual["gap"] + (1 - MEMORY) * miss
        return {"multiplier": jnp.clip(lam, 0.0, self.cfg.lam_max), "gap": gap}
