"""The dispatch benchmark at a tiny size: its columns count what the programs run."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from cerebra_jax.types import Cost

L = 128


class Case(NamedTuple):
    """What is measured, as the options name it."""

    mask: str
    part: str
    kept: tuple[int, ...]
    kv: tuple[str, ...]


CASES = [
    Case("causal", "block", (16, 2), ("all", "routed")),
    Case("encoder", "attention", (16,), ("all",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.mask}-{case.part}")
def test_columns_of_the_dispatch_benchmark(case, script, measure):
    found, shown = measure(
        script("dispatch"),
        [
            f"--masks={case.mask}",
            f"--parts={case.part}",
            f"--lengths={L}",
            "--kept=" + ",".join(f"L/{L // k}" for k in case.kept),
            "--kv=" + ",".join(case.kv),
            "--rounds=1",
            "--batch=2",
            "--width=32",
            "--heads=2",
            "--quick",
        ],
    )
    (group,) = found["groups"]
    rows = {row["name"]: row for row in group["rows"]}
    routed = [f"k={k}, keys={kv}" for k in case.kept for kv in case.kv]
    assert rows.keys() == {group["best"], "masked", *routed}

    # every column is what it says
    dense = rows[group["best"]]
    for name, row in rows.items():
        assert row["executed_flops"] == row["counted_flops"] > 0
        assert row["analytic"] == row["executed_flops"] / dense["executed_flops"]
        assert row["realised"] == pytest.approx(row["ratio"]["median"] / row["analytic"])
        assert row["temp_bytes"] > 0
        assert row["ms"] > 0
        assert (row["analytic"] < 1) == (name in routed)
    assert dense["analytic"] == dense["ratio"]["median"] == dense["temp_ratio"] == 1
    assert all(0 < rows[name]["share"] <= rows[name]["kept"] / L for name in routed)
    assert {"measured", "realised", "analytic", "temp"} <= set(shown.replace("[", " ").split())

    # the masked layer costs most; fewer kept tokens cost less, and fewer keys do
    assert rows["masked"]["analytic"] > 1
    trained = {name: row["analytic_train"] for name, row in rows.items()}
    assert trained["masked"] > trained["k=16, keys=all"]
    if len(routed) > 1:
        cost = {name: row["analytic"] for name, row in rows.items()}
        assert cost["k=16, keys=all"] > cost["k=2, keys=all"] > cost["k=2, keys=routed"]
        assert trained["k=16, keys=all"] > trained["k=2, keys=routed"]


def test_a_program_that_runs_other_flops_than_priced_is_not_timed(script, measure, monkeypatch):
    dispatch = script("dispatch")
    words = ["--masks=encoder", "--parts=attention", "--lengths=64", "--kept=8", "--quick"]
    wrong = Cost({"layer_00/attention": 1}, {"layer_00/attention": 1})
    monkeypatch.setattr(dispatch.layers, "cost_of", lambda *_: wrong)
    with pytest.raises(SystemExit, match="FLOPs by the price list"):
        measure(dispatch, [*words, "--batch=1", "--width=16", "--heads=2"])
