"""The dispatch benchmark at a tiny size: its columns count what the programs run."""

from __future__ import annotations

import json
import sys

import pytest


@pytest.fixture
def dispatch(script, monkeypatch):
    module = script("dispatch")
    rates = module.machine_rates.Rates(matmul=1e11, copy=1e10)
    monkeypatch.setattr(module.machine_rates, "machine_rates", lambda: rates)
    return module


@pytest.mark.parametrize(("mask", "part"), [("causal", "block"), ("encoder", "attention")])
def test_columns_of_the_dispatch_benchmark(mask, part, dispatch, monkeypatch, tmp_path, capsys):
    out = tmp_path / "found.json"
    words = [
        f"--masks={mask}",
        f"--parts={part}",
        "--lengths=128",
        "--kept=L/8,L/64",
        "--kv=all,routed",
        "--rounds=1",
        "--batch=2",
        "--width=32",
        "--heads=2",
        "--quick",
        f"--out={out}",
    ]
    monkeypatch.setattr(sys, "argv", ["dispatch.py", *words])
    dispatch.main()
    (group,) = json.loads(out.read_text())["groups"]
    rows = {r["name"]: r for r in group["rows"]}
    routed = {f"k={k}, keys={kv}" for k in (16, 2) for kv in ("all", "routed")}
    assert rows.keys() == {group["best"], "masked", *routed}
    dense = rows[group["best"]]
    for name, r in rows.items():
        assert r["executed_flops"] == r["counted_flops"] > 0
        assert r["analytic"] == r["executed_flops"] / dense["executed_flops"]
        assert r["realised"] == pytest.approx(r["ratio"]["median"] / r["analytic"])
        assert r["temp_bytes"] > 0
        assert r["ms"] > 0
        assert (r["analytic"] < 1) == (name in routed)
    assert dense["analytic"] == dense["ratio"]["median"] == dense["temp_ratio"] == 1
    assert (
        rows["k=16, keys=all"]["analytic"]
        > rows["k=2, keys=all"]["analytic"]
        > rows["k=2, keys=routed"]["analytic"]
    )
    assert rows["masked"]["analytic"] > 1
    trained = {
        name: r["analytic_train"] for name, r in rows.items()
    }  # the dense one forms its scores twice
    assert trained["masked"] > trained["k=16, keys=all"] > trained["k=2, keys=routed"]
    assert all(0 < rows[name]["share"] <= rows[name]["kept"] / 128 for name in routed)
    assert {"measured", "realised", "analytic", "temp"} <= set(
        capsys.readouterr().out.replace("[", " ").split()
    )


def test_a_program_that_runs_other_flops_than_priced_is_not_timed(dispatch, monkeypatch):
    words = [
        "--masks=encoder",
        "--lengths=64",
        "--kept=8",
        "--batch=1",
        "--width=16",
        "--heads=2",
        "--quick",
    ]
    monkeypatch.setattr(sys, "argv", ["dispatch.py", *words, "--parts=attention"])
    monkeypatch.setattr(dispatch.layers.block, "attention_flops", lambda *_: 1)
    with pytest.raises(SystemExit, match="FLOPs by the price list"):
        dispatch.main()
