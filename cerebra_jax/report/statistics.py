"""Means, Student's t intervals and paired comparisons of a few seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy import special  # a third of the time to import that scipy.stats takes


class Paired(NamedTuple):
    """Differences a − b over the seeds that both have."""

    mean: float
    half: float  # half width of the 95 % interval
    n: int
    p: float  # two-sided, of the paired t test


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the sample standard deviation, which is NaN for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, statistics.stdev(values, mean)


def half_width(values: Sequence[float]) -> float:
    """Returns half the width of the mean's 95 % interval by Student's t; NaN for a single value."""
    n = len(values)
    if n < 2:
        return math.nan
    return t_quantile(n - 1) * mean_sd(values)[1] / math.sqrt(n)


def t_quantile(df: int) -> float:
    """Returns the t that |T| exceeds with probability 0.05, for `df` degrees of freedom."""
    return float(special.stdtrit(df, 0.975))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired | None:
    """Compares a with b, seed by seed; returns None where fewer than 2 seeds are common.

    p is that of the paired t test. Differences that are all equal have no spread: p is then 1 where
    they are 0, and 0 elsewhere.
    """
    seeds = sorted(a.keys() & b.keys())
    n = len(seeds)
    if n < 2:
        return None
    differences = [a[seed] - b[seed] for seed in seeds]
    mean, half = mean_sd(differences)[0], half_width(differences)
    return Paired(mean, half, n, p_value(mean, half, n))


def p_value(mean: float, half: float, n: int) -> float:
    """Returns the two-sided p of a mean of n values whose 95 % interval is mean ± half."""
    if half == 0.0:
        return float(mean == 0.0)
    t = abs(mean) / half * t_quantile(n - 1)
    return float(2 * special.stdtr(n - 1, -t))


def holm(ps: Sequence[float]) -> list[float]:
    """Returns the p-values adjusted for their number by Holm's procedure.

    An adjusted p-value is below α where the procedure rejects at level α
    (Holm 1979, Scand. J. Stat. 6:65). SciPy has no function for it.
    """
    adjusted = [0.0] * len(ps)
    largest = 0.0
    by_size = sorted(range(len(ps)), key=lambda i: ps[i])
    for rank, i in enumerate(by_size):
        largest = min(1.0, max(largest, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted
