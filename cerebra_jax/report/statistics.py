"""Means, Student's t intervals and paired comparisons of a few seeds, exactly and without SciPy."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple


class Paired(NamedTuple):
    """Differences a − b over the seeds that both have."""

    mean: float
    half: float  # half width of the 95 % interval
    n: int
    p: float  # two-sided, of the paired t test


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (NaN for a single value)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def half_width(values: Sequence[float]) -> float:
    """Half width of the 95 % interval of the mean by Student's t; NaN for a single value."""
    n = len(values)
    return math.nan if n < 2 else quantile(n - 1) * mean_sd(values)[1] / math.sqrt(n)


def paired(a: dict[int, float], b: dict[int, float]) -> Paired | None:
    """The differences a − b, seed by seed; None where fewer than 2 seeds are common."""
    seeds = sorted(a.keys() & b.keys())
    if len(seeds) < 2:
        return None
    apart = [a[s] - b[s] for s in seeds]
    (mean, sd), n = mean_sd(apart), len(seeds)
    if sd == 0.0:
        return Paired(mean, 0.0, n, float(mean == 0.0))
    return Paired(mean, half_width(apart), n, tail(abs(mean) / sd * math.sqrt(n), n - 1))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for their number: below α where Holm's procedure rejects (Holm 1979, Scand. J. Stat. 6:65)."""
    out, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        worst = out[i] = min(1.0, max(worst, (len(ps) - rank) * ps[i]))
    return out


def tail(t: float, df: int) -> float:
    """P(|T| > t) of Student's t with df degrees of freedom (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    theta = math.atan2(t, math.sqrt(df))
    sin, cos = math.sin(theta), math.cos(theta)
    odd = df % 2
    term, total = (cos, cos if df > 1 else 0.0) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, df - 1, 2):
        term *= cos * cos * ((k - 1) / k)
        total += term
    inside = 2 / math.pi * (theta + sin * total) if odd else sin * total
    return max(0.0, 1.0 - inside)


@functools.cache
def quantile(df: int) -> float:
    """The t of which P(|T| > t) = 0.05."""
    low, high = 0.0, 16.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, df) > 0.05 else (low, middle)
    return high
