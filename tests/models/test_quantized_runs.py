"""Training in 8 bits begins at its step, resumes exactly, and its result is no float model."""

from __future__ import annotations

import pytest

from cerebra_jax import config
from cerebra_jax.errors import Preempted, UserError
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import metrics
from cerebra_jax.training import trainer as loop
from cerebra_jax.training.checkpoint import Checkpoints
from cerebra_jax.training.experiment import Experiment, prepare

pytestmark = pytest.mark.usefixtures("eight_bits")


@pytest.fixture(scope="module")
def cfg_of(table):
    net = {
        "name": "cerebra",
        "causal": False,
        "depth": 1,
        "width": 16,
        "heads": 2,
        "ffn_width": 16,
        "dropout": 0.1,
    }
    train = {
        "duration": "8 steps",
        "batch_size": 8,
        "eval_every": "2 steps",
        "checkpoint_every": "3 steps",
        "devices": 1,
        "lr": 1e-2,
    }
    task = {"name": "tabular", "path": str(table), "target": "y", "seq_len": 0}

    def make(start: str = "5 steps", bits: int = 8):
        quant = {"bits": bits, "start": start}
        return config.parse({"task": task, "net": net, "train": train, "quant": quant})

    return make


@pytest.fixture(scope="module")
def whole(go, cfg_of, tmp_path_factory):
    return go(cfg_of(), tmp_path_factory.mktemp("eight") / "whole")


def after_five():
    """A run that is stopped when it asks for the sixth time."""
    questions = iter(range(5))
    return lambda: next(questions, None) is None


def test_a_run_goes_over_to_8_bits_and_resumes_exactly(go, cfg_of, whole, tmp_path):
    want, kept, screen = whole
    train = [x for x in kept if x["split"] == "train"]
    assert [x.get("bits") for x in train] == [None] * 5 + [8] * 3
    assert [x.get("bits") for x in kept if x["split"] == "valid"] == [None, None, 8, 8]
    assert sum("step 5 · 8-bit training begins" in line for line in screen.lines) == 1
    plain = go(cfg_of(bits=0), tmp_path / "plain")[1]
    same = [x["loss"] for x in plain if x["split"] == "train"]
    assert [x["loss"] for x in train][:5] == same[:5]
    assert [x["loss"] for x in train][5:] != same[5:]
    steps = []
    while True:
        try:
            got, again, _ = go(cfg_of(), tmp_path / "run", stop=after_five())
            break
        except Preempted:
            written = metrics.read(tmp_path / "run" / "metrics.jsonl")
            steps.append(sum(line["split"] == "train" for line in written))
    assert min(steps) < 5 < max(steps)  # before and after the step where it begins
    assert got["params_sha256"] == want["params_sha256"] and got["test"] == want["test"]
    assert again == kept


def test_the_result_is_of_a_model_in_8_bits(go, cfg_of, tmp_path, monkeypatch, Screen):
    """However good the float checkpoints were."""
    # the earlier, the better
    monkeypatch.setattr(Experiment, "score", lambda self, line: float(line["step"]))
    cfg = cfg_of()
    found, kept, _ = go(cfg, tmp_path / "run")
    assert found["best_step"] == 6 and found["bits"] == 8 and found["test"]["bits"] == 8
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", print, read_only=True)
    try:
        assert checkpoints.by_validation() == [6, 8]
    finally:
        checkpoints.close()
    task = build(cfg, lambda line: None)
    measured = loop.measure(cfg, task, tmp_path / "run", "test", Screen())
    assert measured["loss"] == found["test"]["loss"] and measured["bits"] == 8


def test_rounding_at_the_end_is_a_start_that_training_never_reaches(go, cfg_of, whole, tmp_path):
    found, kept, _ = go(cfg_of("1 frac"), tmp_path / "run")
    assert not any("bits" in x for x in kept if x["split"] == "train")
    assert found["best_step"] == 8 and found["test"]["bits"] == 8
    with pytest.raises(UserError, match="step 16 of 8; begin before the end"):
        prepare(cfg_of("16 steps"), build(cfg_of(), lambda line: None))
