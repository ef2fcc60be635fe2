"""report: the table, its notes, files of every kind, and one line for what cannot be reported."""

from __future__ import annotations

import csv
import io
import json
import math
import re

import pytest

from cerebra_jax.cli import flags, report
from cerebra_jax.errors import UserError
from cerebra_jax.report import compare, runs, tables
from cerebra_jax.report import statistics as stats


def test_table_has_mean_sd_interval_and_costs_of_each_group(folders):
    groups = runs.load(folders)
    text = tables.markdown(tables.grid(groups, {"5-gram": 217.8}), tables.notes(groups, "", 0))
    dense, chiar, also = (
        next(line for line in text.splitlines() if line.startswith(f"| {n}"))
        for n in ("transformer", "chiar", "5-gram")
    )
    assert "| 203.0 ± 3.0 | [195.5, 210.5] |" in dense
    assert "214.0 ± 4.0" in chiar
    assert "| 0.900 | 0.800 | 0.700 | 1.400 | 2.000 |" in chiar
    assert dense.endswith("| 0, 1, 2 |")
    assert "217.8" in also
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_a_figure_that_is_not_known_is_empty(make_run):
    one = make_run("a", "chiar", 0, 200.0, test={"ppl_word": None, "bits_per_byte": 1.5})
    _, row = tables.grid(runs.load([one]), {})
    assert row[2] == ""
    assert row[3] == "1.500"


def test_runs_without_a_figure_that_others_have_leave_it_empty(make_run):
    headline = runs.TEXT_METRICS[0]._asdict()
    runs_of = [
        make_run("a", "transformer", 0, 200.0),
        make_run("b", "chiar", 0, 200.0, test={"ppl_word": 200.0}, metrics=[headline]),
    ]
    head, *rows = tables.grid(runs.load(runs_of), {})
    at = head.index("bits per byte, test")
    assert sorted(row[at] for row in rows) == ["", "1.500"]


def test_what_pruning_leaves_has_a_column_where_any_run_pruned(make_run, folders):
    test = {"ppl_word": 201.0, "bits_per_byte": 1.5, "kept_rel_flops": 0.4}
    pruned = make_run("p", "transformer", 0, 201.0, {"prune.keep": 0.5}, test=test)
    assert "shrunk" not in tables.grid(runs.load(folders), {})[0]
    head, *rows = tables.grid(runs.load([*folders, pruned]), {})
    assert sorted(row[head.index("shrunk")] for row in rows) == ["0.400", "0.700", "0.700"]


def test_attention_calls_are_those_of_routed_layers_and_of_the_last(make_run):
    test = {"ppl_word": 201.0, "bits_per_byte": 1.5, "gates": {"kept": [0.25, 0.25, 0.5, 0.0]}}
    net = {"name": "chiar", "depth": 6, "route": {"mode": "threshold"}}
    runs_of = [
        make_run("c", "chiar", 0, 201.0, net=net, test=test),
        make_run("d", "transformer", 0, 200.0),
    ]
    for i, mode in enumerate(("always_compressed", "always_full")):
        net = {"name": "chiar", "depth": 6, "route": {"mode": mode}}
        runs_of.append(make_run(f"m{i}", "chiar", 0, 201.0, {"net.route.mode": mode}, net=net))
    head, *rows = tables.grid(runs.load(runs_of), {}, brief=True)
    found = {row[0]: row[head.index("attention calls")] for row in rows}
    assert sorted(found.values()) == ["0.167", "0.333", "0.833", "1.000"]
    assert "attention calls" not in tables.grid(runs.load(runs_of[1:2]), {})[0]


def test_costs_in_another_unit_are_told_apart_and_priced_in_flops_too(make_run):
    relative = {"expected": 0.9, "hard": 0.8, "executed": 0.7}
    costs = {
        "counts": "bytes",
        "relative": relative,
        "executed": 5e6,
        "executed_flops": 1e6,
        "dense": 9e6,
    }
    mine = make_run(
        "a", "chiar", 0, 200.0, {"objective.unit": "bytes"}, costs=costs | {"train_total": 1e9}
    )
    groups = runs.load([mine, make_run("b", "transformer", 0, 200.0)])
    (head, dense, chiar) = tables.grid(groups, {})
    place = 8
    assert head[place - 1 : place + 1] == ["executed MFLOP/token", "dense MFLOP/token"]
    assert chiar[0] == "chiar, unit=bytes"
    assert chiar[place - 1 : place + 1] == ["1.000", ""]
    assert dense[0] == "transformer, unit=flops"
    assert dense[place] == "2.000"
    assert "Costs count bytes, flops" in tables.provenance(groups)


def test_verdict_follows_the_interval(make_run, folders):
    (clear,) = compare.lines(runs.load(folders))
    assert clear.startswith("chiar − transformer, ")
    assert "+11.0" in clear
    assert "higher, which is worse" in clear
    noisy = [make_run(f"n{s}", "chiar", s, ppl) for s, ppl in enumerate((150.0, 203.0, 260.0))]
    (overlap,) = compare.lines(runs.load(folders[:3] + noisy))
    assert "no difference shown" in overlap
    assert not re.search("better|worse|higher|lower", overlap)


def test_nothing_is_better_where_the_interval_or_the_number_of_comparisons_allows_no_difference():
    for lower in (True, False):
        for mean in (-1.0, 0.0, 1.0):
            for half in (0.0, 0.5, 1.0, 2.0):
                for p in (0.01, 0.05, 0.2):
                    said = compare.verdict(stats.Paired(mean, half, 3, p), p, lower, 4)
                    shown = abs(mean) > half and p < 0.05
                    assert ("better" in said or "worse" in said) == shown
                    assert ("better" in said) == (shown and (mean < 0) == lower)


def test_many_comparisons_are_corrected_for(make_run, folders):
    """p = 0.03 shows a difference when it is the only one, and not when it is one of two."""
    more = [
        make_run(f"m{r}{s}", "chiar", s, 200.0 + 3 * s + d, {"net.route.rate": r})
        for r in (0.1, 0.2)
        for s, d in enumerate((10.0, 14.0, 18.0))
    ]
    one = compare.comparisons(runs.load(folders[:3] + more[:3]))
    two = compare.comparisons(runs.load(folders[:3] + more))
    assert one[0].p == one[0].found.p == pytest.approx(0.0267, abs=1e-3)
    assert "worse" in one[0].verdict
    assert [c.p for c in two] == [pytest.approx(2 * one[0].p)] * 2
    assert all("by Holm" in c.verdict and "no difference" in c.verdict for c in two)


def test_who_is_compared_with_whom(make_run, folders):
    keys = {"net.route.mode": "threshold"}
    twins = [
        make_run(f"{kind}{s}", "chiar", s, 205.0 + s, keys | {"twin": kind})
        for kind in ("random", "equal_flops")
        for s in range(2)
    ]
    groups = runs.load([*folders, *twins])
    pairs = {(c.name, c.base) for c in compare.comparisons(groups)}
    assert pairs == {
        ("chiar", "transformer"),
        ("chiar", "random twin of chiar"),
        ("chiar", "equal-FLOP twin of chiar"),
        ("random twin of chiar", "transformer"),
        ("equal-FLOP twin of chiar", "transformer"),
    }
    base = compare.baseline(groups, "random")
    assert {c.base for c in compare.comparisons(groups, base)} == {"random twin of chiar"}
    assert len(compare.comparisons(groups, base)) == 3
    for word in ("twin", "lstm"):
        with pytest.raises(UserError, match="choose one of"):
            compare.baseline(groups, word)


def test_csv_is_read_back_exactly(folders):
    groups = runs.load(folders)
    rows = list(csv.DictReader(io.StringIO(tables.csv_groups(groups))))
    assert [row["group"] for row in rows] == list(groups)
    for row in rows:
        for column in tables.columns(groups):
            found = tables.cell(groups[row["group"]], column)
            assert float(row[f"{column.key}_mean"]) == found.mean
            assert float(row[f"{column.key}_sd"]) == found.sd
            assert float(row[f"{column.key}_high"]) == found.mean + found.half
    rows = list(csv.DictReader(io.StringIO(tables.csv_runs(groups))))
    assert [row["run"] for row in rows] == [str(r.path) for g in groups.values() for r in g]
    for row in rows:
        run = next(r for r in groups[row["group"]] if r.seed == int(row["seed"]))
        assert all(float(row[c.key]) == c.get(run) for c in tables.columns(groups))
        assert row["net.name"] == run.config["net"]["name"]


def test_csv_of_one_seed_leaves_its_spread_empty_and_quotes_what_it_must(make_run):
    groups = runs.load(
        [make_run(f"r{s}", "chiar", 0, 1.0, {"train.duration": d}) for s, d in enumerate('a",b')]
    )
    rows = list(csv.DictReader(io.StringIO(tables.csv_groups(groups))))
    assert {row["group"] for row in rows} == set(groups) == {f"chiar, duration={d}" for d in 'a",b'}
    assert all(row["test_ppl_word_sd"] == row["test_ppl_word_low"] == "" for row in rows)


def test_latex_escapes_every_special_character():
    text = "a&b%c$d#e_f{g}h~i^j\\k ± − λ"
    out = tables.escape_latex(text)
    assert out == (
        r"a\&b\%c\$d\#e\_f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k "
        r"$\pm$ $-$ $\lambda$"
    )
    table = tables.latex([["model", "50 %"], ["a_b", "1 & 2"]], ["a note\nof two lines"])
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert rows == [r"model & 50 \% \\", r"a\_b & 1 \& 2 \\"]
    assert "% a note of two lines\n" in table
    assert r"\begin{tabular}{lr}" in table


def test_a_pipe_does_not_break_a_markdown_table():
    head, _, row = tables.markdown([["model"], ["a|b\nc"]], []).splitlines()
    assert row == r"| a\|b c |"


def test_writes_between_the_marks_and_nowhere_else(tmp_path, folders, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- RESULTS: begin. x -->\nOLD TEXT\n<!-- RESULTS: end -->\nafter\n")
    report.run(
        flags.parse(
            [
                "report",
                *map(str, folders),
                f"--into={page}",
                f"--plot={tmp_path / 'x' / 'curves.svg'}",
            ]
        )
    )
    text = page.read_text()
    assert text.startswith("before\n<!-- RESULTS: begin. x -->\n| model")
    assert text.endswith("end -->\nafter\n")
    assert "OLD TEXT" not in text
    assert "| model" in capsys.readouterr().out
    assert "transformer" in (tmp_path / "x" / "curves.svg").read_text()
    report.run(flags.parse(["report", *map(str, folders), f"--into={page}"]))
    assert page.read_text() == text


def test_a_brief_table_is_part_of_the_whole_one(folders):
    groups = runs.load(folders)
    whole = tables.grid(groups, {"other": 5.0})
    brief = tables.grid(groups, {"other": 5.0}, brief=True)
    assert brief[0][1:3] == ["perplexity per word, test", "95 % interval"]
    assert len(brief[0]) < len(whole[0])
    at = [whole[0].index(name) for name in brief[0]]
    assert brief == [[row[i] for i in at] for row in whole]
    assert brief[-1][1] == "5"
    assert set(tables.notes(groups, "", 0, True)) < set(tables.notes(groups, "", 0))


def test_a_file_holds_several_tables_by_name(tmp_path, folders):
    page = tmp_path / "page.md"
    empty = (
        "<!-- RESULTS: begin -->\nA\n<!-- RESULTS: end -->\n"
        "<!-- RESULTS two: begin -->\nB\n<!-- RESULTS two: end -->\n"
    )
    page.write_text(empty)
    report.run(flags.parse(["report", *map(str, folders), f"--into={page}#two"]))
    first, _, second = page.read_text().partition("<!-- RESULTS two: begin -->\n")
    assert first == empty.partition("<!-- RESULTS two")[0]
    assert second.startswith("| model")
    assert second.endswith("\n<!-- RESULTS two: end -->\n")


def test_every_kind_of_file_is_written(tmp_path, folders):
    names = ("new/t.csv", "r.csv", "t.tex", "p.html", "c.svg", "f.png", "f.pdf")
    files = dict(zip(("csv", "runs-csv", "latex", "html", "plot", "pareto"), names, strict=False))
    report.run(
        flags.parse(
            [
                "report",
                *map(str, folders),
                *(f"--{option}={tmp_path / name}" for option, name in files.items()),
            ]
        )
    )
    start = {
        "new/t.csv": b"group,n",
        "r.csv": b"group,run",
        "t.tex": b"% needs",
        "p.html": b"<!DOCTYPE html>",
        "c.svg": b"<?xml",
        "f.png": b"\x89PNG",
    }
    for name, first in start.items():
        assert (tmp_path / name).read_bytes().startswith(first), name


def test_the_folder_of_a_sweep_stands_for_its_finished_runs(tmp_path, make_run, capsys):
    for s in range(2):
        make_run(f"sweep/a-s{s}", "chiar", s, 200.0)
    (make_run("sweep/a-s2", "chiar", 2, 200.0) / "result.json").unlink()
    (tmp_path / "sweep" / "notes").mkdir()
    report.run(flags.parse(["report", str(tmp_path / "sweep")]))
    out = capsys.readouterr().out
    assert "| 0, 1 |" in out
    assert "1 unfinished runs are left out." in out


def test_runs_under_a_budget_say_how_far_they_ended_from_it(tmp_path, make_run, folders):
    for s, off in enumerate((0.01, -0.02)):
        relative = {"expected": 0.9, "hard": 0.8, "executed": 0.7 * (1 + off)}
        costs = {"relative": relative, "executed": 1.4e6, "dense": 2e6, "train_total": 6e9}
        path = make_run(f"b{s}", "chiar", s, 200.0, {"objective.budget": 0.7}, costs=costs)
        line = {
            "split": "train",
            "loss": 1.0,
            "executed_rel_flops": 0.7,
            "hard_rel_flops": 0.7,
            "multiplier": 2.0,
            "budget_target": 0.7,
            "budget_gap": 0.25,
        }
        (path / "metrics.jsonl").write_text(
            "".join(json.dumps(line | {"step": i}) + "\n" for i in range(1, 61))
        )
    groups = runs.load([tmp_path / "b0", tmp_path / "b1"])
    (line,) = tables.held(groups)
    assert "budget 0.7" in line
    assert "executed -2.0%" in line
    assert "hard cost +14.3% " in line
    assert "2 seeds" in line
    assert tables.held(runs.load(folders)) == []
    report.run(
        flags.parse(["report", *map(str, tmp_path.glob("b?")), f"--budgets={tmp_path / 'gap.svg'}"])
    )
    assert "duality gap" in (tmp_path / "gap.svg").read_text()
    with pytest.raises(UserError, match="has a budget"):
        report.run(
            flags.parse(["report", *map(str, folders), f"--budgets={tmp_path / 'none.svg'}"])
        )


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "required"),
        (["{tmp}/none"], "no finished run"),
        (["{tmp}/d0/result.json"], "no finished run"),
        (["{d0}", "{d0}"], "are both seed 0 of transformer"),
        (["{d0}", "{other}"], "different data sets"),
        (["{d0}", "--also=x"], "write --also=NAME:FIGURE"),
        (["{d0}", "--into={tmp}/none.md"], "there is no"),
        (["{d0}", "--into={d0}/result.json"], "lacks the marks"),
        (["{d0}", "--into={d0}/result.json#two"], "RESULTS two: begin"),
        (["{d0}", "--intoo=x"], "did you mean --into"),
        (["{d0}", "--html"], "--html needs a value"),
        (["{d0}", "--baseline=lstm"], "names no group"),
        (["{d0}", "--plot={tmp}/x.gif"], "is no figure"),
    ],
)
def test_mistakes_are_one_line(tmp_path, make_run, folders, words, what):
    other = make_run("other", "chiar", 0, 1.0, dataset="text:mine")
    filled = [w.format(tmp=tmp_path, d0=folders[0], other=other) for w in words]
    with pytest.raises(UserError, match=what):
        report.run(flags.parse(["report", *filled]))


def test_one_seed_has_no_spread():
    assert math.isnan(stats.mean_sd([1.0])[1])
    assert tables.mean_text(tables.Cell(1.0, math.nan, math.nan, 1), 2) == "1.00"
