"""Gradual structured pruning by what a unit's removal costs and saves: s_j = ΔL_j / ΔFLOPs_j.
Cerebra 3.5.

ΔL_j = |dL/dm_j| is collected by the training step (`follow`); in a few rounds the host removes the
units of least s_j until the program they leave would cost the round's share (`choose`). The shares
fall cubically (Zhu & Gupta 2017, arXiv:1710.01878). What is gone stays gone. Masks live in the
train state; they change no shape and compile nothing.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.checks import require
from cerebra_jax.config import PruneCfg
from cerebra_jax.policies.schedule import Length

MEMORY = 0.95  # of the running mean of |dL/dm|, per step
Vectors = dict[str, np.ndarray]  # {group: (n,)}


class Plan(NamedTuple):
    """Steps at which a round stands, and how far each is on its way: t in (0, 1], 1 in the last."""

    steps: tuple[int, ...] = ()
    done: tuple[float, ...] = ()

    def progress(self, step: int) -> float:
        """Returns how much of the pruning is done after the round at a step: 1 − (1 − t)³."""
        return 1.0 - (1.0 - self.done[self.steps.index(step)]) ** 3

    @property
    def ends(self) -> tuple[int, ...]:
        """The steps of the first and of the last round; empty where nothing is pruned."""
        return self.steps[:1] + self.steps[-1:]


def plan(cfg: PruneCfg, length: Length) -> Plan:
    """Returns the rounds, from `start` to `end`, both included; none without pruning."""
    if not cfg.on:
        return Plan()
    start, end = length.steps(cfg.start), length.steps(cfg.end)
    needs_slopes = cfg.score in ("sensitivity", "taylor")
    require(
        start > 0 or not needs_slopes,
        f"prune.start is step {start} with prune.score={cfg.score}",
        "no gradient was seen yet: start later, or use prune.score=magnitude",
    )
    require(
        start <= end < length.total,
        f"pruning from step {start} to {end} of {length.total}",
        "use prune.start <= prune.end < 1 frac",
    )
    require(
        cfg.rounds <= end - start + 1,
        f"{cfg.rounds} rounds between steps {start} and {end}",
        "use fewer prune.rounds",
    )
    steps = np.linspace(start, end, cfg.rounds) if cfg.rounds > 1 else np.array([end])
    done = tuple((i + 1) / cfg.rounds for i in range(cfg.rounds))
    return Plan(tuple(int(step) for step in steps), done)


def follow(
    mean: dict[str, jax.Array], slopes: dict[str, jax.Array], step: Any
) -> dict[str, jax.Array]:
    """Returns the running mean of abs(dL/dm): an average over the first steps, then an EMA."""
    step = jnp.asarray(step, jnp.float32)
    memory = jnp.minimum(MEMORY, step / (step + 1))
    return {name: memory * mean[name] + (1 - memory) * jnp.abs(slopes[name]) for name in mean}


class Candidates(NamedTuple):
    """The units of a group that a round chooses from."""

    worth: np.ndarray  # (n,)
    alive: np.ndarray  # (n,) 1 or 0
    flops: float  # what the removal of one unit saves; 1 where worth alone decides
    tile: int  # units that go together


def choose(
    groups: dict[str, Candidates], price: Callable[[dict[str, int]], float], target: float
) -> Vectors:
    """Returns the masks after a round.

    Units go in the order of their worth per FLOP until price(units left of each group) is at most
    the target. `tile` units of a group go together, the least worthy first, so that what is left is
    a multiple of it; at least one (or that many) stays. The target is missed by less than a tile.
    """
    # what may go, in tiles, the least worth per FLOP first
    queue = []
    for name, group in groups.items():
        for gone in _tiles(group):
            queue.append((group.worth[gone].mean() / group.flops, len(queue), name, gone))
    queue.sort(key=lambda item: item[:2])
    now = {name: int(group.alive.sum()) for name, group in groups.items()}

    def left(count: int) -> dict[str, int]:
        n = dict(now)
        for _, _, name, gone in queue[:count]:
            n[name] -= len(gone)
        return n

    # the fewest tiles whose removal reaches the target: the price falls with each
    def reached(count: int) -> bool:
        return price(left(count)) <= target

    count = bisect.bisect_left(range(len(queue) + 1), True, key=reached)
    masks = {name: group.alive.copy() for name, group in groups.items()}
    for _, _, name, gone in queue[:count]:
        masks[name][gone] = 0.0
    return masks


def _tiles(group: Candidates) -> list[np.ndarray]:
    """Returns the units of a group that may go, in tiles, the least worthy first."""
    order = np.argsort(group.worth, kind="stable")
    order = order[group.alive[order] > 0]
    tiles = []
    while len(order) > group.tile:
        size = len(order) % group.tile or group.tile
        tiles.append(order[:size])
        order = order[size:]
    return tiles


def least(worth: np.ndarray, alive: np.ndarray, fraction: float) -> np.ndarray:
    """Returns the mask without the `fraction` of all entries that are worth least.

    Those that are gone stay gone.
    """
    flat = np.where(alive > 0, worth, -np.inf).ravel()
    mask = np.ones(flat.size, np.float32)
    mask[np.argsort(flat, kind="stable")[: round(fraction * flat.size)]] = 0.0
    return np.minimum(mask, alive.ravel()).reshape(alive.shape)
