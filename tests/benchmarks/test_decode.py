"""The benchmark of cached generation at a tiny size: the cache takes fewer FLOPs."""

from __future__ import annotations

import json
import sys


def test_columns_of_the_decode_benchmark(script, monkeypatch, tmp_path, capsys):
    decode = script("decode")
    sizes = {
        "batch": 2,
        "length": 16,
        "prompt": 4,
        "steps": 2,
        "width": 32,
        "depth": 1,
        "rounds": 1,
    }
    words = ["--models=transformer", *(f"--{name}={n}" for name, n in sizes.items())]
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["decode.py", *words, f"--out={out}"])
    decode.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert row["flops"]["cached"] < row["flops"]["whole"]
    assert all(rate > 0 for rate in row["tokens_per_s"].values())
    assert capsys.readouterr().out.count("\n") == 3
