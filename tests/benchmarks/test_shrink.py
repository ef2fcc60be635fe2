"""The benchmark of shrunk models at a tiny size: smaller models count fewer FLOPs."""

from __future__ import annotations

import json
import sys


def test_columns_of_the_shrink_benchmark(eight_bits, script, monkeypatch, tmp_path, capsys):
    shrink = script("shrink")
    out = tmp_path / "found.json"
    words = [
        "--models=transformer",
        "--keep=1,0.5",
        "--bits=32,8",
        "--rounds=1",
        "--batch=1",
        "--length=16",
        "--width=64",
        "--depth=1",
    ]
    monkeypatch.setattr(sys, "argv", ["shrink.py", *words, f"--out={out}"])
    shrink.main()
    (found,) = json.loads(out.read_text())["models"]
    big, small, *rounded = found["rows"]
    assert small["params"] < big["params"]
    assert small["analytic"] < big["analytic"] == 1
    for kind in ("forward", "step"):
        assert small[kind]["compiled"] < big[kind]["compiled"] == 1
        assert small[kind]["ms"] > 0
    assert capsys.readouterr().out.count("\n") == 6
    assert [row["bits"] for row in rounded] == [8, 8]
    for row, whole in zip(rounded, (big, small), strict=True):
        assert row["flops"] == whole["flops"]
        assert 0 < row["int8"] < 1
        assert whole["int8"] == 0
        assert row["weight_bytes"] < whole["weight_bytes"]
