"""The benchmark of the DCT at tiny sizes: its columns count what the programs run."""

from __future__ import annotations

import json
import sys

import pytest


@pytest.fixture
def bench(script, monkeypatch):
    module = script("spectral")
    rates = module.machine_rates.Rates(matmul=1e11, copy=1e10)
    monkeypatch.setattr(module.machine_rates, "machine_rates", lambda: rates)
    monkeypatch.setattr(module.timing, "CELL_SECONDS", 1e-3)
    return module


def test_columns_of_the_spectral_benchmark(bench, monkeypatch, tmp_path, capsys):
    out = tmp_path / "found.json"
    words = ["--widths=8,12", "--tokens=16", "--rounds=1", "--steps=16", f"--out={out}"]
    monkeypatch.setattr(bench, "STEP", {"depth": 3, "L": 16, "texts": 2, "vocab": 32})
    monkeypatch.setattr(sys, "argv", ["spectral.py", *words])
    bench.main()
    groups = json.loads(out.read_text())["groups"]
    assert [(g["D"], g["part"]) for g in groups] == [
        *((D, part) for D in (8, 12) for part in bench.PARTS),
        (16, "step"),
    ]
    step = {r["method"]: r for r in groups[-1]["rows"]}
    assert list(step) == list(bench.spectral.METHODS)
    assert step["fft"]["flops"] < step["folded"]["flops"] < step["matmul"]["flops"]
    for g in groups:
        rows = {r["method"]: r for r in g["rows"]}
        assert rows.keys() - {"folded before"} == set(
            bench.spectral.TRANSFORMS
            if g["part"].startswith("transform")
            else bench.spectral.METHODS
        )
        assert rows[g["best"]]["ratio"]["median"] == 1
        for r in rows.values():
            assert 0 <= r["error"] < 1e-5
            assert r["ms"] > 0
            assert r["bytes"] > 0
    flops = {(g["D"], g["part"], r["method"]): r["flops"] / 16 for g in groups for r in g["rows"]}
    assert flops[8, "transform", "matmul"] == flops[8, "filter", "folded"] == 2 * 8**2
    assert flops[8, "filter", "matmul"] == 4 * 8**2
    assert flops[8, "filter + backward", "matmul"] == 2 * flops[8, "filter", "matmul"]
    assert flops[8, "filter + backward", "folded"] == 3 * flops[8, "filter", "folded"]
    assert (
        flops[8, "filter", "fft"] == 2 * flops[8, "transform", "fft"] < flops[8, "filter", "folded"]
    )
    assert {"FLOP,", "byte", "error", "fastest"} <= set(capsys.readouterr().out.split())


def test_a_method_that_runs_other_flops_than_priced_is_not_timed(bench, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["spectral.py", "--widths=8", "--tokens=16", "--rounds=1", "--steps=0"]
    )
    monkeypatch.setattr(bench.prices, "dct_flops", lambda *_: 1)
    with pytest.raises(SystemExit, match="by the price list"):
        bench.main()
