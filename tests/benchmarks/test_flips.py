"""The count of decisions that rounding turns, at tiny sizes."""

from __future__ import annotations


def test_in_float32_no_decision_turns_and_in_bfloat16_some_do(script, measure):
    words = ["--models=cerebra", "--rows=16", "--length=128", "--depth=2"]
    found, shown = measure(script("flips"), words)
    exact, rounded = found["rows"]
    assert exact["decoding"] == exact["rounding"] == [0, 0] and 0 < exact["kept"] < 1
    assert rounded["dtype"] == "bfloat16" and sum(rounded["rounding"]) > 0
    assert "float32" in shown
