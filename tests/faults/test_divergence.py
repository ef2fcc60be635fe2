"""A loss that is huge or not finite ends a run with the step, the cure and a good checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.errors import Diverged, UserError
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import metrics
from cerebra_jax.training import trainer as loop
from cerebra_jax.training.checkpoint import Checkpoints
from cerebra_jax.training.experiment import prepare

POISONED = 5  # the batch that holds it, counted from 0


@pytest.fixture
def cfg_of(tiny_cfg, table):
    def make(**train):
        keys = {"task": {"name": "tabular", "path": str(table), "target": "y", "seq_len": 0}}
        keys |= {"net": {"name": "transformer", "causal": False, "width": 8, "ffn_width": 8}}
        every = {"eval_every": "4 steps", "checkpoint_every": "2 steps", "devices": 1}
        return tiny_cfg(keys | {"train": {"duration": "8 steps"} | every | train}, blocks=1)

    return make


@pytest.fixture
def go(Screen):
    def run(cfg, folder, value):
        """Trains where the labels of one batch, wherever it is used, are `value`."""
        folder.mkdir(exist_ok=True)
        task, screen = build(cfg, lambda line: None), Screen()
        pick = task.train_batch

        def poisoned(seed, step, batch_size):
            batch = pick(seed, step, batch_size)
            if step != POISONED:
                return batch
            return batch | {"labels_BxL": np.full_like(batch["labels_BxL"], value)}

        task.train_batch = poisoned
        return loop.run(cfg, task, folder, screen), screen

    return run


def saved(cfg, folder):
    checkpoints = Checkpoints(folder / "checkpoints", print, read_only=True)
    try:
        return checkpoints.latest(prepare(cfg, build(cfg, lambda line: None)).like)
    finally:
        checkpoints.close()


def test_skip_leaves_the_step_out_and_halt_ends_at_it(go, cfg_of, tmp_path):
    result, _ = go(cfg_of(), tmp_path / "skip", np.inf)
    assert result["steps"] == 8
    cfg = cfg_of(on_nonfinite="halt")
    with pytest.raises(Diverged, match=r"step 6: .*not finite in one step; .*lower train.lr"):
        go(cfg, tmp_path / "halt", np.inf)
    assert saved(cfg, tmp_path / "halt").step == 4


def test_a_huge_loss_is_divergence_and_is_never_saved(go, cfg_of, tmp_path):
    cfg = cfg_of(max_skips=0)
    with pytest.raises(Diverged, match=r"step 6: loss 1\.?\d*e\+1\d in one step; .*target_scale"):
        go(cfg, tmp_path / "run", 1e5)
    found = saved(cfg, tmp_path / "run")
    assert found.step == 4 and found.meta["passed_over"] == 0


def test_rollback_goes_on_with_other_batches_once(go, cfg_of, tmp_path):
    cfg = cfg_of(on_nonfinite="rollback", max_skips=0)
    result, screen = go(cfg, tmp_path / "run", np.nan)
    [line] = [line for line in screen.lines if "back to step" in line]
    assert line.startswith("step 6:") and "back to step 4" in line
    assert result["steps"] == 8
    found = saved(cfg, tmp_path / "run")
    assert (found.step, found.meta["passed_over"]) == (8, 2)
    steps = [x["step"] for x in metrics.read(tmp_path / "run" / "metrics.jsonl")]
    assert [s for s in steps if steps.count(s) == 1] == [1, 2, 3, 5, 6, 7]

    # the run that never saw the batches after the fourth, but for that, is the same one
    task = build(cfg, lambda line: None)
    pick = task.train_batch
    task.train_batch = lambda seed, step, size: pick(seed, step if step < 4 else step + 2, size)
    (tmp_path / "other").mkdir()
    other = loop.run(cfg, task, tmp_path / "other", screen)
    assert other["params_sha256"] == result["params_sha256"]


def test_rollback_ends_the_second_time(cfg_of, tmp_path, Screen):
    cfg = cfg_of(on_nonfinite="rollback", max_skips=0)
    task = build(cfg, lambda line: None)
    pick = task.train_batch

    def poisoned(seed, step, size):
        batch = pick(seed, step, size)
        return batch | {"labels_BxL": batch["labels_BxL"] * (np.nan if step >= 5 else 1)}

    task.train_batch = poisoned
    (tmp_path / "run").mkdir()
    with pytest.raises(Diverged, match="step 5"):
        loop.run(cfg, task, tmp_path / "run", Screen())
    assert saved(cfg, tmp_path / "run").step == 4


def test_a_text_whose_perplexity_is_no_number_has_diverged(tiny_cfg, write_text, tmp_path, Screen):
    """Fault 4: exp of the loss is infinite, and the figure of the line is none."""
    write_text(tmp_path, train=200)
    net = {"name": "transformer", "width": 64, "ffn_width": 16}
    train = {"lr": 10.0, "warmup": "0 steps", "clip": 1e9, "max_skips": 100, "devices": 1}
    train |= {"duration": "8 steps", "eval_every": "4 steps"}
    cfg = tiny_cfg({"task.data_dir": str(tmp_path), "net": net, "train": train}, blocks=1)
    (tmp_path / "run").mkdir()
    with pytest.raises(Diverged, match=r"step 4: the valid loss is \d.*lower train.lr"):
        loop.run(cfg, build(cfg, lambda line: None), tmp_path / "run", Screen())


def test_rollback_and_a_sampler_do_not_go_together():
    train, sampler = {"on_nonfinite": "rollback"}, {"beta": 0.5}
    with pytest.raises(UserError, match="rollback with a sampler"):
        config.parse({"train": train, "sampler": sampler})
