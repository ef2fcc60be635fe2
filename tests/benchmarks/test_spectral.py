"""The benchmark of the DCT at tiny sizes: its columns count what the programs run."""

from __future__ import annotations

import pytest

D = 12
TOKENS = 16
MODEL_D = 16
WORDS = [f"--widths={D}", f"--tokens={TOKENS}", "--rounds=1"]


def test_columns_of_the_spectral_benchmark(script, measure, monkeypatch):
    spectral = script("spectral")
    monkeypatch.setattr(spectral, "STEP", {"depth": 3, "L": 16, "texts": 2, "vocab": 32})
    found, shown = measure(spectral, [*WORDS, f"--steps={MODEL_D}"])
    groups = found["groups"]
    parts = [(group["D"], group["part"]) for group in groups]
    assert parts == [*((D, part) for part in spectral.PARTS), (MODEL_D, "step")]
    transforms = set(spectral.spectral.TRANSFORMS)
    methods = set(spectral.spectral.METHODS)

    # every method has a row, and computes what SciPy does
    for group in groups:
        rows = {row["method"]: row for row in group["rows"]}
        expected = transforms if group["part"].startswith("transform") else methods
        assert rows.keys() - {"folded before"} == expected
        assert rows[group["best"]]["ratio"]["median"] == 1
        for row in rows.values():
            assert 0 <= row["error"] < 1e-5
            assert row["ms"] > 0
            assert row["bytes"] > 0

    # FLOPs a token of transforms and filters
    flops = {
        (group["part"], row["method"]): row["flops"] / TOKENS
        for group in groups
        for row in group["rows"]
    }
    assert flops["transform", "matmul"] == flops["filter", "folded"] == 2 * D**2
    assert flops["filter", "matmul"] == 4 * D**2
    assert flops["filter + backward", "matmul"] == 2 * flops["filter", "matmul"]
    assert flops["filter + backward", "folded"] == 3 * flops["filter", "folded"]
    assert flops["filter", "fft"] == 2 * flops["transform", "fft"] < flops["filter", "folded"]
    assert flops["step", "fft"] < flops["step", "folded"] < flops["step", "matmul"]
    assert {"FLOP,", "byte", "error", "fastest"} <= set(shown.split())


def test_a_method_that_runs_other_flops_than_priced_is_not_timed(script, measure, monkeypatch):
    spectral = script("spectral")
    monkeypatch.setattr(spectral, "dct_flops", lambda *_: 1)
    with pytest.raises(SystemExit, match="by the price list"):
        measure(spectral, [*WORDS, "--steps=0"])
