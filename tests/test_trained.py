"""A finished run from Python and from the command line.

It answers as it was measured, in any form of the rows.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import chex
import numpy as np
import pytest

import cerebra_jax
from cerebra_jax import trees
from cerebra_jax.errors import UserError
from cerebra_jax.main import main
from cerebra_jax.tasks.examples import cut
from cerebra_jax.tasks.table import Table, read

NET = {
    "name": "cerebra",
    "causal": False,
    "depth": 1,
    "width": 16,
    "heads": 2,
    "ffn_width": 16,
    "compress": {"kind": "attention"},
    "route": {"mode": "topk", "part": "block", "kv": "routed"},
}
TRAIN = {
    "duration": "40 steps",
    "batch_size": 16,
    "eval_every": "40 steps",
    "checkpoint_every": "40 steps",
    "devices": 1,
    "lr": 3e-3,
}
TASKS = {
    "regression": {"name": "tabular", "target": "y"},
    "classification": {"name": "tabular", "target": "kind"},
    "intent": {"name": "intent", "tokenizer": "words", "subwords": 64, "buckets": 2},
}
TARGETS = {"regression": "y", "classification": "kind", "intent": "label"}


class Made(NamedTuple):
    """A trained run, the table that it was made from, and what the test split measured."""

    folder: Path
    cfg: Any
    run: cerebra_jax.Trained
    table: Table
    measured: dict[str, float]


def _lines(kind: str, rng: random.Random) -> list[str]:
    """A CSV of 300 rows whose answers can be learned."""
    if kind == "intent":
        rows = [(rng.choice(["ask", "tell"]), rng.randint(1, 12)) for _ in range(300)]
        return ["text,label", *(f"{label} {'me ' * n}now,{label}" for label, n in rows)]
    lines = ["x,kind,y"]
    for _ in range(300):
        x = rng.gauss(0, 1)
        c = rng.choice("abc")
        lines.append(f"{x:.3f},{c},{3 * x + 'abc'.index(c) + 40:.3f}")
    return lines


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Made]:
    """A trained run of each kind of task."""
    found = {}
    rng = random.Random(0)
    for kind, task in TASKS.items():
        folder = tmp_path_factory.mktemp(kind)
        data = folder / "t.csv"
        data.write_text("\n".join(_lines(kind, rng)) + "\n")
        values = {"seq_len": 0, "path": str(data), **task}
        cfg = cerebra_jax.parse({"task": values, "net": NET, "train": TRAIN})
        said: list[str] = []
        run = cerebra_jax.train(cfg, folder / "run", said.append)
        assert any("step 40" in line for line in said), said
        result = json.loads((folder / "run" / "result.json").read_text())
        found[kind] = Made(folder / "run", cfg, run, read(str(data)), result["test"])
    return found


@pytest.mark.parametrize("kind", TASKS)
def test_it_answers_as_it_was_measured_without_seeing_the_answers(kind, made):
    run = made[kind].run
    table = made[kind].table
    measured = made[kind].measured
    rows = cut(table.rows, 0.1, 0.1)["test"]
    columns = {name: [column[i] for i in rows] for name, column in table.columns.items()}
    truth = columns.pop(TARGETS[kind])
    found = run.predict(columns, batch_size=7)
    assert len(found["prediction"]) == len(rows)
    if kind == "regression":
        error = np.asarray(found["prediction"]) - np.asarray(truth, float)
        assert np.sqrt(np.square(error).mean()) == pytest.approx(measured["rmse"], rel=1e-4)
    else:
        right = [a == b for a, b in zip(found["prediction"], truth, strict=True)]
        assert np.mean(right) == pytest.approx(measured["accuracy"])
        assert all(1 / 3 - 1e-6 < p <= 1 for p in found["probability"])

    # the same rows in another form, in other batches
    names = list(columns)
    dicts = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    again = run.predict(columns["text"] if kind == "intent" else dicts)
    if kind == "regression":
        assert again["prediction"] == pytest.approx(found["prediction"], rel=1e-4)
    else:
        assert again["prediction"] == found["prediction"]


def test_a_finished_run_is_not_trained_again_and_loads_as_it_was(made):
    folder, cfg, run, _, _ = made["regression"]
    before = (folder / "metrics.jsonl").read_bytes()
    said: list[str] = []
    again = cerebra_jax.train(cfg, folder, said.append)
    loaded = cerebra_jax.load(folder)
    for other in (again, loaded):
        chex.assert_trees_all_equal(other.variables, run.variables)
        assert (other.step, other.score, other.cfg) == (run.step, run.score, cfg)
    assert not any("step" in line for line in said)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_may_become_longer(made, tmp_path):
    folder, cfg, *_ = made["classification"]
    shutil.copytree(folder, tmp_path / "run")
    train = dataclasses.replace(cfg.train, duration="44 steps", eval_every="2 steps")
    with pytest.raises(UserError, match="eval_every"):  # no other key may change
        cerebra_jax.train(dataclasses.replace(cfg, train=train), tmp_path / "run", print)
    train = dataclasses.replace(cfg.train, duration="44 steps")
    said: list[str] = []
    longer = cerebra_jax.train(dataclasses.replace(cfg, train=train), tmp_path / "run", said.append)
    assert longer.cfg.train.duration == "44 steps"
    assert any("train.duration 40 steps -> 44 steps" in line for line in said)
    assert any("resuming at step 40 of 44" in line for line in said)
    old, new = (
        json.loads((tmp_path / "run" / name).read_text())
        for name in ("result-40.json", "result.json")
    )
    assert (old["steps"], new["steps"]) == (40, 44) and old["params_sha256"] != new["params_sha256"]
    with pytest.raises(UserError, match="'44 steps' -> '40 steps'"):
        cerebra_jax.train(cfg, tmp_path / "run", print)


def test_a_run_begins_from_another_ones_weights_and_what_is_frozen_stays(made, tmp_path):
    folder, cfg, run, *_ = made["regression"]
    train = dataclasses.replace(cfg.train, duration="3 steps", freeze=("embed/*", "*/router/*"))
    task = dataclasses.replace(cfg.task, target_scale="quantile")
    new = dataclasses.replace(cfg, train=train, init_from=str(folder), seed=5)
    said: list[str] = []
    tuned = cerebra_jax.train(new, tmp_path / "tuned", said.append)
    [line] = [line for line in said if line.startswith("begins from")]
    assert f"begins from step {run.step:,} of {folder}" in line and "afresh" not in line
    before, after = (trees.named_leaves(r.variables["params"]) for r in (run, tuned))
    for name, array in before.items():
        still = name.startswith("embed/") or "/router/" in name
        assert np.array_equal(array, after[name]) == still, name

    # another target is another head, a table of other categories has other tokens, and a pattern
    # without a parameter is a mistake
    lines = _lines("regression", random.Random(1))
    other = tmp_path / "other.csv"
    other.write_text("\n".join(line.replace(",b,", ",d,") for line in lines) + "\n")
    said.clear()
    quantile = dataclasses.replace(new, task=task)
    cerebra_jax.train(quantile, tmp_path / "quantile", said.append)
    assert [line for line in said if line.endswith("; afresh: head/table")]
    task = dataclasses.replace(cfg.task, path=str(other))
    said.clear()
    cerebra_jax.train(dataclasses.replace(new, task=task), tmp_path / "other", said.append)
    [line] = [line for line in said if line.startswith("begins from")]
    assert line.endswith("; afresh: columns/bias, embed/table")
    [line] = [line for line in said if line.startswith("warning: train.freeze")]
    assert line.endswith("holds still what begins at random: embed/table")
    train = dataclasses.replace(train, freeze=("body/*",))
    with pytest.raises(UserError, match="'body/\\*' names no parameter"):
        cerebra_jax.train(dataclasses.replace(new, train=train), tmp_path / "none", print)
    with pytest.raises(UserError, match="nowhere holds no run"):
        bad = dataclasses.replace(new, init_from=str(tmp_path / "nowhere"))
        cerebra_jax.train(bad, tmp_path / "none", print)


def test_a_run_that_gets_no_better_ends_early_and_is_whole(made, tmp_path):
    _, cfg, *_ = made["classification"]
    train = dataclasses.replace(
        cfg.train, lr=1e-30, duration="30 steps", eval_every="2 steps", patience=2
    )
    said: list[str] = []
    run = cerebra_jax.train(dataclasses.replace(cfg, train=train), tmp_path / "run", said.append)
    [line] = [line for line in said if "stopped early" in line]
    assert line.startswith("step 6 · 2 validations were no better than that of step 2")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["steps"], result["planned_steps"]) == (6, 30)
    assert result["best_step"] == run.step
    assert result["tokens"] == 6 * 16 * result["seq_len"]

    # one that is too short for its patience says so; with more of it a run goes on
    short = dataclasses.replace(train, duration="4 steps")
    cerebra_jax.train(dataclasses.replace(cfg, train=short), tmp_path / "short", said.append)
    assert any("train.patience is 2 and the run has 2 validations" in line for line in said)
    train = dataclasses.replace(train, duration="32 steps", patience=3)
    cerebra_jax.train(dataclasses.replace(cfg, train=train), tmp_path / "run", said.append)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["steps"], result["planned_steps"]) == (8, 32)


def test_eval_tells_each_class_apart(made, tmp_path, capsys):
    folder = made["classification"].folder
    assert main(["eval", f"--workdir={folder}"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((folder / "eval-test.json").read_text())
    confusion = np.array(found["by_class"]["confusion"])
    assert confusion.sum() == 30 and list(found["by_class"]["classes"]) == ["a", "b", "c"]
    assert np.trace(confusion) / 30 == pytest.approx(found["accuracy"])
    assert "precision" in shown and "taken for" in shown
    with pytest.raises(UserError, match="data of this run were not read"):
        cerebra_jax.load(folder).judge()
    with pytest.raises(UserError, match="tells no classes apart"):
        made["regression"].run.judge()


def test_the_command_writes_the_rows_with_their_answers(made, tmp_path, capsys):
    # a missing x, another order, one column more
    new = tmp_path / "new.csv"
    to = tmp_path / "o.csv"
    new.write_text('y,x,name\n41.5,0.5,"a, b"\n39,,c\n')
    folder = made["classification"].folder
    assert main(["predict", f"--workdir={folder}", f"--data={new}", f"--to={to}"]) == 0
    with to.open(newline="") as file:
        rows = list(csv.DictReader(file))
    each = [f"probability of {c}" for c in "abc"]
    assert list(rows[0]) == ["y", "x", "name", "prediction", "probability", *each]
    assert rows[0]["name"] == "a, b"
    expected = made["classification"].run.predict(str(new))
    assert [row["prediction"] for row in rows] == expected["prediction"]
    probabilities = [float(row["probability"]) for row in rows]
    assert probabilities == pytest.approx(expected["probability"], rel=1e-5)
    assert "2 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ({"x": ["1"]}, "names 'y'"),
        ({"x": ["1"], "y": []}, "0, 1 rows"),
        ([], "0 rows"),
        ({"x": ["1"], "y": ["a"]}, "no finite number"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, what, made):
    with pytest.raises(UserError, match=what):
        made["classification"].run.predict(rows)


def test_a_file_is_read_as_the_training_table_was_written(made, tmp_path):
    run = made["classification"].run
    new = tmp_path / "new.csv"
    new.write_bytes(b"x;y\n0.5;41.5\n1.5;39\n".decode().encode("cp500"))  # of a mainframe
    task = dataclasses.replace(run.cfg.task, encoding="cp500", delimiter=";")
    as_it = copy.copy(run)
    as_it.cfg = dataclasses.replace(run.cfg, task=task)
    want = run.predict({"x": ["0.5", "1.5"], "y": ["41.5", "39"]})
    assert as_it.predict(new)["prediction"] == want["prediction"]


def test_an_answer_that_is_no_number_is_named_by_its_row(made):
    with pytest.raises(UserError, match="row 2.*not a finite number"):
        made["regression"].run.predict({"x": ["0.5", "1e30"], "kind": ["a", "b"]})


def test_mistakes_are_one_line(made, tmp_path, capsys):
    folder, cfg, run, _, _ = made["classification"]
    with pytest.raises(UserError, match="task.name=text"):
        run.generate(["a"])
    with pytest.raises(UserError, match="holds no run"):
        cerebra_jax.load(tmp_path)
    with pytest.raises(UserError, match="net.depth|task.target|differ"):
        cerebra_jax.train(made["regression"].cfg, folder, lambda line: None)
    assert main(["predict", f"--workdir={folder}"]) == 2
    assert "--data is missing" in capsys.readouterr().err
