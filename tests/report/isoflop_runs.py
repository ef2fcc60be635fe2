"""Runs of an iso-FLOP sweep that was never trained: losses are those of a law, with noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cerebra_jax.report.isoflop import Family, fitted
from cerebra_jax.report.runs import Run

SIZES = {"2x32": 3e4, "2x64": 1e5, "3x96": 3e5, "4x128": 1e6, "5x192": 3e6}
SEEDS = {"5e12": 2, "1.5e13": 2, "5e13": 2}  # budget -> how many


class Kind(NamedTuple):
    """A family: its law, what a token costs, and how long a FLOP takes."""

    E: float = 3.0
    A: float = 60.0
    alpha: float = 0.35
    B: float = 200.0
    beta: float = 0.33
    flops: float = 2.0  # forward, of a token and a parameter
    seconds: float = 1e-9  # of a FLOP

    def loss(self, N: Any, D: Any) -> Any:
        """Returns the loss at a size and tokens."""
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    def per_token(self, N: Any) -> Any:
        """Returns the FLOPs of a token, forward; embedding and head are 200,000 parameters more."""
        return self.flops * (N + 2e5)

    def result(self, budget: str, size: str, noise: float = 0.0) -> dict[str, Any]:
        """Returns what result.json says of a run whose loss is off the law by `noise`."""
        N = SIZES[size]
        tokens = round(float(budget) / (3 * self.per_token(N)))
        loss = float(self.loss(N, tokens)) + noise
        flops = 3 * self.per_token(N) * tokens
        relative = {"expected": 0.9, "hard": 0.8, "executed": 0.7}
        return {
            "params_non_embedding": int(N),
            "tokens": tokens,
            "val": {"ppl_word": math.exp(loss), "loss": loss},
            "test": {"ppl_word": math.exp(loss), "bits_per_byte": 1.5, "loss": loss + 0.02},
            "costs": {
                "relative": relative,
                "executed": 1.4e6,
                "dense": 2e6,
                "train_total": flops,
            },
            "train_s": flops * self.seconds,
        }


def family(
    name: str, kind: Kind, noise: float = 0.0, salt: int = 0, seeds: Mapping[str, int] = SEEDS
) -> Family:
    """Returns a family that no folder holds; `noise` is the standard deviation of its losses."""
    random = np.random.default_rng(salt)
    by_place: dict[tuple[float, str], list[Run]] = {}
    for budget, count in seeds.items():
        for size in SIZES:
            by_place[float(budget), size] = [
                Run(
                    Path(f"{name}@{budget},{size}-s{seed}"),
                    kind.result(budget, size, noise * random.normal()) | {"seed": seed},
                    {},
                )
                for seed in range(count)
            ]
    return fitted(name, by_place)


def write(
    make_run: Callable[..., Path], name: str, kind: Kind, noise: float = 0.0, **result: Any
) -> Path:
    """Writes the folder of one run, FAMILY@BUDGET,SIZE-sSEED."""
    family_name, _, rest = name.partition("@")
    place, _, seed = rest.rpartition("-s")
    budget, size = place.split(",")[:2]
    found = kind.result(budget, size, noise) | result
    model = "transformer" if family_name == "dense" else "cerebra"
    return make_run(name, model, int(seed), 200.0, **found)


def write_all(
    make_run: Callable[..., Path], kinds: Mapping[str, Kind], noise: float = 0.003
) -> list[Path]:
    """Writes the folders of some families, two seeds of each size at each budget."""
    random = np.random.default_rng(0)
    return [
        write(make_run, f"{name}@{budget},{size}-s{seed}", kind, noise * random.normal())
        for name, kind in kinds.items()
        for budget, count in SEEDS.items()
        for size in SIZES
        for seed in range(count)
    ]
