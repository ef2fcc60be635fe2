"""A finished run from Python and from the command line: it answers as it was measured, in any form of the rows."""

from __future__ import annotations

import csv
import json
import random

import numpy as np
import pytest

import cerebra_jax
from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.main import main
from cerebra_jax.tasks.examples import cut
from cerebra_jax.tasks.registry import build
from cerebra_jax.tasks.table import read
from cerebra_jax.training import trainer as loop

NET = {"name": "cerebra", "causal": False, "depth": 1, "width": 16, "heads": 2, "ffn_width": 16,
       "compress": {"kind": "attention"}, "route": {"mode": "topk", "part": "block", "kv": "routed"}}  # fmt: skip
TASKS = {"regression": {"name": "tabular", "target": "y"}, "classification": {"name": "tabular", "target": "kind"},
         "intent": {"name": "intent", "tokenizer": "words", "subwords": 64, "buckets": 2}}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, Screen):
    """kind -> (folder of a trained run, table that it was made from, what the test split measured)."""
    made = {}
    rng = random.Random(0)
    for kind, task in TASKS.items():
        folder = tmp_path_factory.mktemp(kind)
        if kind == "intent":
            rows = [(rng.choice(["ask", "tell"]), rng.randint(1, 12)) for _ in range(300)]
            lines = ["text,label", *(f"{label} {'me ' * n}now,{label}" for label, n in rows)]
        else:
            lines = ["x,kind,y"]
            for _ in range(300):
                x, c = rng.gauss(0, 1), rng.choice("abc")
                lines.append(f"{x:.3f},{c},{3 * x + 'abc'.index(c) + 40:.3f}")
        (folder / "t.csv").write_text("\n".join(lines) + "\n")
        train = {
            "duration": "40 steps",
            "batch_size": 16,
            "eval_every": "40 steps",
            "checkpoint_every": "40 steps",
        }
        task = {"seq_len": 0, "path": str(folder / "t.csv")} | task
        cfg = config.parse({"task": task, "net": NET, "train": train | {"devices": 1, "lr": 3e-3}})
        result = loop.run(cfg, build(cfg, lambda line: None), folder, Screen(), lambda: False)
        (folder / "config.json").write_text(json.dumps(config.to_dict(cfg)))
        made[kind] = folder, read(str(folder / "t.csv")), result["test"]
    return made


@pytest.mark.parametrize("kind", TASKS)
def test_it_answers_as_it_was_measured_without_seeing_the_answers(kind, runs):
    folder, table, measured = runs[kind]
    rows = cut(table.rows, 0.1, 0.1)["test"]
    target = {"regression": "y", "classification": "kind", "intent": "label"}[kind]
    columns = {name: [c[i] for i in rows] for name, c in table.columns.items()}
    truth = columns.pop(target)
    run = cerebra_jax.load(folder)
    found = run.predict(columns, batch_size=7)
    assert len(found["prediction"]) == len(rows)
    if kind == "regression":
        error = np.asarray(found["prediction"]) - np.asarray(truth, float)
        assert np.sqrt(np.square(error).mean()) == pytest.approx(measured["rmse"], rel=1e-4)
    else:
        right = [a == b for a, b in zip(found["prediction"], truth, strict=True)]
        assert np.mean(right) == pytest.approx(measured["accuracy"])
        assert all(1 / 3 - 1e-6 < p <= 1 for p in found["probability"])
    names = list(columns)
    dicts = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    again = run.predict(columns["text"] if kind == "intent" else dicts)
    assert (
        again["prediction"] == pytest.approx(found["prediction"], rel=1e-4)
        if kind == "regression"
        else True
    )
    if kind != "regression":
        assert again["prediction"] == found["prediction"]


def test_the_command_writes_the_rows_with_their_answers(runs, tmp_path, capsys):
    folder, table, _ = runs["classification"]
    (tmp_path / "new.csv").write_text(
        'y,x,name\n41.5,0.5,"a, b"\n39,,c\n'
    )  # a missing x, another order, one more
    assert (
        main(
            [
                "predict",
                f"--workdir={folder}",
                f"--data={tmp_path / 'new.csv'}",
                f"--to={tmp_path / 'o.csv'}",
            ]
        )
        == 0
    )
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        list(rows[0]) == ["y", "x", "name", "prediction", "probability"]
        and rows[0]["name"] == "a, b"
    )
    want = cerebra_jax.load(folder).predict(str(tmp_path / "new.csv"))
    assert [row["prediction"] for row in rows] == want["prediction"]
    assert [float(row["probability"]) for row in rows] == pytest.approx(
        want["probability"], rel=1e-5
    )
    assert "2 rows" in capsys.readouterr().out


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    folder, _, _ = runs["classification"]
    run = cerebra_jax.load(folder)
    for rows, what in (({"x": ["1"]}, "names 'y'"), ({"x": ["1"], "y": []}, "0, 1 rows"), ([], "0 rows"),
                       ({"x": ["1"], "y": ["a"]}, "not a number")):  # fmt: skip
        with pytest.raises(UserError, match=what):
            run.predict(rows)
    with pytest.raises(UserError, match="task.name=text"):
        run.generate(["a"])
    with pytest.raises(UserError, match="holds no run"):
        cerebra_jax.load(tmp_path)
    assert (
        main(["predict", f"--workdir={folder}"]) == 2
        and "--data is missing" in capsys.readouterr().err
    )
