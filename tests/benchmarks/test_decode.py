"""The benchmark of cached generation at a tiny size: both ways write the same tokens, the cache in fewer FLOPs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_columns_of_the_decode_benchmark(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("decode", BENCHMARKS / "decode.py")
    decode = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(decode)
    sizes = {"batch": 2, "length": 16, "prompt": 4, "steps": 2, "width": 32, "depth": 1, "rounds": 1}
    words = ["--models=transformer", *(f"--{name}={n}" for name, n in sizes.items())]
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["decode.py", *words, f"--out={out}"])
    decode.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert row["flops"]["cached"] < row["flops"]["whole"] and all(rate > 0 for rate in row["tokens_per_s"].values())
    assert capsys.readouterr().out.count("\n") == 3
