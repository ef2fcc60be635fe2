"""The benchmark of cached generation at a tiny size: the cache takes fewer FLOPs."""

from __future__ import annotations

import numpy as np
import pytest

SIZES = {"batch": 2, "length": 16, "prompt": 4, "steps": 2, "width": 32, "depth": 1, "rounds": 1}
WORDS = ["--models=transformer", *(f"--{name}={n}" for name, n in SIZES.items())]


def test_columns_of_the_decode_benchmark(script, measure):
    found, shown = measure(script("decode"), WORDS)
    (row,) = found["rows"]
    assert row["flops"]["cached"] < row["flops"]["whole"]
    assert all(rate > 0 for rate in row["tokens_per_s"].values())
    assert shown.count("\n") == 3


def test_other_tokens_than_the_full_passes_are_not_timed(script, measure, monkeypatch):
    decode = script("decode")

    def writers(model, variables, args):
        class Cache:
            kept_RxBxL = np.zeros((0, 2, 16))

        def cached(ids_BxP, length_B):
            return np.zeros((2, 12), np.int32), Cache

        return cached, lambda ids_BxP: np.ones((2, 2), np.int32)

    monkeypatch.setattr(decode, "writers", writers)
    with pytest.raises(SystemExit, match="not the tokens that the full pass writes"):
        measure(decode, WORDS)
