"""calibrate on a small run: thresholds stand where numpy puts them, and eval, generate and certify
take them.
"""

from __future__ import annotations

import json
import random

import jax
import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.cli import calibrate
from cerebra_jax.main import main
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import experiment as session
from cerebra_jax.training.checkpoint import Checkpoints

KEYS = [
    "task.tokenizer=bytes",
    "task.seq_len=32",
    "net.depth=4",
    "net.width=16",
    "net.heads=2",
    "net.ffn_width=16",
    "train.batch_size=8",
    "train.duration=6 steps",
    "train.eval_every=3 steps",
    "net.route.kv=routed",
    "train.devices=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run of two routed layers, and a text of another kind."""
    folder = tmp_path_factory.mktemp("calibrate")
    rng = random.Random(3)
    for split, lines in (("train", 200), ("valid", 9), ("test", 5)):
        rows = (
            " ".join("".join(rng.choices("abcdefgh", k=5)) for _ in range(9)) for _ in range(lines)
        )
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    (folder / "other.txt").write_text("0123456789 +-*/ ÄÖÜ\n" * 40)
    words = [f"--config.task.data_dir={folder}", *(f"--config.{key}" for key in KEYS)]
    assert main(["--config=configs/wikitext.py:smoke", *words, f"--workdir={folder / 'run'}"]) == 0
    return folder


@pytest.fixture
def model(run):
    """(session, its task, the state of the run's best checkpoint), as what only reads gets it."""
    cfg = config.parse((run / "run" / "config.json").read_text())
    task = build(cfg, lambda line: None)
    s = session.prepare(cfg, task)

    def state(as_trained=False):
        checkpoints = Checkpoints(run / "run" / "checkpoints", print, read_only=True)
        try:
            return checkpoints.best(s.like, as_trained)[1]
        finally:
            checkpoints.close()

    return s.model, task, state


def scores(model, task, state) -> np.ndarray:
    """(R, tokens) of the validation split, without padding, and whether they are kept."""
    from cerebra_jax.models.model import neutral_knobs

    @jax.jit
    def scores_of(variables, batch):
        return model.apply(variables, batch, neutral_knobs())[1].scores

    found, variables = [], {"params": state.params, "routing": state.routing}
    for batch in task.eval_batches("valid", 8):
        of = scores_of(variables, batch)
        both = np.stack([np.asarray(of[k], np.float64) for k in ("score", "kept")])
        found.append(both[:, :, batch["w_BxL"] > 0])
    return np.concatenate(found, axis=2)


def middle_of_gap(score, value) -> float:
    """Returns the middle between the scores just below and just above a value."""
    return (score[score < value].max() + score[score > value].min()) / 2


def test_thresholds_stand_between_the_thirds_of_what_each_layer_sees_and_every_reader_takes_them(
    run, model, capsys
):
    built, task, state = model
    workdir = run / "run"
    trained = state()
    assert main(["eval", f"--workdir={workdir}"]) == 0
    before = json.loads((workdir / "eval-test.json").read_text())
    assert main(["calibrate", f"--workdir={workdir}"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((workdir / "thresholds.json").read_text())
    now = state()
    np.testing.assert_array_equal(now.routing["tau"], np.float32(found["tau"]))
    np.testing.assert_array_equal(state(as_trained=True).routing["tau"], trained.routing["tau"])
    score, kept = scores(built, task, now)
    assert (
        found["tokens"]
        == score.shape[1]
        == sum((b["w_BxL"] > 0).sum() for b in task.eval_batches("valid", 8))
    )
    old_score, old_kept = scores(built, task, trained)
    for i, (row, old) in enumerate(
        zip(found["layers"], trained.routing["tau"].tolist(), strict=True)
    ):
        middle = middle_of_gap(score[i], np.quantile(score[i], [1 / 3, 2 / 3]).mean())
        assert row["layer"] == i + 1 and abs(row["tau_now"] - middle) < 1e-6
        assert row["above_now"] == pytest.approx((score[i] > found["tau"][i]).mean(), abs=1e-6)
        assert row["above_run"] == pytest.approx((old_score[i] > old).mean(), abs=1e-6)
        assert row["kept_now"] == pytest.approx(kept[i].mean()) and row[
            "kept_run"
        ] == pytest.approx(old_kept[i].mean())
        assert row["drift"] == pytest.approx((found["tau"][i] - old) / score[i].std(), rel=1e-3)
    assert (
        f"{found['tau'][1]:.4f}" in shown and "find none" in shown
    )  # half of the tokens, slots for a third

    assert main(["eval", f"--workdir={workdir}"]) == 0
    after = json.loads((workdir / "eval-test.json").read_text())
    assert "thresholds.json, measured on" in capsys.readouterr().out
    assert after["gates"]["kept"] != before["gates"]["kept"] and after["loss"] != before["loss"]
    assert main(["generate", f"--workdir={workdir}", "--prompt=abc", "--max_tokens=3"]) == 0
    assert "thresholds.json, measured on" in capsys.readouterr().out
    (workdir / "thresholds.json").write_text(json.dumps(found | {"step": 1}))
    assert main(["eval", f"--workdir={workdir}"]) == 2
    assert "is of step 1, the best checkpoint is of step" in capsys.readouterr().err
    (workdir / "thresholds.json").unlink()
    assert main(["eval", f"--workdir={workdir}"]) == 0
    assert json.loads((workdir / "eval-test.json").read_text()) == before


def test_a_share_of_another_text_is_kept_there(run):
    workdir, other = run / "run", run / "other.txt"
    assert main(["calibrate", f"--workdir={workdir}", f"--data={other}", "--share=0.25"]) == 0
    found = json.loads((workdir / "thresholds.json").read_text())
    (workdir / "thresholds.json").unlink()
    assert found["tokens"] == len(other.read_bytes()) + 1 and found["data"] == str(other)
    # equal tokens have equal scores in the first routed layer: a quantile falls between two of them
    assert all(abs(row["above_now"] - 0.25) < 0.03 for row in found["layers"])


def test_what_a_threshold_keeps_too_much_or_too_little_is_said_and_what_finds_no_slot():
    row = {"tau_run": 0.8, "tau_now": 0.7, "drift": -1.0, "kept_run": 0.3, "kept_now": 0.3}
    layers = [
        {"layer": 1, "above_run": 0.27, "above_now": 0.25},
        {"layer": 2, "above_run": 0.4, "above_now": 0.5},
    ]
    table, drift, slots = calibrate._report([row | each for each in layers], 0.25, 0.3125)
    assert len(table.splitlines()) == 3 and "-1.00" in table
    assert "route 0.40 in layer 2 on this text; net.route.rate is 0.25" in drift
    assert "slots for 0.31 of the tokens" in slots and slots.endswith("find none: 0.20 in layer 2")
    assert len(list(calibrate._report([row | layers[0]], 0.25, 0.3125))) == 1


def test_the_papers_way_looks_at_embeddings_and_gives_all_layers_one_threshold(run, model):
    built, task, state = model
    workdir = run / "run"
    assert main(["calibrate", f"--workdir={workdir}", "--embeddings"]) == 0
    found = json.loads((workdir / "thresholds.json").read_text())
    (workdir / "thresholds.json").unlink()
    table = np.asarray(state().params["embed"]["table"], np.float64)
    k, n = np.arange(16)[:, None], np.arange(16)[None]
    X = table @ (np.cos(np.pi * (2 * n + 1) * k / 32) * np.where(k == 0, 1, 2**0.5)).T
    p = X**2 / (X**2).sum(1, keepdims=True)
    H = -(p * np.log(p)).sum(1) / np.log(16)
    ids = np.concatenate([b["inputs_BxL"][b["w_BxL"] > 0] for b in task.eval_batches("valid", 8)])
    want = middle_of_gap(H[ids], np.quantile(H[ids], [1 / 3, 2 / 3]).mean())
    np.testing.assert_allclose(found["tau"], [want, want], atol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--share=2", "--share is '2'"),
        ("--data=nothing.txt", "there is no nothing.txt"),
        ("--config.net.depth=3", "calibrate cannot change net.depth"),
    ],
)
def test_mistakes_are_one_line(run, words, said, capsys):
    assert main(["calibrate", f"--workdir={run / 'run'}", words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
