"""Operator use over training: the table tells what the lines say, and all groups are drawn."""

from __future__ import annotations

import json

import pytest

from cerebra_jax.cli import flags, report
from cerebra_jax.errors import UserError
from cerebra_jax.report import operator_use as uses
from cerebra_jax.report import runs


@pytest.fixture
def made(make_run):
    """Two seeds of a learned choice, a threshold of two operators, and a dense run.

    The first layer of the learned choice goes to attention alone.
    """

    def lines(path, of):
        line = {"split": "train", "loss": 3.0, "executed_rel_flops": 1.0}
        rows = (line | {"step": i, "gates": of(i)} for i in range(1, 61))
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def learned(i):
        attention = 0.402 + 0.01 * i  # layer 1: 1.0 at the end
        return {
            "use_dct": [0.6 * (1 - attention), 0.5],
            "use_rbf": [0.4 * (1 - attention), 0.25],
            "use_attention": [attention, 0.25],
            "kept": [attention, 0.25],
        }

    three = {"net.route.rbf": 0.3, "net.route.mode": "hard"}
    found = [lines(make_run(f"h{s}", "chiar", s, 200.0, three), learned) for s in range(2)]
    two = lines(
        make_run("t0", "chiar", 0, 210.0),
        lambda i: {"use_dct": [0.75, 0.7], "use_attention": [0.25, 0.3]},
    )
    return [*found, two, make_run("d0", "transformer", 0, 220.0)]


def test_the_table_says_where_each_layer_began_and_ended(made):
    head, *rows = uses.rows(runs.load(made))
    assert head == ["model", "operator", "layer 1", "layer 2", "layers with one operator alone"]
    of = {(row[0].partition(",")[0] + str("rbf=0.3" in row[0]), row[1]): row[2:] for row in rows}
    # the first six steps and the last six: 0.402 + 0.01 · 3.5 and 0.402 + 0.01 · 57.5
    assert of["chiarTrue", "attention"] == ["0.44 → 0.98", "0.25 → 0.25", "2 of 4"]
    assert of["chiarTrue", "rbf"][0] == "0.23 → 0.01"
    assert of["chiarTrue", "dct"][1] == "0.50 → 0.50"
    assert of["chiarFalse", "dct"] == ["0.75 → 0.75", "0.70 → 0.70", "0 of 2"]
    assert ("chiarFalse", "rbf") not in of
    assert len(rows) == 5


def test_report_draws_and_prints_it_and_the_page_has_both(made, tmp_path, capsys):
    report.run(
        flags.parse(
            [
                "report",
                *map(str, made),
                f"--uses={tmp_path / 'u.svg'}",
                f"--html={tmp_path / 'p.html'}",
            ]
        )
    )
    svg = (tmp_path / "u.svg").read_text()
    shown = capsys.readouterr().out
    assert all(
        word in svg for word in ("layer 1", "layer 2", "dct", "rbf", "attention", "mode=hard")
    )
    assert "| 0.44 → 0.98 | 0.25 → 0.25 | 2 of 4 |" in shown
    assert "mean of the first" in shown
    page = (tmp_path / "p.html").read_text()
    assert "Operators over training" in page
    assert "<td>0.44 → 0.98</td>" in page


def test_runs_that_do_not_say_are_refused(folders):
    with pytest.raises(UserError, match="which operators"):
        uses.rows(runs.load(folders))
