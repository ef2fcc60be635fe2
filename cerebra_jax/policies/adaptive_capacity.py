"""Adaptive capacity: a router that learned to keep less gets a smaller program, under a plain λ.

It gets a larger one back where it keeps more again.

The programs differ in their slots only: each has half of those of the one before it. How many
tokens want the heavy path does not depend on the slots, so a step in any program shows what every
other one would lose: the share of tokens that want a slot and would find none. All of it is a pure
function of arrays in the training step, with its state in the checkpoint. The host runs the program
that the state names, decided a step earlier so that it never waits for the device.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg, RunCfg
from cerebra_jax.policies.policy import Metrics, Observed, Outcome, Policy, Seen, Shown, once

LOST = 0.01  # share of the tokens that may find no slot
SPARE = 0.8  # share of a smaller program's slots that the tokens must fit in before it is moved to
MEMORY = 0.95  # of the smoothed losses, per step

Capacity = dict[str, jax.Array]
"""lost_2xN: smoothed share of tokens without a slot in each of N programs, as it is and with SPARE
of its slots. program, next: int32, the programs of the coming step and of the one after it.
"""


@dataclasses.dataclass(frozen=True)
class AdaptiveCapacity(Policy):
    """Chooses among programs by what they would lose.

    `slots` are those per token of each program, the most first.
    """

    slots: tuple[float, ...]

    owns: ClassVar[str] = "demand"  # the name that checkpoints have for it

    def init(self, variables: Any, key: jax.Array) -> Capacity:
        """Returns the state before the first step: the largest program runs."""
        return init(self.slots)

    def observe(self, shown: Shown) -> Observed:
        """Returns what every program would lose, summed over the examples."""
        lost_2xNxB = lost(shown.aux.stats["wanted"], self.slots)
        return Observed(summed=lost_2xNxB @ shown.losses.weight_B)

    def after(self, own: Capacity, seen: Seen, outcome: Outcome) -> tuple[Capacity, Metrics]:
        """Chooses the program of the step after the next.

        The next step takes the program that was announced for it, whatever was found.
        """
        _, examples = outcome.metrics["hard"]
        new = follow(own, seen.summed / examples)
        kept = outcome.keep(new, own | {"program": new["program"]})
        metrics = {
            "lost": once(new["lost_2xN"][0]),
            "program_next": once(kept["next"].astype(jnp.float32)),
        }
        return kept, metrics


def programs(cfg: RunCfg) -> list[RunCfg]:
    """Returns the configurations to choose from, the largest first.

    That is cfg alone unless its router can learn to keep less.
    """
    objective, net = cfg.objective, cfg.net
    if objective.lam == 0.0 or objective.budget > 0.0 or not _learns(net):
        return [cfg]
    route = net.route
    full = min(1.0, route.rate * route.capacity)
    found = [cfg]
    for i in range(1, objective.buckets):
        halved = dataclasses.replace(route, capacity=full / 2**i / route.rate)
        found.append(dataclasses.replace(cfg, net=dataclasses.replace(net, route=halved)))
    return found


def _learns(net: NetCfg) -> bool:
    route = net.route
    learned = route.mode == "hard" or (route.mode == "threshold" and route.tau == "learned")
    # slots are halved in all layers alike, and those of an RBF mixer with those of attention,
    # whoever wants them
    alike = not route.by_layer and not route.by_demand and route.rbf == 0.0
    return learned and route.dispatch and route.rate > 0.0 and alike


def slots(cfgs: list[RunCfg]) -> tuple[float, ...]:
    """Returns the slots per token of each program."""
    return tuple(min(1.0, c.net.route.rate * c.net.route.capacity) for c in cfgs)


def init(slots: tuple[float, ...]) -> Capacity:
    """Returns the state before anything was seen.

    It takes every token for lost, so that the largest program runs.
    """
    return {"lost_2xN": jnp.ones((2, len(slots))), "program": jnp.int32(0), "next": jnp.int32(0)}


def lost(wanted_RxB: jax.Array, slots: tuple[float, ...]) -> jax.Array:
    """Returns the share of the tokens of each example that would find no slot, (2, N, B).

    It is the mean over the layers, in each program as it is and with SPARE of its slots.
    `wanted_RxB` is the share that wants one, in the fullest segment of each example.
    """
    slots_2xN = jnp.asarray([slots, [SPARE * s for s in slots]])
    return jnp.maximum(0.0, wanted_RxB[:, None, None] - slots_2xN[None, :, :, None]).mean(0)


def follow(state: Capacity, lost_2xN: jax.Array) -> Capacity:
    """Returns the state after a step.

    The program grows where the next one loses more than LOST, and shrinks where there is room.
    """
    smooth_2xN = MEMORY * state["lost_2xN"] + (1 - MEMORY) * lost_2xN
    # losses rise as programs shrink: how many are good enough is the place of the smallest one
    fits, roomy = jnp.maximum(0, (smooth_2xN <= LOST).sum(1) - 1)
    now = state["next"]
    after = jnp.where(now <= fits, jnp.maximum(now, roomy), fits)
    return {"lost_2xN": smooth_2xN, "program": now, "next": after.astype(jnp.int32)}
