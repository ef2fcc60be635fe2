"""The front and its hypervolume against brute force, and what is said of runs."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebra_jax.report import pareto, plots, runs

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)


def dominates(a, b) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points):
    expected = {i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)}
    found = pareto.front(points)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert [points[i] for i in found] == sorted(points[i] for i in found)


@given(POINTS, st.tuples(st.integers(0, 10), st.integers(0, 10)))
def test_hypervolume_counts_the_unit_squares_that_are_dominated(points, reference):
    squares = sum(
        any(c <= x and q <= y for c, q in points)
        for x in range(reference[0])
        for y in range(reference[1])
    )
    assert pareto.hypervolume(points, reference) == squares


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=9))
def test_a_dominated_fraction_is_between_0_and_1_and_grows_with_points(points):
    box = pareto.box(points)
    shares = [pareto.dominated_fraction(points[: i + 1], box) for i in range(len(points))]
    assert all(0 <= s <= 1 + 1e-9 for s in shares)
    assert all(a <= b + 1e-9 for a, b in zip(shares, shares[1:], strict=False))


def at(cost: float) -> dict:
    relative = {"expected": 0.9, "hard": 0.8, "executed": 0.7}
    return {"costs": {"relative": relative, "executed": cost, "dense": 2e6, "train_total": 6e9}}


@pytest.fixture
def grid(make_run):
    """Dense at (4, 100), and CHIAR of three rates, the middle one dominated; seed s adds s."""
    keys = {0.1: (1e6, 130.0), 0.2: (2e6, 140.0), 0.3: (3e6, 110.0)}
    made = [make_run(f"d{s}", "transformer", s, 100.0 + s, **at(4e6)) for s in range(2)]
    made += [
        make_run(f"c{r}{s}", "chiar", s, q + s, {"net.route.rate": r}, **at(c))
        for r, (c, q) in keys.items()
        for s in range(2)
    ]
    return runs.load(made)


def test_the_front_of_runs_is_named_and_its_volume_has_a_spread(grid):
    front, volume = pareto.lines(grid)
    assert front.endswith(": chiar, rate=0.1; chiar, rate=0.3; transformer.")
    assert "rate=0.2" not in front
    assert "from 1 to 4.3 MFLOP/token and 100.0 to 145.1" in volume
    assert volume.count("(2 seeds)") == 3
    found = pareto.volumes(grid)
    assert found["all"][0] > found["chiar"][0] > found["transformer"][0] > 0
    assert found["all"][1] > 0
    box = pareto.frame(grid)
    seed0 = [p for rs in grid.values() for r in rs if r.seed == 0 and (p := pareto.point(r))]
    seed1 = [(c, q + 1) for c, q in seed0]
    assert found["all"][0] == pytest.approx(
        (pareto.dominated_fraction(seed0, box) + pareto.dominated_fraction(seed1, box)) / 2
    )


def test_more_is_better_where_the_metric_says_so(make_run):
    metric = [{"key": "acc", "name": "accuracy", "digits": 2, "lower": False, "table": True}]
    points = ((0.1, 0.5, 1e6), (0.2, 0.4, 2e6), (0.3, 0.9, 3e6))  # rate, accuracy, FLOPs
    made = [
        make_run(
            f"r{r}",
            "chiar",
            0,
            0.0,
            {"net.route.rate": r},
            metrics=metric,
            val={"acc": a},
            test={"acc": a},
            **at(c),
        )
        for r, a, c in points
    ]
    front, volume = pareto.lines(runs.load(made))
    assert front.endswith("test accuracy): chiar, rate=0.1; chiar, rate=0.3.")
    assert "0.90 to 0.35" in volume
    assert math.isnan(pareto.volumes(runs.load(made))["chiar"][1])


def test_many_groups_are_drawn_with_a_short_legend(make_run, tmp_path):
    made = [
        make_run(f"r{i}", "chiar", 0, 100.0 - i, {"net.route.rate": i / 100}, **at(1e6 + i))
        for i in range(12)
    ]
    plots.front(runs.load(made), tmp_path / "f.svg")
    plots.curves(runs.load(made), tmp_path / "c.svg")
    text = (tmp_path / "f.svg").read_text()
    assert (
        text.count(">chiar<") == 1 and text.count(">chiar, rate=") == 12
    )  # all are on the front, which is labelled
    assert (tmp_path / "c.svg").read_text().count(">chiar<") == 1


def test_where_phases_begin_is_marked_once_a_group(make_run, tmp_path):
    made = [make_run(f"r{seed}", "chiar", seed, 100.0, {}, **at(1e6)) for seed in (0, 1)]
    for path in made:
        lines = [
            {
                "step": i,
                "split": "train",
                "loss": 8 - i / 20,
                "executed_rel_flops": 1.0,
                "phase": phase,
            }
            for i, phase in enumerate(20 * ["warm"] + 20 * ["prune"] + 20 * ["qat"])
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plots.curves(runs.load(made), tmp_path / "c.svg")
    text = (tmp_path / "c.svg").read_text()
    assert text.count(">prune<") == text.count(">qat<") == 1
    assert ">warm<" not in text
