"""The loop, in this process: what it writes, when it stops, and what it compiles."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from cerebra_jax.errors import Diverged, Preempted, UserError
from cerebra_jax.policies import adaptive_capacity
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import metrics
from cerebra_jax.training import trainer as loop
from cerebra_jax.training.checkpoint import Checkpoints
from cerebra_jax.training.closing import closing
from cerebra_jax.training.experiment import prepare

TIMING = ("tokens_per_s", "step_ms")


@pytest.fixture(scope="module")
def text(write_text, tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"), train=200)


@pytest.fixture
def cfg_of(tiny_cfg, text):
    def make(**more):
        train = {
            "duration": "8 steps",
            "eval_every": "4 steps",
            "checkpoint_every": "2 steps",
            "devices": 1,
        }
        base = {"task.data_dir": str(text), "net": {"width": 16, "ffn_width": 16, "dropout": 0.1}}
        base |= {
            "objective.lam": 0.1,
            "train": train,
        }  # one program for most tests: it is compiled once
        return tiny_cfg(base | {k.replace("__", "."): v for k, v in more.items()})

    return make


@pytest.fixture
def go(Screen):
    def run(cfg, workdir, *, task=None, stop=lambda: False):
        workdir.mkdir(exist_ok=True)
        screen = Screen()
        return loop.run(cfg, task or build(cfg, screen.say), workdir, screen, stop), screen

    return run


def lines(workdir, split=None):
    found = [x for x in metrics.read(workdir / "metrics.jsonl") if split in (None, x["split"])]
    return [{k: v for k, v in x.items() if k not in TIMING} for x in found]


class After:
    """A stop that is asked for once `n` questions were answered with no."""

    def __init__(self, n):
        self.n = n

    def __call__(self):
        self.n -= 1
        return self.n < 0


def test_a_run_writes_what_it_promises(go, cfg_of, tmp_path):
    cfg = cfg_of()
    task = build(cfg, print)
    result, screen = go(cfg, tmp_path / "run", task=task)
    assert [x["step"] for x in lines(tmp_path / "run", "train")] == list(range(1, 9))
    assert [x["step"] for x in lines(tmp_path / "run", "valid")] == [4, 8]
    assert {x["phase"] for x in lines(tmp_path / "run", "train")} == {"warm", "ramp", "full"}
    first = lines(tmp_path / "run", "train")[0]
    for key in (
        "loss",
        "ppl",
        "lr",
        "lam",
        "grad_norm",
        "expected_rel_flops",
        "hard_rel_flops",
        "executed_rel_flops",
    ):
        assert isinstance(first[key], float), key
    assert len(first["gates"]["kept"]) == cfg.net.depth - 2
    json.dumps(result, allow_nan=False)
    assert any("of dense as executed · DCT by fft" in line for line in screen.lines)
    best = min(lines(tmp_path / "run", "valid"), key=lambda x: x["loss"])
    assert (result["best_step"], result["val"]["loss"]) == (best["step"], best["loss"])
    assert result["params"] - result["params_non_embedding"] == 16 * task.shape.vocab_size
    steps = [x for x in metrics.read(tmp_path / "run" / "metrics.jsonl") if x["split"] == "train"]
    mean = np.mean([step["step_ms"] for step in steps if step["step_ms"]])
    assert result["train_s"] == pytest.approx(8 * mean / 1e3)
    costs = result["costs"]
    assert (
        costs["train_total"] == 3 * costs["executed"] * result["tokens"]
        and result["tokens"] == 8 * 8 * 32
    )
    for name in ("ppl_token", "ppl_word", "bits_per_byte"):
        assert result["test"][name] > 0 and result["val"][name] > 0
    assert result["peak_memory_bytes"] > 0 and len(result["params_sha256"]) == 64
    assert screen.begun == (8, 0) and screen.ended
    assert sum(map(len, closing(result, tmp_path))) > 0


def test_dense_runs_too_and_costs_one(go, cfg_of, tmp_path):
    keys = {"net__dtype": "bfloat16", "objective__device": "h100"}  # whose programs cost less
    result, _ = go(cfg_of(net__name="transformer", objective__lam=0.0, **keys), tmp_path / "run")
    costs = result["costs"]
    assert costs["relative"] == {"expected": 1.0, "hard": 1.0, "executed": 1.0}
    assert costs["executed"] == pytest.approx(costs["executed_flops"])


def test_stopped_anywhere_and_resumed_is_the_same_run(go, cfg_of, tmp_path):
    """A stop after every possible question of the loop, evaluations included."""
    cfg = cfg_of(net__route__tau="calibrated", net__route__calibrate_at="4 steps")
    want, _ = go(cfg, tmp_path / "whole")
    task, asked = build(cfg, print), 0
    while True:  # each session goes on for a few questions only
        try:
            got, screen = go(cfg, tmp_path / "run", task=task, stop=After(5))
            break
        except Preempted:
            asked += 1
    assert asked >= 2
    assert got["params_sha256"] == want["params_sha256"] and got["test"] == want["test"]
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    again, _ = go(
        cfg, tmp_path / "run", task=task
    )  # result.json was lost: gathered again, not trained again
    assert again["params_sha256"] == want["params_sha256"] and again["test"] == want["test"]
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_one_trace_for_a_whole_run(go, cfg_of, tmp_path, monkeypatch):
    traces = []
    make = loop.step.make_train_step

    def counted(*args):
        train_step = make(*args)

        def traced(*a, **k):
            traces.append(1)
            return train_step(*a, **k)

        return traced

    monkeypatch.setattr(loop.step, "make_train_step", counted)
    cfg = cfg_of()
    go(cfg, tmp_path / "run")
    assert len(traces) == 1
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(Preempted):
        go(cfg, tmp_path / "again", stop=After(3))
    go(cfg, tmp_path / "again")
    assert len(traces) == 3  # one more for each session, a restored state included


class Poisoned:
    """A task whose batches are not finite at some steps."""

    def __init__(self, task, bad):
        self._task, self._bad = task, bad

    def __getattr__(self, name):
        return getattr(self._task, name)

    def train_batch(self, seed, step, *args):
        batch = self._task.train_batch(seed, step, *args)
        if step + 1 in self._bad:
            batch["w_BxL"] = batch["w_BxL"] * np.float32("nan")
        return batch


def test_a_few_steps_that_are_not_finite_are_skipped_and_counted(go, cfg_of, tmp_path):
    cfg = cfg_of(train__max_skips=2)
    task = Poisoned(build(cfg, print), {3, 4, 6})
    result, _ = go(cfg, tmp_path / "run", task=task)
    train = lines(tmp_path / "run", "train")
    assert [x["step"] for x in train if x["loss"] is None] == [3, 4, 6]
    assert [x["skipped"] for x in train] == [0, 0, 1, 2, 0, 1, 0, 0]
    assert np.isfinite(result["test"]["loss"])


def test_too_many_stop_the_run_and_nothing_broken_is_saved(go, cfg_of, tmp_path):
    cfg = cfg_of(train__max_skips=2)
    task = Poisoned(build(cfg, print), {4, 5, 6, 7})
    for _ in range(2):  # the second time it resumes, and comes to the same end
        with pytest.raises(Diverged, match="step 6.*3 steps in a row"):
            go(cfg, tmp_path / "run", task=task)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", print, read_only=True)
    s = prepare(cfg, task)
    at, state, _ = checkpoints.latest(s.like)
    checkpoints.close()
    assert at <= 6 and all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_other_data_on_resume_is_refused(go, cfg_of, tmp_path, text):
    with pytest.raises(Preempted):
        go(cfg_of(), tmp_path / "run", stop=After(3))
    other = tmp_path / "other"
    other.mkdir()
    for split in ("train", "valid", "test"):
        (other / f"{split}.txt").write_text(
            (text / f"{split}.txt").read_text().replace("four", "five")
        )
    with pytest.raises(UserError, match="is not what it was: data sha256"):
        go(cfg_of(task__data_dir=str(other)), tmp_path / "run")


def test_another_machine_or_another_code_is_said_in_one_line(go, cfg_of, tmp_path, monkeypatch):
    with pytest.raises(Preempted):
        go(cfg_of(), tmp_path / "run", stop=After(3))
    monkeypatch.setattr(loop.results, "code", lambda: "edited")
    _, screen = go(cfg_of(train__devices=2), tmp_path / "run")
    said = [line for line in screen.lines if line.startswith("warning")]
    assert len(said) == 1 and "devices 1 -> 2" in said[0] and "-> edited" in said[0]


def test_a_damaged_latest_checkpoint_is_replayed_to_the_same_end(go, cfg_of, tmp_path):
    want, _ = go(cfg_of(), tmp_path / "whole")
    with pytest.raises(Preempted):
        go(cfg_of(), tmp_path / "run", stop=After(6))
    folder = tmp_path / "run" / "checkpoints"
    latest = max(folder.iterdir(), key=lambda p: int(p.name))
    for path in (latest / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    got, screen = go(cfg_of(), tmp_path / "run")
    assert sum("damaged" in line for line in screen.lines) == 1
    assert got["params_sha256"] == want["params_sha256"] and lines(tmp_path / "run") == lines(
        tmp_path / "whole"
    )


def flops_of(s, step: int) -> int:
    """Forward FLOPs of the program that a budget has at a step."""
    return s.sizes.model(s.sizes.plan.bucket(step)).cost.executed_flops


def test_a_budget_shrinks_the_program_and_resumes_exactly(go, cfg_of, tmp_path):
    """Stopped before and after the switch of programs, multiplier and all; counted in bytes."""
    cfg = cfg_of(
        objective__lam=0.0,
        objective__budget=0.8,
        objective__buckets=2,
        objective__ramp="4 steps",
        objective__unit="bytes",
    )
    want, screen = go(cfg, tmp_path / "whole")
    s = prepare(cfg, build(cfg, print))
    assert (
        sum("compiling a smaller program" in line for line in screen.lines)
        == 1
        == len(s.sizes.plan.rates) - 1
    )
    train = lines(tmp_path / "whole", "train")
    assert [x["executed_rel_bytes"] for x in train] == [
        s.sizes.plan.levels[s.sizes.plan.bucket(i)] for i in range(8)
    ]
    assert [x["executed_rel_flops"] for x in train] == [
        flops_of(s, i) / s.model.dense.executed_flops for i in range(8)
    ]
    assert all(0 < x["hard_rel_bytes"] < 1 and "hard_rel_flops" not in x for x in train)
    assert want["costs"]["counts"] == "bytes" and any(
        "of dense bytes moved" in line for line in screen.lines
    )
    assert want["costs"]["hard"] == want["costs"]["dense"] * want["test"]["hard_rel_bytes"]
    assert abs(want["costs"]["relative"]["executed"] / 0.8 - 1) < 0.02
    assert len({x["multiplier"] for x in train}) > 4 and all(x["multiplier"] >= 0 for x in train)
    assert want["costs"]["train_total"] == 3 * 8 * sum(flops_of(s, i) for i in range(8))
    while True:
        try:
            got, _ = go(cfg, tmp_path / "run", stop=After(4))
            break
        except Preempted:
            pass
    assert got["params_sha256"] == want["params_sha256"] and got["test"] == want["test"]
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_a_policy_that_learned_to_spend_less_gets_a_smaller_program(
    go, cfg_of, tmp_path, monkeypatch, Screen
):
    """One compilation and one line for it.

    Stopped anywhere and resumed, the same programs at the same steps.
    """
    monkeypatch.setattr(adaptive_capacity, "MEMORY", 0.3)  # 20 steps are enough to see it
    traces, make = [], loop.step.make_train_step

    def counted(*args):
        train_step = make(*args)
        return lambda *a, **k: traces.append(1) or train_step(*a, **k)

    monkeypatch.setattr(loop.step, "make_train_step", counted)
    cfg = cfg_of(
        net__route__mode="hard",
        objective__lam=100.0,
        objective__buckets=2,
        objective__warm="0 steps",
        objective__ramp="1 steps",
        train__lr=0.05,
        train__duration="20 steps",
        train__eval_every="10 steps",
        net__route__capacity=2.0,
    )
    want, screen = go(cfg, tmp_path / "whole")
    s, train = prepare(cfg, build(cfg, print)), lines(tmp_path / "whole", "train")
    ran = [x["program"] for x in train]
    assert ran[0] == 0 and ran[-1] == 1 and ran == sorted(ran)
    assert (
        len(traces) == 2 == 1 + sum("compiling a smaller program" in line for line in screen.lines)
    )
    assert [x["executed_rel_flops"] for x in train] == [s.sizes.model(i).executed for i in ran]
    assert all(x["gates"]["overflow"][0] < 0.05 for x in train if x["program"] == 1)
    assert want["costs"]["train_total"] == 3 * 8 * sum(
        s.sizes.model(i).cost.executed_flops for i in ran
    )
    best = next(x for x in lines(tmp_path / "whole", "valid") if x["step"] == want["best_step"])
    assert want["test"]["program"] == best["program"]
    assert want["costs"]["relative"]["executed"] == s.sizes.model(best["program"]).executed
    task = build(cfg, print)
    for more in (4, 1):  # at steps 5 and 7: the other program begins at 6
        with pytest.raises(Preempted):
            go(cfg, tmp_path / "run", task=task, stop=After(1 + more))
    got, _ = go(cfg, tmp_path / "run", task=task)
    assert got["params_sha256"] == want["params_sha256"] and got["test"] == want["test"]
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert (
        loop.measure(cfg, task, tmp_path / "run", "test", Screen()).items() >= got["test"].items()
    )


def test_cudnn_without_a_gpu_is_refused(tiny_cfg, tmp_path, go):
    cfg = tiny_cfg({"net": {"name": "transformer", "attention": "cudnn"}})
    with pytest.raises(UserError, match="cudnn.*for a cpu; use net.attention=auto"):
        go(cfg, tmp_path / "run")
