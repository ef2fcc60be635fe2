"""Folders of an iso-FLOP sweep that was never trained: losses are those of a law, with noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

SIZES = {"2x32": 3e4, "2x64": 1e5, "3x96": 3e5, "4x128": 1e6, "5x192": 3e6}


class Kind(NamedTuple):
    """A family: its law, how many FLOPs a parameter and token costs, and what is special of it."""

    E: float = 3.0
    A: float = 60.0
    alpha: float = 0.35
    B: float = 200.0
    beta: float = 0.33
    flops: float = 2.0
    seconds_per_flop: float = 1e-9

    def loss(self, N, D):
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    def flops_per_token(self, N: float) -> float:
        """Returns what the embedding and head of a small model add to, forward."""
        return self.flops * (N + 2e5)


class Sweep(NamedTuple):
    """Which runs there are: families by name, budgets with their seeds, sizes, spread of losses."""

    families: dict[str, Kind]
    seeds: dict[str, int] = {"5e12": 2, "1.5e13": 2, "5e13": 2}
    sizes: Sequence[str] = tuple(SIZES)
    noise: float = 0.003


def write(make_run: Callable[..., Path], sweep: Sweep, salt: int = 0) -> list[Path]:
    """Writes the folders of a sweep, and returns them."""
    folders = []
    random = np.random.default_rng(salt)
    for family, kind in sweep.families.items():
        for budget, seeds in sweep.seeds.items():
            for size in sweep.sizes:
                for seed in range(seeds):
                    loss = kind.loss(SIZES[size], _tokens(kind, size, budget))
                    loss += sweep.noise * random.normal()
                    name = f"{family}@{budget},{size}-s{seed}"
                    folders.append(one(make_run, name, kind, float(loss), seed))
    return folders


def one(make_run: Callable[..., Path], name: str, kind: Kind, loss: float, seed: int = 0) -> Path:
    """Writes one folder, by its name."""
    family, _, rest = name.partition("@")
    budget, size = rest.partition("-s")[0].split(",")[:2]
    tokens = round(_tokens(kind, size, budget))
    flops = 3 * kind.flops_per_token(SIZES[size]) * tokens
    model = "transformer" if family == "dense" else "cerebra"
    relative = {"expected": 0.9, "hard": 0.8, "executed": 0.7}
    costs = {"relative": relative, "executed": 1.4e6, "dense": 2e6, "train_total": flops}
    return make_run(
        name,
        model,
        seed,
        math.exp(loss),
        params_non_embedding=int(SIZES[size]),
        tokens=tokens,
        val={"ppl_word": math.exp(loss), "loss": loss},
        test={"ppl_word": math.exp(loss), "bits_per_byte": 1.5, "loss": loss + 0.02},
        costs=costs,
        train_s=flops * kind.seconds_per_flop,
    )


def _tokens(kind: Kind, size: str, budget: str) -> float:
    return float(budget) / (3 * kind.flops_per_token(SIZES[size]))
