"""Under a plain λ, a policy that learned to spend less gets a smaller program, and a larger one back if it must.

The programs differ in their slots only: each has half of those of the one before it. Who wants the heavy path does not
depend on the slots, so a step in any program shows what every other one would lose: the share of tokens that want a
slot and would find none. All of it is a pure function of arrays in the training step, with its state in the checkpoint:
the host runs the program that the state names, decided a step earlier so that it never waits for the device.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg, RunCfg

LOST = 0.01  # share of the tokens that may find no slot
SPARE = 0.8  # share of a smaller program's slots that the demand must fit in before it is moved to
MEMORY = 0.95  # of the smoothed losses, per step

Demand = dict[str, jax.Array]
"""lost_2xN: smoothed share of tokens without a slot in each of N programs, as it is and with SPARE of its slots.
program, next: int32, the programs of the coming step and of the one after it. Empty without demand."""


def programs(cfg: RunCfg) -> list[RunCfg]:
    """The configurations to choose from, the largest first: cfg alone unless its router can learn to keep less."""
    o, net = cfg.objective, cfg.net
    if o.lam == 0.0 or o.budget > 0.0 or not _learns(net):
        return [cfg]
    route = net.route
    shares = [min(1.0, route.rate * route.capacity) / 2**i for i in range(o.buckets)]
    routes = [dataclasses.replace(route, capacity=share / route.rate) for share in shares]
    return [
        cfg,
        *(dataclasses.replace(cfg, net=dataclasses.replace(net, route=r)) for r in routes[1:]),
    ]


def _learns(net: NetCfg) -> bool:
    route = net.route
    learned = route.mode == "hard" or (route.mode == "threshold" and route.tau == "learned")
    # slots are halved in all layers alike, and those of an RBF mixer with those of attention, whoever wants them
    alike = not route.by_layer and route.rbf == 0.0
    return learned and route.dispatch and route.rate > 0.0 and alike


def shares(cfgs: list[RunCfg]) -> tuple[float, ...]:
    """Slots per token of each program."""
    return tuple(min(1.0, c.net.route.rate * c.net.route.capacity) for c in cfgs)


def init(shares: tuple[float, ...]) -> Demand:
    """The largest program, until enough steps have shown that a smaller one loses nothing."""
    if len(shares) < 2:
        return {}
    return {"lost_2xN": jnp.ones((2, len(shares))), "program": jnp.int32(0), "next": jnp.int32(0)}


def lost(wanted_RxB: jax.Array, shares: tuple[float, ...]) -> jax.Array:
    """(2, N, B): share of the tokens of each example that would find no slot, mean over the layers, in each program as
    it is and with SPARE of its slots. `wanted` is the share that wants one, in the fullest segment of each example."""
    slots_2xN = jnp.asarray([shares, [SPARE * s for s in shares]])
    return jnp.maximum(0.0, wanted_RxB[:, None, None] - slots_2xN[None, :, :, None]).mean(0)


def follow(state: Demand, lost_2xN: jax.Array) -> Demand:
    """The state after a step: grows where the next program loses more than LOST, shrinks where there is room."""
    smooth_2xN = MEMORY * state["lost_2xN"] + (1 - MEMORY) * lost_2xN
    # losses rise as programs shrink: how many are good enough is the place of the smallest one
    fits, roomy = jnp.maximum(0, (smooth_2xN <= LOST).sum(1) - 1)
    now = state["next"]
    after = jnp.where(now <= fits, jnp.maximum(now, roomy), fits)
    return {"lost_2xN": smooth_2xN, "program": now, "next": after.astype(jnp.int32)}
