"""Student's t, paired intervals and Holm's procedure against tables and their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebra_jax.report import statistics as stats

# two-sided 5 % points of Student's t, as tables print them
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 29: 2.045, 100: 1.984}


def tail(t: float, df: int) -> float:
    """P(|T| > t), by Simpson's rule on the density."""
    x = np.linspace(0, t, 20_001)
    scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    density = np.exp(scale - (df + 1) / 2 * np.log1p(x**2 / df))
    weight = np.full(len(x), 2.0)
    weight[1::2] = 4
    weight[[0, -1]] = 1
    return 1 - 2 * float(weight @ density) * (x[1] - x[0]) / 3


def test_mean_and_sd_are_those_of_the_definition():
    values = [0.1, 0.2, 0.6, 1e8]
    mean, sd = stats.mean_sd(values)
    assert mean == pytest.approx(sum(values) / 4, rel=1e-14)
    assert sd == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 3), rel=1e-14)
    assert stats.mean_sd([2.5])[0] == 2.5
    assert math.isnan(stats.mean_sd([2.5])[1])
    assert math.isnan(stats.half_width([2.5]))


def test_the_quantile_is_that_of_the_tables():
    for df, t in TABLE.items():
        assert stats.t_quantile(df) == pytest.approx(t, abs=5e-4)
        assert tail(stats.t_quantile(df), df) == pytest.approx(0.05, abs=1e-9)
    # closed forms of one and two degrees of freedom
    assert stats.t_quantile(1) == pytest.approx(math.tan(0.475 * math.pi))
    assert stats.t_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)))


def test_paired_interval_and_p_are_those_of_the_paired_t_test():
    rng = np.random.RandomState(0)
    for n in (2, 3, 7, 11, 30):
        a = rng.standard_normal(n)
        b = rng.standard_normal(n)
        found = stats.paired(dict(enumerate(a)), dict(enumerate(b)) | {99: 1.0})
        error = (a - b).std(ddof=1) / math.sqrt(n)
        assert found.n == n
        assert found.mean == pytest.approx((a - b).mean())
        assert found.half == pytest.approx(stats.t_quantile(n - 1) * error)
        assert found.p == pytest.approx(tail(abs(found.mean) / error, n - 1), abs=1e-9)


def test_differences_without_spread_and_seeds_that_are_not_common():
    assert stats.paired({0: 1.0}, {0: 2.0}) is None
    assert stats.paired({0: 1.0, 1: 1.0}, {0: 2.0, 2: 1.0}) is None
    assert stats.paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}) == (1.0, 0.0, 2, 0.0)
    assert stats.paired({0: 2.0, 1: 3.0}, {0: 2.0, 1: 3.0}) == (0.0, 0.0, 2, 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(1e-3, 0.999))
def test_holm_rejects_step_by_step(ps, alpha):
    """The definition: reject the smallest p while it is at most α / (number not yet rejected)."""
    rejected = set()
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if ps[i] * (len(ps) - rank) > alpha:
            break
        rejected.add(i)
    adjusted = stats.holm(ps)
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(p <= q <= 1 for p, q in zip(ps, adjusted, strict=True))
