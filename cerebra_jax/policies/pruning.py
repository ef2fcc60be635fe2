"""Gradual structured pruning by what a unit's removal costs and saves: s_j = ΔL_j / ΔFLOPs_j. Cerebra 3.5.

ΔL_j = |dL/dm_j| is collected by the training step (`follow`); in a few rounds the host removes the units of least s_j
until the program they leave would cost the round's share (`choose`). The shares fall cubically (Zhu & Gupta 2017,
arXiv:1710.01878). What is gone stays gone. Masks live in the train state; they change no shape and compile nothing.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.checks import need
from cerebra_jax.config import PruneCfg, to_steps

MEMORY = 0.95  # of the running mean of |dL/dm|, per step
Vectors = dict[str, np.ndarray]  # {group: (n,)}


class Plan(NamedTuple):
    """Steps at which a round stands, and how far each is on its way: t in (0, 1], 1 in the last."""

    steps: tuple[int, ...]
    done: tuple[float, ...]

    def of(self, at: int) -> float:
        """The way that the round at a step has gone: 1 − (1 − t)³."""
        return 1.0 - (1.0 - self.done[self.steps.index(at)]) ** 3


def plan(c: PruneCfg, total: int, per_epoch: int) -> Plan:
    """`rounds` of them from `start` to `end`, both included; none where nothing is pruned."""
    if not c.on:
        return Plan((), ())
    start, end = (to_steps(text, total, per_epoch) for text in (c.start, c.end))
    looks = c.score in ("sensitivity", "taylor")
    need(start > 0 or not looks, f"prune.start is step {start} with prune.score={c.score}",
         "no gradient was seen yet: start later, or use prune.score=magnitude")  # fmt: skip
    need(
        start <= end < total,
        f"pruning from step {start} to {end} of {total}",
        "use prune.start <= prune.end < 1 frac",
    )
    need(
        c.rounds <= end - start + 1,
        f"{c.rounds} rounds between steps {start} and {end}",
        "use fewer prune.rounds",
    )
    ways = np.linspace(start, end, c.rounds) if c.rounds > 1 else np.array([end])
    return Plan(
        tuple(int(step) for step in ways), tuple((i + 1) / c.rounds for i in range(c.rounds))
    )


def follow(
    taylor: dict[str, jax.Array], slopes: dict[str, jax.Array], step
) -> dict[str, jax.Array]:
    """The running mean of |dL/dm|: an average over the first steps, then an EMA of MEMORY."""
    step = jnp.asarray(step, jnp.float32)
    keep = jnp.minimum(MEMORY, step / (step + 1))
    return {name: keep * taylor[name] + (1 - keep) * jnp.abs(slopes[name]) for name in taylor}


def choose(worth: Vectors, alive: Vectors, flops: dict[str, float], tile: dict[str, int],
           price: Callable[[dict[str, int]], float], target: float, each: bool = True) -> Vectors:  # fmt: skip
    """The masks after a round: units go in the order of their worth, per FLOP where `each`, until price(units left) is
    at most the target.

    `tile` units of a group go together, the least worthy first, so that what is left is a multiple of it; at least one
    (or that many) stays. `flops` is what one unit of a group costs now. The target is missed by less than a tile.
    """
    queue = []
    for name, w in worth.items():
        order = [j for j in np.argsort(w, kind="stable") if alive[name][j] > 0]
        while len(order) > tile[name]:
            gone, order = np.split(order, [len(order) % tile[name] or tile[name]])
            order = list(order)
            queue.append((w[gone].mean() / (flops[name] if each else 1.0), len(queue), name, gone))
    queue.sort(key=lambda item: item[:2])
    now = {name: int(mask.sum()) for name, mask in alive.items()}

    def left(count: int) -> dict[str, int]:
        n = dict(now)
        for _, _, name, gone in queue[:count]:
            n[name] -= len(gone)
        return n

    count = bisect.bisect_left(range(len(queue) + 1), True, key=lambda n: price(left(n)) <= target)
    masks = {name: mask.copy() for name, mask in alive.items()}
    for _, _, name, gone in queue[:count]:
        masks[name][gone] = 0.0
    return masks


def least(worth: np.ndarray, alive: np.ndarray, share: float) -> np.ndarray:
    """The mask without the `share` of all entries that are worth least; those gone before stay gone."""
    flat = np.where(alive > 0, worth, -np.inf).ravel()
    mask = np.ones(flat.size, np.float32)
    mask[np.argsort(flat, kind="stable")[: round(share * flat.size)]] = 0.0
    return np.minimum(mask, alive.ravel()).reshape(alive.shape)
