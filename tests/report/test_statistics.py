"""Student's t, paired intervals and Holm's procedure against SciPy and against their definitions."""

from __future__ import annotations

import numpy as np
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cerebra_jax.report import statistics as stats


def test_student_t_is_scipys():
    for df in (*range(1, 30), 99, 100):
        np.testing.assert_allclose(stats.quantile(df), scipy.stats.t.ppf(0.975, df), rtol=1e-9)
        for t in (0.0, 1e-3, 0.5, 1.0, 2.0, 4.3, 12.7, 60.0):
            np.testing.assert_allclose(
                stats.tail(t, df), 2 * scipy.stats.t.sf(t, df), rtol=1e-6, atol=1e-14
            )


def test_paired_interval_and_p_are_those_of_the_paired_t_test():
    rng = np.random.RandomState(0)
    for n in (2, 3, 7, 11, 30):
        a, b = rng.standard_normal(n), rng.standard_normal(n)
        found = stats.paired(dict(enumerate(a)), dict(enumerate(b)) | {99: 1.0})
        low, high = scipy.stats.t.interval(0.95, n - 1, (a - b).mean(), scipy.stats.sem(a - b))
        np.testing.assert_allclose(
            [found.mean - found.half, found.mean + found.half], [low, high], rtol=1e-9
        )
        np.testing.assert_allclose(found.p, scipy.stats.ttest_rel(a, b).pvalue, rtol=1e-9)
        assert found.n == n
    assert stats.paired({0: 1.0}, {0: 2.0}) is None
    assert stats.paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}) == (1.0, 0.0, 2, 0.0)
    assert stats.paired({0: 2.0, 1: 3.0}, {0: 2.0, 1: 3.0}) == (0.0, 0.0, 2, 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(1e-3, 0.999))
def test_holm_rejects_step_by_step(ps, alpha):
    """The definition: reject the smallest p while it is at most α / (number not yet rejected)."""
    rejected, order = set(), sorted(range(len(ps)), key=lambda i: ps[i])
    for rank, i in enumerate(order):
        if ps[i] * (len(ps) - rank) > alpha:
            break
        rejected.add(i)
    adjusted = stats.holm(ps)
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(p <= q <= 1 for p, q in zip(ps, adjusted, strict=True))
