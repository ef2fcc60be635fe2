"""The fit of L(N, D): it finds what it was made of, and its intervals hold it as often as said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from cerebra_jax.report import isoflop_fit
from cerebra_jax.report.isoflop_fit import CONSTANTS, Points

TRUTH = {"E": 3.0, "A": 60.0, "B": 200.0, "alpha": 0.35, "beta": 0.33}
TRUTHS = (
    TRUTH,
    {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28},  # those of Hoffmann et al.
    {"E": 2.5, "A": 20.0, "B": 900.0, "alpha": 0.25, "beta": 0.45},
)


def points(truth: dict[str, float], noise: float, salt: int = 0, seeds: int = 3) -> Points:
    """Returns four budgets with five sizes each; `noise` is that of a seed."""
    places = [(n, c / (6 * (n + 2e5))) for c in BUDGETS for n in np.geomspace(3e4, 3e6, 5)]
    N_P, D_P = np.array(places).T
    loss_P = truth["E"] + truth["A"] / N_P ** truth["alpha"] + truth["B"] / D_P ** truth["beta"]
    spread = noise / np.sqrt(seeds) * np.random.default_rng(salt).normal(size=len(N_P))
    return Points(N_P, D_P, loss_P + spread, np.full(len(N_P), seeds))


BUDGETS = (5e12, 1.5e13, 5e13, 1.5e14)


@pytest.mark.parametrize("truth", TRUTHS)
def test_it_recovers_what_noisy_losses_were_made_of_within_five_per_cent(truth):
    found = isoflop_fit.fit(points(truth, 0.002), draws=2)
    for name, value in found.law.constants.items():
        assert value[0] == pytest.approx(truth[name], rel=0.05), name
    assert not isoflop_fit.doubt(found)


@pytest.mark.parametrize("truth", TRUTHS)
def test_without_noise_it_is_exact(truth):
    found = isoflop_fit.fit(points(truth, 0.0), draws=2)
    for name, value in found.law.constants.items():
        assert value[0] == pytest.approx(truth[name], rel=1e-4), name
    assert found.noise < 1e-6


def test_intervals_hold_the_truth_in_95_of_100_draws():
    """200 draws: each of the five intervals is at 95 % within 3 points, so that none is for show.

    By chance alone a rate of 95 % would be off by 1.5 points.
    """
    held = dict.fromkeys(TRUTH, 0)
    for salt in range(200):
        found = isoflop_fit.fit(points(TRUTH, 0.01, salt), draws=200, seed=salt)
        for name, draws_S in found.draws.constants.items():
            low, high = isoflop_fit.interval(draws_S)
            held[name] += low <= TRUTH[name] <= high
    assert all(184 <= count <= 196 for count in held.values()), held


def test_intervals_cover_where_degrees_of_freedom_are_few():
    """Nine cells leave four: a plain bootstrap would cover 70 to 80 of 100 here."""
    held = dict.fromkeys(TRUTH, 0)
    inside = np.arange(20) % 5 < 3  # three sizes
    for salt in range(150):
        few = Points(*(values[inside][:9] for values in points(TRUTH, 0.01, salt)))
        found = isoflop_fit.fit(few, draws=200, seed=salt)
        for name, draws_S in found.draws.constants.items():
            low, high = isoflop_fit.interval(draws_S)
            held[name] += low <= TRUTH[name] <= high
    assert all(count >= 0.9 * 150 for count in held.values()), held


def test_resampled_fits_are_what_scipy_finds_for_the_same_losses():
    given_points = points(TRUTH, 0.01)
    problem = isoflop_fit._problem(given_points)
    start_1x2 = np.log([[TRUTH["alpha"], TRUTH["beta"]]])
    random = np.random.default_rng(0)
    y_SxP = problem.root_P * (given_points.loss_P + 0.02 * random.normal(size=(8, 20)))
    mine_Sx2 = isoflop_fit._improved(problem, y_SxP, np.repeat(start_1x2, 8, axis=0))
    for mine_2, y_P in zip(mine_Sx2, y_SxP, strict=True):
        assert mine_2 == pytest.approx(isoflop_fit._solve(problem, y_P[None])[0], abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31))
def test_the_linear_part_is_non_negative_least_squares(salt):
    random = np.random.default_rng(salt)
    columns_SxPx3 = np.abs(random.normal(size=(4, 7, 3)))
    y_SxP = random.normal(size=(4, 7)) + random.normal()
    found_Sx3 = isoflop_fit.project(columns_SxPx3, y_SxP)
    for columns, y, found in zip(columns_SxPx3, y_SxP, found_Sx3, strict=True):
        assert found == pytest.approx(optimize.nnls(columns, y)[0], abs=1e-8)


def test_no_exponents_of_a_fine_grid_fit_better_whatever_the_losses():
    random = np.random.default_rng(0)
    fine_Gx2 = np.log(
        [[a, b] for a in np.geomspace(0.02, 3, 40) for b in np.geomspace(0.02, 3, 40)]
    )
    for _ in range(12):
        losses = random.uniform(3, 8, 20) + random.choice([0, 5], 20)
        problem = isoflop_fit._problem(points(TRUTH, 0.0, seeds=1))
        found_1x2 = isoflop_fit._solve(problem, losses[None])
        best = (isoflop_fit._residual(problem, found_1x2, losses[None]) ** 2).sum()
        y_GxP = np.repeat(losses[None], len(fine_Gx2), axis=0)
        squares_G = (isoflop_fit._residual(problem, fine_Gx2, y_GxP) ** 2).sum(axis=1)
        assert best <= squares_G.min() * (1 + 1e-6)


def test_a_cell_counts_as_often_as_it_has_seeds():
    """The fit of means with weights is that of all runs, each by itself."""
    means = points(TRUTH, 0.02, seeds=1)
    seeds_P = 1 + np.arange(20) % 3
    apart = Points(*(np.repeat(values, seeds_P) for values in means[:3]), np.ones(seeds_P.sum()))
    a = isoflop_fit.fit(means._replace(seeds_P=seeds_P), draws=2).law.constants
    b = isoflop_fit.fit(apart, draws=2).law.constants
    for name in CONSTANTS:
        assert a[name] == pytest.approx(b[name], rel=1e-4)


def test_the_noise_of_a_run_and_leverage_are_those_of_least_squares():
    """The noise by its degrees of freedom; a leverage by what the fit does when a cell moves."""
    noises = [isoflop_fit.fit(points(TRUTH, 0.01, s, seeds=1), draws=2).noise for s in range(40)]
    assert np.sqrt(np.mean(np.square(noises))) == pytest.approx(0.01, rel=0.1)
    few = Points(*(values[:9] for values in points(TRUTH, 0.002)))
    found = isoflop_fit.fit(few, draws=2)
    assert found.leverage_P.sum() == pytest.approx(5)
    for place in range(9):
        moved = few._replace(loss_P=few.loss_P + 1e-4 * (np.arange(9) == place))
        law = isoflop_fit.fit(moved, draws=2).law
        answer = law.loss(few.N_P, few.D_P) - found.law.loss(few.N_P, few.D_P)
        assert answer[0, place] / 1e-4 == pytest.approx(found.leverage_P[place], abs=0.02)


def test_p_is_below_five_per_cent_where_the_interval_excludes_the_null():
    draws_S = np.random.default_rng(0).normal(size=2000)
    low, high = isoflop_fit.interval(draws_S)
    for null in (low - 0.05, low + 0.05, 0.0, high - 0.05, high + 0.05):
        assert (isoflop_fit.p_value(draws_S, null) < 0.05) == (not low <= null <= high)
    assert isoflop_fit.p_value(draws_S, 99.0) == pytest.approx(2 / 2001)


def test_units_of_size_and_tokens_change_nothing_but_a_and_b():
    plain = points(TRUTH, 0.01)
    other = plain._replace(N_P=plain.N_P / 1e6, D_P=plain.D_P * 100)
    a = isoflop_fit.fit(plain, draws=2).law.constants
    b = isoflop_fit.fit(other, draws=2).law.constants
    for name in ("E", "alpha", "beta"):
        assert b[name] == pytest.approx(a[name], rel=1e-5)
    assert b["A"] == pytest.approx(a["A"] * 1e-6 ** a["alpha"], rel=1e-4)
    assert b["B"] == pytest.approx(a["B"] * 100 ** a["beta"], rel=1e-4)


def test_tokens_are_the_inverse_of_loss_and_infinite_below_it():
    law = isoflop_fit.fit(points(TRUTH, 0.01), draws=6).draws
    N_K = np.geomspace(1e4, 1e7, 5)
    D_SxK = np.geomspace(1e6, 1e9, 5) * np.ones((6, 1))
    loss_SxK = law.loss(N_K, D_SxK)
    for k in range(5):
        assert law.tokens(N_K, loss_SxK[:, k])[:, k] == pytest.approx(D_SxK[:, k])
    assert np.isinf(law.tokens(N_K, law.E_S - 0.01)).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: Points(*(v[:5] for v in p)), "tokens: 5, and at least 6"),
        (lambda p: p._replace(N_P=np.where(p.N_P < 1e5, 3e4, 3e5)), "sizes: 2"),
        (lambda p: p._replace(D_P=np.where(p.D_P < 1e7, 1e6, 1e8)), "numbers of tokens: 2"),
    ],
)
def test_too_few_runs_have_no_fit_and_say_why(change, said):
    assert not isoflop_fit.why_not(points(TRUTH, 0.01))
    assert said in isoflop_fit.why_not(change(points(TRUTH, 0.01)))


@pytest.mark.parametrize("name", ["A", "B"])
def test_a_law_that_the_losses_do_not_follow_is_doubted(name):
    for noise in (0.0, 0.01, 0.1):
        flat = points(TRUTH | {name: 0.0}, noise)
        assert isoflop_fit.doubt(isoflop_fit.fit(flat)), noise
    rising = flat._replace(loss_P=6.0 + 0.1 * np.log(flat.N_P if name == "A" else flat.D_P))
    assert isoflop_fit.doubt(isoflop_fit.fit(rising, draws=2))


def test_an_exponent_at_the_bound_of_its_search_is_doubted():
    steep = points(TRUTH | {"A": 60.0 * 3e4**5, "alpha": 5.35}, 0.0)
    assert "alpha is at the bound" in isoflop_fit.doubt(isoflop_fit.fit(steep, draws=2))
