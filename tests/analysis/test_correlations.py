"""Spearman's ρ is SciPy's, only order and windows count, and intervals hold what they promise."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from cerebra_jax.analysis import correlations as ranks
from cerebra_jax.analysis import routing_shares as routing


def rho(x, y, window):
    return ranks.spearman(ranks.unit_ranks(x, window), ranks.unit_ranks(y, window))


@pytest.mark.parametrize("seed", range(20))
def test_value_is_scipys_also_with_ties(seed):
    rng = np.random.RandomState(seed)
    x = rng.randint(0, 2 + seed, 60)
    y = rng.standard_normal(60).round(seed % 3)
    found = rho(x, y, np.arange(60) // 10)
    assert np.isclose(found.value, scipy_stats.spearmanr(x, y).statistic)
    assert found.low < found.value < found.high


def test_the_order_of_tokens_and_monotone_maps_change_nothing():
    rng = np.random.RandomState(0)
    x = rng.standard_normal(80)
    y = rng.standard_normal(80)
    window = np.arange(80) // 8
    one = rho(x, y, window)
    order = rng.permutation(80)
    np.testing.assert_allclose(rho(x[order], y[order], window[order]), one, atol=1e-12)
    np.testing.assert_allclose(rho(np.exp(x), y**3, 7 - window), one, atol=1e-12)
    np.testing.assert_allclose(rho(-x, y, window), [-one.value, -one.high, -one.low], atol=1e-12)


def test_what_never_changes_has_no_correlation_and_what_is_the_same_has_1():
    x = np.arange(12.0)
    window = np.arange(12) // 3
    assert np.isnan(rho(x, np.ones(12), window)).all()
    assert np.allclose(rho(x, 2 * x, window), 1)
    assert np.allclose(rho(x, -x, window), -1)
    assert np.isnan(rho(x, x[::-1], np.zeros(12))[1:]).all()  # one window: no interval


def test_intervals_cover_where_the_tokens_of_a_window_hang_together():
    rng = np.random.RandomState(3)
    held = 0
    narrow = 0
    runs = 300
    window = np.repeat(np.arange(30), 10)
    for _ in range(runs):  # both share a part within a window, and nothing with each other
        x, y = (rng.standard_normal(30)[window] + rng.standard_normal(300) for _ in range(2))
        found = rho(x, y, window)
        held += found.low <= 0 <= found.high
        narrow += abs(found.value) <= 1.96 / np.sqrt(300)  # as if the tokens were independent
    assert 0.91 <= held / runs <= 0.99
    assert narrow / runs < 0.85


def test_many_windows_form_groups_of_neighbours():
    rng = np.random.RandomState(8)
    x = rng.standard_normal((1, 600))
    y = rng.standard_normal(600)
    window = np.repeat(np.arange(300), 2)
    [found] = routing.correlations({"kept": x}, {"y": y}, window)["kept"]["y"]
    assert np.allclose(found, rho(x[0], y, window * routing.GROUPS // 300))
    [few] = routing.correlations({"kept": x[:, :60]}, {"y": y[:60]}, 7 * window[:60])["kept"]["y"]
    assert np.allclose(few, rho(x[0, :60], y[:60], window[:60]))


def test_intervals_cover_the_true_difference_of_gradients():
    rng = np.random.RandomState(4)
    held = 0
    runs = 300
    W = 25
    L = 20
    real = np.ones((W, L), bool)
    for _ in range(runs):
        kept = rng.rand(W, L) < 0.3
        norm = rng.gamma(4.0, size=(W, 1)) * (
            rng.gamma(3.0, size=(W, L)) + 1.5 * kept
        )  # means 3 and 4.5
        found = ranks.heavy_minus_light(norm, kept, real)
        true = 1.5 / (3 + 1.5 * 0.3)
        held += abs(found.mean - true) <= found.half
    assert 0.90 <= held / runs <= 0.99


def test_a_difference_is_a_ratio_and_windows_without_both_are_left_out():
    norm = np.array([[1.0, 3.0], [10.0, 30.0], [5.0, 9.0], [2.0, 6.0]])
    kept = np.array([[False, True], [False, True], [True, True], [False, True]])
    found = ranks.heavy_minus_light(norm, kept, np.ones_like(kept))
    assert np.isclose(found.mean, 1.0)
    assert found.half == 0
    assert found.n == 3
    flipped = ranks.heavy_minus_light(norm, ~kept, np.ones_like(kept))
    assert np.isclose(flipped.mean, -1.0)
    assert ranks.heavy_minus_light(norm, np.ones_like(kept), np.ones_like(kept)) is None
    real = np.array([[True, True], [True, True], [True, True], [True, False]])
    assert ranks.heavy_minus_light(norm, kept, real).n == 2


def test_what_only_the_position_explains_is_gone_at_equal_position():
    rng = np.random.RandomState(5)
    kept = rng.rand(40, 16) < np.linspace(0.9, 0.1, 16)
    norm = np.linspace(4, 1, 16) * rng.gamma(50.0, size=(40, 16))
    [row] = routing.gradients(norm[None], kept[None], np.ones((40, 16), bool))
    assert row["difference"].low > 0.3
    assert row["same_position"].low < 0 < row["same_position"].high


def test_the_verdict_says_what_the_intervals_say():
    rng = np.random.RandomState(6)
    real = np.ones((30, 20), bool)
    kept = rng.rand(4, 30, 20) < 0.4
    kept[3] = True
    norm = rng.gamma(5.0, size=(4, 30, 20))
    norm[0] += 3 * kept[0]
    norm[2] += 3 * ~kept[2]
    found = {
        "layers": [1, 2, 3, 5],
        "paths": ["attention", "filter"],
        "gradients": routing.gradients(norm, kept, real),
    }
    assert [row["windows"] for row in found["gradients"]] == [30, 30, 30, 0]
    assert routing.verdict(found).startswith(
        "gradients of tokens on the attention path against the others: larger in layer 1; "
        "smaller in layer 3; "
        "not told apart in layer 2; nothing to compare in layer 5"
    )
