"""metrics.jsonl holds one whole line a step, whatever happened; means are formed after the sums."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebra_jax.training import metrics, recorder
from cerebra_jax.training.closing import closing


def line(step: int, split: str = "train", **more) -> dict:
    return {"step": step, "split": split, "loss": step / 3, "gates": {"kept": [0.1, 0.2]}} | more


def written(path, lines) -> None:
    log = metrics.Log(path, 0)
    for one in lines:
        log.write(one)
    log.sync()
    log.close()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12), st.integers(0, 60), st.booleans())
def test_resume_drops_later_and_torn_lines(tmp_path_factory, step, torn, scored):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    lines = [
        line(s, split)
        for s in range(1, 11)
        for split in (["train", "valid"] if s % 4 == 0 else ["train"])
    ]
    written(path, [*lines, line(10, "test")])
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(line(11)).encode()[:torn])
    log = metrics.Log(path, step, scored)
    kept = [
        x
        for x in lines
        if x["step"] <= step and (scored or x["split"] == "train" or x["step"] < step)
    ]
    assert list(metrics.read(path)) == kept
    assert (log.validation(8) is None) == (line(8, "valid") not in kept)
    log.write(line(99))
    log.close()
    assert list(metrics.read(path)) == [*kept, line(99)]


def test_a_line_is_on_the_file_as_soon_as_it_is_written(tmp_path):
    log = metrics.Log(tmp_path / "m", 0)
    log.write(line(1))
    assert list(metrics.read(tmp_path / "m")) == [line(1)]
    log.close()


def test_not_a_number_is_never_written(tmp_path):
    log = metrics.Log(tmp_path / "m", 0)
    with pytest.raises(ValueError):
        log.write(line(1, loss=math.nan))
    log.close()


def test_means_are_of_sums_not_of_means():
    total = None
    for nats, tokens in ((30.0, 10.0), (1.0, 1.0)):
        total = metrics.add(
            total, {"nats": (np.float32(nats), np.float32(tokens)), "kept": (np.ones(2), 2.0)}
        )
    assert metrics.form(total) == {"nats": 31 / 11, "kept": [0.5, 0.5]}


def test_sums_are_kept_in_float64():
    total = {"n": (np.float32(2**24), np.float32(1))}
    for _ in range(3):
        total = metrics.add(total, {"n": (np.float32(1), np.float32(0))})
    assert metrics.form(total)["n"] == 2**24 + 3


def test_what_is_not_finite_becomes_null():
    formed = metrics.form(
        {"a": (np.float32("nan"), 1.0), "b": (1.0, 0.0), "c": (np.array([1.0, np.inf]), 1.0)}
    )
    assert formed == {"a": None, "b": None, "c": [1.0, None]}


def test_pace_leaves_out_what_comes_after_a_pause(monkeypatch):
    now = iter([10.0, 11.0, 12.0, 100.0, 101.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(now))
    pace = metrics.Pace()
    assert [pace.lap(), pace.lap(), pace.lap()] == [None, 1.0, 1.0]
    pace.pause()
    assert [pace.lap(), pace.lap()] == [None, 1.0]
    assert pace.left(3700) == "1:01:40"


def test_the_time_left_is_that_of_most_steps_and_not_of_the_first_slow_ones(monkeypatch):
    now = iter([0.0, 60.0, 90.0, *(90.0 + i / 10 for i in range(1, 19))])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(now))
    pace = metrics.Pace()
    for _ in range(21):
        pace.lap()
    assert pace.left(500) == "0:00:50"


def test_without_tensorboardx_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    drawn = metrics.tracker(tmp_path / "tb", 0)
    drawn.scalars(1, "train", line(1))
    drawn.close()
    assert not (tmp_path / "tb").exists()


def test_tensorboard_draws_scalars_and_gates(tmp_path):
    pytest.importorskip("tensorboardX")
    drawn = metrics.tracker(tmp_path / "tb", 0)
    drawn.scalars(1, "train", line(1, phase="warm", skipped=None))
    drawn.close()
    data = b"".join(p.read_bytes() for p in (tmp_path / "tb").iterdir())
    assert b"train/loss" in data and b"train/kept/01" in data and b"phase" not in data


def test_a_long_run_draws_some_of_its_steps_and_writes_all(tmp_path, monkeypatch, Screen):
    drawn = []
    draws = SimpleNamespace(scalars=lambda step, *_: drawn.append(step), close=lambda: None)
    monkeypatch.setattr(metrics, "tracker", lambda folder, step: draws)
    train = SimpleNamespace(log_every="7 steps", batch_size=1, max_skips=3, on_nonfinite="skip")
    length = SimpleNamespace(total=10 * recorder.POINTS, steps=lambda text: int(text.split()[0]))
    cfg = SimpleNamespace(train=train)
    experiment = SimpleNamespace(cfg=cfg, length=length, largest_loss=700.0)
    of_run = recorder.Recorder(experiment, tmp_path, Screen(), recorder.Position())
    for step in range(1, 31):
        of_run.train(line(step, skipped=0, hard_rel_flops=1.0), 4)
    of_run.close()
    assert drawn == [1, 7, 10, 14, 20, 21, 28, 30]
    assert [one["step"] for one in metrics.read(tmp_path / "metrics.jsonl")] == list(range(1, 31))


@pytest.mark.parametrize(
    ("by_layer", "wanted", "kept", "want"),
    [
        ("", [0.02, 0.86], [0.02, 0.375], "net.route.by_layer=0.14,1.86"),
        ("2,0.5", [0.2, 0.6], [0.2, 0.1875], "net.route.by_layer=0.55,1.45"),
        ("", [0.6, 0.8], [0.375, 0.375], ""),  # both are full
        ("", [0.02, 0.4], [0.02, 0.375], ""),  # nothing to speak of is turned away
        ("0.1,1.9", [0.02, 0.9], [0.02, 0.7125], ""),  # the slots are where they are wanted
    ],
)
def test_slots_that_one_layer_lacks_and_another_has_to_spare_are_told(
    by_layer, wanted, kept, want, tmp_path
):
    overflow = [a - b for a, b in zip(wanted, kept, strict=True)]
    net = {"scan": False, "route": {"rate": 0.3, "capacity": 1.25, "by_layer": by_layer}}
    test = {
        "loss": 1.0,
        "hard_rel_flops": 0.5,
        "gates": {"wanted": wanted, "kept": kept, "overflow": overflow},
    }
    r = {
        "model": "cerebra",
        "net": net,
        "test": test,
        "metrics": [],
        "best_step": 1,
        "step_ms": None,
        "wall_s": 1.0,
        "costs": {"relative": dict.fromkeys(("expected", "hard", "executed"), 0.5)},
        "notice": "",
    }
    said = [line for line in closing(r, tmp_path) if line.startswith("slots")]
    assert len(said) == bool(want) and want in "".join(said)
    assert not [
        line for line in closing(r | {"model": "chiar"}, tmp_path) if line.startswith("slots")
    ]
