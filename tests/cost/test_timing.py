"""Arithmetic of the benchmark runner: what a ratio and its spread are made of."""

from __future__ import annotations

import statistics
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebra_jax.cost import timing
from cerebra_jax.cost.timing import Cell, Worker, compare, palindrome, quartiles

seconds = st.floats(1e-3, 1e3)


def test_a_ratio_is_paired_by_round():
    # the load grows tenfold a round, the ratio stays
    a = [Cell(2.0, 8.0), Cell(20.0, 8.0), Cell(200.0, 8.0)]
    b = [Cell(1.0, 2.0), Cell(10.0, 2.0), Cell(100.0, 2.0)]
    assert compare(a, b) == (2.0, 2.0, 2.0, 2.0, 4.0, False)


def test_spread_marks_noisy():
    b = [Cell(1.0, 1.0)] * 5
    steady = compare([Cell(1 + 0.02 * i, 1.0) for i in range(5)], b)
    loose = compare([Cell(1 + 0.2 * i, 1.0) for i in range(5)], b)
    assert (steady.noisy, loose.noisy) == (False, True)
    assert (loose.q1, loose.median, loose.q3) == pytest.approx((1.2, 1.4, 1.6))
    assert loose.minima == 1.0


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=12))
def test_a_against_b_is_the_inverse_of_b_against_a(pairs):
    a, b = ([Cell(x, x) for x in column] for column in zip(*pairs, strict=True))
    assert compare(a, a)[:5] == (1.0,) * 5
    if len(pairs) % 2:  # the median of an odd number of rounds is one of them
        assert compare(a, b).median == pytest.approx(1 / compare(b, a).median)
    assert compare(a, b).minima == pytest.approx(1 / compare(b, a).minima)


@given(st.lists(seconds, min_size=1, max_size=12))
def test_quartiles_are_ordered_around_the_median(values):
    q1, median, q3 = quartiles(values)
    assert min(values) <= q1 <= median <= q3 <= max(values)
    assert median == pytest.approx(statistics.median(values))


@given(st.integers(1, 5), st.integers(1, 6))
def test_a_steady_drift_cancels_in_every_round(variants, rounds):
    names = [f"v{i}" for i in range(variants)]
    for order in palindrome(names, rounds):
        assert sorted(order) == sorted(2 * names)
        turns = [[turn for turn, n in enumerate(order) if n == name] for name in names]
        assert len(set(map(statistics.mean, turns))) == 1
    firsts = {order[0] for order in palindrome(names, rounds)}
    assert len(firsts) == min(2, rounds, variants)


WORKER = """
import sys, time
from cerebra_jax.cost import timing
def build():
    if len(sys.argv) > 1:
        raise timing.Unavailable("no such thing; install it")
    print("chatter")  # must not end in the protocol
    return timing.Variant(lambda n: time.sleep(0.01 * n), lambda: 5.0, {"loss": 1.5})
timing.serve(build)
"""


def _worker(clean_env, *args: str) -> Worker:
    return Worker([sys.executable, "-c", WORKER, *args], env=clean_env)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_workers_answer_and_end(clean_env):
    workers = {name: _worker(clean_env) for name in "ab"}
    with timing.closing(workers):
        cells, rates = timing.measure(workers, 2)
        assert workers["a"].info["loss"] == 1.5 and workers["a"].peak_bytes() > -(1 << 24)
    assert [len(cells["a"]), len(rates["b"])] == [2, 2] and rates["a"] == [5.0, 5.0]
    assert all(cell.wall >= 0.01 and cell.cpu < cell.wall for cell in cells["a"])
    assert workers["b"]._process.returncode == 0


def test_a_variant_that_cannot_run_says_why(clean_env):
    with pytest.raises(timing.Unavailable, match="install it"):
        _worker(clean_env, "missing")
