"""The benchmark of long sequences at tiny sizes."""

from __future__ import annotations


def test_every_model_has_a_row_and_a_failing_one_its_error(script, measure):
    longseq = script("longseq")
    words = ["--lengths=64", "--tokens=64", "--width=32", "--models=dense,cerebra,none"]
    found, shown = measure(longseq, [*words, "--rounds=1"])
    dense, cerebra, none = found["rows"]
    assert dense["ratio"]["median"] == 1 and dense["executed"] == 1
    assert cerebra["ms"] > 0 and 0 < cerebra["executed"] < 1
    assert none["error"].startswith("UserError") and "no part 'none'" in shown
