"""The benchmark of shrunk models at a tiny size: smaller models count fewer FLOPs."""

from __future__ import annotations

WORDS = [
    "--models=transformer",
    "--keep=1,0.5",
    "--bits=32,8",
    "--rounds=1",
    "--batch=1",
    "--length=16",
    "--width=64",
    "--depth=1",
]


def test_columns_of_the_shrink_benchmark(eight_bits, script, measure):
    found, shown = measure(script("shrink"), WORDS)
    (model,) = found["models"]
    whole, half, *in_8_bits = model["rows"]
    assert half["params"] < whole["params"]
    assert half["analytic"] < whole["analytic"] == 1
    for kind in ("forward", "step"):
        assert half[kind]["compiled"] < whole[kind]["compiled"] == 1
        assert half[kind]["ms"] > 0
    assert shown.count("\n") == 6

    assert [row["bits"] for row in in_8_bits] == [8, 8]
    for row, in_float in zip(in_8_bits, (whole, half), strict=True):
        assert row["flops"] == in_float["flops"]
        assert 0 < row["int8"] < 1
        assert in_float["int8"] == 0
        assert row["weight_bytes"] < in_float["weight_bytes"]
