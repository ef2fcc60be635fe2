"""The benchmark for the day a GPU is at hand, at tiny sizes on a CPU."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def gpu(script, monkeypatch):
    module = script("gpu")
    monkeypatch.setattr(module, "in_process", lambda name, smoke, limit: module.row(name, smoke))
    return module


def test_every_kind_of_row_is_measured(gpu, measure):
    found, shown = measure(gpu, ["--smoke"])
    rows = found["rows"]
    assert list(rows) == gpu.names(smoke=True)
    assert {name.partition(":")[0] for name in gpu.names(smoke=False)} == {
        name.partition(":")[0] for name in rows
    }
    assert rows["ceilings"]["tflops"] > 0 < rows["ceilings"]["tb_per_s"]
    assert max(rows["kernels"]["relative_errors"].values()) < 0.02
    assert rows["step:cerebra:64x2x2"]["ms"] > 0 < rows["step:cerebra:64x2x2"]["predicted_ms"]
    assert 0 < rows["step:dense:64x2x2"]["loss"] < 10
    assert rows["decode:dense"]["ms_a_token"] > 0
    assert "predicted_ms" in shown


def test_rows_that_are_there_are_not_measured_again_and_failed_ones_are(
    gpu, measure, monkeypatch, tmp_path
):
    asked = []

    def measured(name, smoke, limit):
        asked.append(name)
        return {"error": "no memory"} if name == "kernels" else {"ms": 1.0}

    monkeypatch.setattr(gpu, "in_process", measured)
    words = ["--smoke", "--rows=ceilings,kernels,embedding"]
    found, shown = measure(gpu, words)
    assert asked == ["ceilings", "kernels", "embedding"]  # an error does not stop the rest
    assert found["rows"]["kernels"] == {"error": "no memory"} and "no memory" in shown
    measure(gpu, words)
    assert asked[3:] == ["kernels"]
    assert json.loads((tmp_path / "found.json").read_text())["rows"]["ceilings"] == {"ms": 1.0}
    measure(gpu, [*words, "--seconds=0"])
    assert asked[4:] == []
