"""The benchmark of a training step without its workers: what it compares, computes and refuses."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def step(script):
    return script("step")


def measured(step, seconds: float, **info):
    cells = [step.timing.Cell(seconds * k, seconds * k) for k in (1.0, 1.1, 1.2)]
    return step.Measured({"losses": [3.0, 2.5, 2.0], **info}, cells, [1e11] * 3, 2**30)


def test_ratios_are_to_the_faster_pytorch_variant(step, capsys):
    found = {
        "dense": measured(step, 1.0, flops=10**10, temp_bytes=2**20),
        "torch": measured(step, 3.0),
        "torch.compile": measured(step, 2.0),
    }
    table = step.rows(found, tokens=1100)
    assert {row["baseline"] for row in table.values()} == {"torch.compile"}
    assert table["dense"]["tokens_per_s"] == pytest.approx(1000)
    assert table["dense"]["time_ratio"]["median"] == pytest.approx(0.5)
    assert table["torch"]["gflops_per_s"] == pytest.approx(10 / 3.3)
    assert table["dense"]["of_matmul"] == pytest.approx(1e10 / 1.1 / 1e11)
    step.show(table, {"chiar": "no reason"})
    shown = capsys.readouterr().out
    assert "2.00x [2.00, 2.00]" in shown
    assert "not run: no reason" in shown
    assert {row["baseline"] for row in step.rows({"dense": found["dense"]}, 1).values()} == {
        "dense"
    }


def test_another_model_is_not_compared(step):
    ours = {"losses": [3.0, 2.5, 2.0]}
    step.check({"dense": ours, "torch": {"losses": [3.00005, 2.5005, 2.0005]}})
    with pytest.raises(SystemExit, match="not the same model"):
        step.check({"dense": ours, "torch": {"losses": [3.0002, 2.5, 2.0]}})
    with pytest.raises(SystemExit, match="chiar: losses"):
        step.check({"chiar": {"losses": [3.0, float("nan"), 2.0]}})
    step.check({"dense": ours, "chiar": {"losses": [9.0, 9.0, 9.0]}})  # ours may differ


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--models=lstm"], "no model lstm"),
        (["--models=torch"], "add dense"),
        (["--dtype=bfloat16"], "the PyTorch model is float32"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, what, step, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step.py", *words])
    with pytest.raises(SystemExit):
        step.options()
    assert what in capsys.readouterr().err


def test_models_are_those_of_the_configurations(step, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["step.py"])
    args, names = step.options()
    assert names == ["dense", "chiar", "torch", "torch.compile"]
    dense, chiar = (step.configuration(args.size, m, 4, "float32") for m in ("torch", "chiar"))
    assert (dense.net.name, chiar.net.name) == ("transformer", "chiar")
    assert dense.net.dropout == 0.0
    assert dense.train.batch_size == 4
