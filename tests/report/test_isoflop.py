"""report --isoflop: what is read of folders, envelopes, multipliers, and files of every kind."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from cerebra_jax.cli import flags, report
from cerebra_jax.errors import UserError
from cerebra_jax.report import isoflop, isoflop_multiplier
from cerebra_jax.report.isoflop_multiplier import Best, Estimate, Sizes, best, verdict
from cerebra_jax.report.statistics import holm
from tests.report.isoflop_runs import SEEDS, SIZES, Kind, family, write, write_all
from tests.report.test_page import Page

DENSE = Kind()
BUDGET = 1.5e13


def run(*words: object) -> None:
    """Runs the command with --isoflop."""
    report.run(flags.parse(["report", *map(str, words), "--isoflop"]))


# ---- envelopes and multipliers


def test_the_envelope_is_below_every_size_and_needed_is_its_inverse():
    found = family("dense", DENSE, 0.01)
    sizes = Sizes.of(found)
    for law in (found.fit.law, found.fit.draws):
        for C in (2e12, 1e13, 3e14):
            N_S, loss_S = sizes.envelope(law, C)
            loss_SxK = law.loss(sizes.N_K, C / (3 * sizes.flops_K))
            assert (loss_S[:, None] <= loss_SxK + 1e-12).all()
            assert ((N_S >= min(SIZES.values())) & (N_S <= max(SIZES.values()))).all()
            assert sizes.needed(law, loss_S) == pytest.approx(C, rel=1e-6)


def test_flops_of_a_token_go_through_those_of_the_ladder_and_rise_between_them():
    sizes = Sizes.of(family("dense", DENSE))
    for N in SIZES.values():
        assert sizes.flops_K[np.argmin(abs(sizes.N_K - N))] == pytest.approx(DENSE.per_token(N))
    assert (np.diff(sizes.flops_K) > 0).all()


@pytest.mark.parametrize("factor", [0.4, 0.8, 1.0, 1.3, 2.0])
def test_a_family_whose_tokens_cost_less_has_that_multiplier(factor):
    """The law of dense with FLOPs cut by a factor: dense needs that factor for every loss."""
    cheap = family("cheap", DENSE._replace(flops=DENSE.flops / factor, seconds=2e-9))
    dense = family("dense", DENSE)
    for budget in cheap.budgets:
        found = best(cheap, budget, dense)
        assert found.flops.value == pytest.approx(factor, rel=1e-3)
        # its FLOPs take twice as long
        assert found.hours.value == pytest.approx(factor / 2, rel=1e-3)


def test_the_interval_of_a_multiplier_holds_the_truth():
    kind = DENSE._replace(flops=1.6, E=3.02)
    exact = best(family("other", kind), BUDGET, family("dense", DENSE)).flops.value
    held = 0
    for salt in range(40):
        other, dense = family("other", kind, 0.01, salt), family("dense", DENSE, 0.01, salt + 1000)
        found = best(other, BUDGET, dense).flops
        held += found.low <= exact <= found.high
    assert 36 <= held <= 40


def test_nothing_is_better_where_an_interval_contains_one():
    """Families that are dense: their verdicts are right as often as an interval is."""
    verdicts = []
    for salt in range(20):
        same, dense = family("same", DENSE, 0.01, salt), family("dense", DENSE, 0.01, salt + 1000)
        for budget in same.budgets:
            found = best(same, budget, dense)
            verdicts.append(verdict(found))
            inside = found.flops.low <= 1 <= found.flops.high
            assert verdicts[-1] == "no difference shown" or not inside
    assert verdicts.count("no difference shown") >= 50


@pytest.mark.parametrize("source", ["flops", "measured"])
def test_a_verdict_is_said_of_an_interval_only(source):
    cell = family("dense", DENSE).cells[0]
    nothing = Best(cell, None, math.nan, False, None, None, None)
    assert verdict(nothing) == ""
    for low, high in ((0.5, 0.9), (0.9, 1.1), (1.0, 2.0), (1.1, 2.0), (1.1, math.inf)):
        for p in (0.01, 0.06):
            for mark in ("", "†"):
                words = verdict(nothing._replace(**{source: Estimate(1.0, low, high, mark, p)}))
                assert ("better" in words) == (low > 1 and p < 0.05)
                assert ("worse" in words) == (high < 1 and p < 0.05)
                assert ("no difference" in words) == (low <= 1 <= high or p > 0.05)
                assert ("continuing" in words) == bool(mark and "difference" not in words)
    assert verdict(nothing._replace(measured=Estimate(2.0, math.nan, math.nan))) == "no interval"


def test_a_loss_that_dense_never_comes_to_is_said_and_one_that_is_far_is_a_bound():
    dense = family("dense", DENSE)
    below = best(family("a", DENSE._replace(E=0.5)), BUDGET, dense).flops
    assert math.isinf(below.value) and below.mark == "†"
    far = best(family("b", DENSE._replace(flops=0.02)), BUDGET, dense).flops
    assert far.mark == ">"
    assert far.value == pytest.approx(5e13 * isoflop_multiplier.REACH / BUDGET, rel=1e-3)
    near = best(family("c", DENSE._replace(flops=0.5)), BUDGET, dense).flops
    assert (near.mark, near.value) == ("†", pytest.approx(4.0, rel=1e-3))


def test_without_fits_losses_alone_are_compared_and_no_size_is_computed():
    seeds = {"5e12": 3}
    other = family("other", DENSE._replace(flops=1.5, seconds=2e-9), 0.01, seeds=seeds)
    assert other.fit is None and "tokens: 5" in other.doubt
    found = best(other, 5e12, family("dense", DENSE, 0.01, seeds=SEEDS))
    assert (found.flops, found.loss) == (None, None)
    assert found.hours.value == pytest.approx(found.measured.value / 2, rel=1e-3)
    assert math.isnan(found.N)
    assert 1.0 < found.measured.value < 2.0


def cells(losses: dict[str, list[float]]) -> list[isoflop.Cell]:
    """Returns a cell a budget, with these losses of seeds 0, 1, …"""
    kinds = family("dense", DENSE, seeds={b: len(v) for b, v in losses.items()})
    found = []
    for budget, values in losses.items():
        cell = next(c for c in kinds.at(float(budget)) if c.size == "3x96")
        for run, loss in zip(cell.runs, values, strict=True):
            run.result["val"]["loss"] = loss
        found.append(cell)
    return found


@pytest.mark.parametrize(
    ("loss", "times", "mark"),
    [
        (5.0, 10**0.5, ""),  # half way from 1e13 to 1e14
        (6.0, 10**-0.5, "†"),
        (3.0, 10**2, "†"),  # from 1e14 as far as from 1e13 to it, and half as far
        (0.1, 10**2.0, ">"),
        (9.0, 10**-1.0, "<"),
    ],
)
def test_the_measured_multiplier_is_log_linear_and_ends_in_a_bound(loss, times, mark):
    dense = cells({"1e13": [5.5, 5.5], "1e14": [4.5, 4.5]})
    (own,) = cells({"1e13": [loss, loss]})
    if loss == 3.0:
        dense = cells({"1e13": [6.0, 6.0], "1e14": [4.5, 4.5]})
    found = isoflop_multiplier.by_losses(own, dense)
    assert found.value == pytest.approx(times, rel=1e-3)
    assert found.mark == mark
    if mark in ("", "†"):
        assert found.low == pytest.approx(found.value)
    else:
        assert math.isnan(found.low)


def test_the_measured_interval_is_of_seeds_that_all_have():
    dense = cells({"1e13": [5.5, 5.52, 5.48], "1e14": [4.5, 4.51]})
    (own,) = cells({"1e13": [5.0, 5.02, 4.9]})
    found = isoflop_multiplier.by_losses(own, dense)
    assert found.low < found.value < found.high
    (one,) = cells({"1e13": [5.0]})
    assert math.isnan(isoflop_multiplier.by_losses(one, dense).low)
    assert isoflop_multiplier.by_losses(own, dense[:1]) is None
    assert isoflop_multiplier.by_losses(own, dense[::-1]) is None


# ---- what is read


def test_a_learning_rate_grid_is_passed_over_and_changes_nothing(make_run, capsys):
    folders = write_all(make_run, {"dense": DENSE})
    run(*folders)
    before = capsys.readouterr().out
    grid = [
        write(make_run, f"dense@5e12,2x32,lr={lr}-s0", DENSE, noise=-3.0) for lr in (0.001, 2e-05)
    ]
    run(*folders, *grid)
    after = capsys.readouterr().out
    note = "2 runs are left out: of a learning-rate grid (lr= in the folder's name).\n\n"
    assert note in after
    assert before == after.replace(note, "")


@pytest.mark.parametrize(
    "name",
    ["dense-s0", "dense@5e12-s0", "dense@5e12,2x32", "dense@,2x32-s0", "@5e12,2x32-s0"]
    + ["dense@big,2x32-s0", "dense@0,2x32-s0", "dense@5e12,2x32,k=3-s0", "dense@5e999,2x32-s0"],
)
def test_another_name_is_refused_in_a_line(make_run, name):
    folder = make_run(name, "transformer", 0, 200.0)
    with pytest.raises(UserError, match="FAMILY@BUDGET,SIZE-sSEED"):
        isoflop.load([folder])


def test_names_are_read():
    for text, expected in {
        "dense@5e12,3x96-s0": ("dense", 5e12, "3x96", False),
        "cerebra-random-gate1@1.5e+13,8x320-s12": ("cerebra-random-gate1", 1.5e13, "8x320", False),
        "mod@20000,2x32,lr=0.002-s0": ("mod", 2e4, "2x32", True),
    }.items():
        assert isoflop.read_name(Path("runs") / text) == expected
        assert float(isoflop.power(expected[1])) == expected[1]


def test_runs_that_do_not_belong_together_are_refused(make_run):
    a = write(make_run, "dense@5e12,2x32-s0", DENSE)
    for seed, change, words in (
        (1, {"data": {"sha256": "1234567890"}}, "different data"),
        (0, {}, "same seed"),
        (1, {"params_non_embedding": 7}, "different sizes"),
        (1, {"params_non_embedding": None}, "params_non_embedding is null"),
        (1, {"train_s": "long"}, "train_s"),
        (1, {"val": {"ppl_word": 3.0}}, "val.loss is missing"),
    ):
        folder = f"{words.replace(' ', '_')}/dense@5e12,2x32-s{seed}"
        b = write(make_run, folder, DENSE, **change)
        with pytest.raises(UserError, match=words):
            isoflop.load([a, b])


def test_a_run_that_executed_another_budget_than_its_name_says_is_refused(make_run):
    folder = write(make_run, "dense@5e12,2x32-s0", DENSE)
    other = folder.rename(folder.parent / "dense@6e12,2x32-s0")
    with pytest.raises(UserError, match="executed 5e.12 training FLOPs, not its 6e.12"):
        isoflop.load([other])


def test_many_comparisons_are_corrected_by_holm():
    families = [family(name, DENSE, 0.01, salt) for salt, name in enumerate(("dense", "a", "b"))]
    found = isoflop_multiplier.compare(isoflop.Study(families))
    alone = [best(one, C, families[0]).flops.p for one in families[1:] for C in one.budgets]
    shown = [b.judged.p for one, _, b in found.bests if one is not families[0]]
    assert shown == pytest.approx(holm(alone)) and shown != pytest.approx(alone)


@pytest.mark.parametrize(("scale", "is_end"), [(1.0, False), (0.01, True), (100.0, True)])
def test_a_best_size_at_an_end_of_those_with_its_budget_is_marked(scale, is_end):
    """The best size follows A: a law that small or large models suit best."""
    found = family("dense", DENSE._replace(A=DENSE.A * scale))
    budget = found.budgets[1]
    assert best(found, budget, None).at_end == is_end


def test_a_result_of_an_earlier_version_says_to_train_again(make_run):
    folder = write(make_run, "dense@5e12,2x32-s0", DENSE)
    for key in ("params_non_embedding", "train_s"):
        result = json.loads((folder / "result.json").read_text())
        kept = dict(result)
        del result[key]
        (folder / "result.json").write_text(json.dumps(result))
        with pytest.raises(UserError, match=f"{key} is missing") as error:
            isoflop.load([folder])
        assert "train it again" in error.value.hint
        (folder / "result.json").write_text(json.dumps(kept))


def test_only_a_grid_and_another_task_are_refused(make_run):
    grid = write(make_run, "dense@5e12,2x32,lr=0.1-s0", DENSE)
    with pytest.raises(UserError, match="learning-rate grid"):
        isoflop.load([grid])
    folder = make_run("dense@5e12,2x32-s0", "transformer", 0, 1.0, {"task.name": "intent"})
    with pytest.raises(UserError, match="task intent"):
        isoflop.load([folder])


# ---- what is written

KINDS = {
    "dense": DENSE,
    "cerebra": DENSE._replace(flops=1.4),
    "same": DENSE,
    "low": DENSE._replace(E=0.5),
}


@pytest.fixture
def folders(make_run) -> list[Path]:
    """Four families, and one of a single run."""
    return [*write_all(make_run, KINDS), write(make_run, "few@5e12,2x32-s0", DENSE)]


def test_every_file_says_the_same(folders, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "README.md").write_text(
        "a\n<!-- RESULTS iso: begin -->\n<!-- RESULTS iso: end -->\n"
    )
    files = [f"--{k}={tmp_path / n}" for k, n in (
        ("csv", "a.csv"), ("runs-csv", "runs.csv"), ("latex", "a.tex"), ("html", "a.html"),
        ("plot", "curves.svg"), ("pareto", "envelopes.svg"), ("into", "README.md#iso"),
    )]  # fmt: skip
    run(*folders, *files)
    written = capsys.readouterr().out

    # Markdown: three tables, each a rectangle
    blocks = [b for b in written.split("\n\n") if b.startswith("|")]
    assert len(blocks) == 3
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    rows = [line.split(" | ") for line in blocks[0].splitlines()[2:]]
    assert len(rows) == len(KINDS) * len(SEEDS) + 1
    assert (tmp_path / "README.md").read_text().count(blocks[0]) == 1

    # CSV: read back, the multiplier that Markdown shows
    table = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    of_cerebra = [row for row in table if row["family"] == "cerebra"]
    for row in of_cerebra:
        assert float(row["flops_multiplier"]) == pytest.approx(2 / 1.4, rel=0.03)
        shown = f"{float(row['flops_multiplier']):.2f}"
        assert any(shown in cell for line in rows for cell in line if line[0] == "| cerebra")
    runs = list(csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text())))
    assert len(runs) == len(KINDS) * len(SEEDS) * len(SIZES) * 2 + 1
    for row in table:
        losses: dict[str, list[float]] = {}
        for one in runs:
            if (one["family"], one["budget"]) == (row["family"], row["budget"]):
                losses.setdefault(one["size"], []).append(float(one["valid_loss"]))
        means = {size: np.mean(values) for size, values in losses.items()}
        assert row["best_size"] == min(means, key=lambda size: means[size])
        assert float(row["valid_loss"]) == pytest.approx(min(means.values()))

    # the page and the figures
    page = Page((tmp_path / "a.html").read_text())
    assert page.tags.count("img") == 2
    assert "no difference shown" in page.cells
    assert not re.search("https?://", re.sub('base64,[^"]*', "", (tmp_path / "a.html").read_text()))
    for name in ("curves.svg", "envelopes.svg"):
        figure = (tmp_path / name).read_text()
        assert all(f">{family_name}<" in figure for family_name in KINDS)
    assert ">1.5e13<" in (tmp_path / "curves.svg").read_text()
    assert r"\bottomrule" in (tmp_path / "a.tex").read_text()


def test_what_is_not_known_is_said(folders, capsys):
    run(*folders)
    written = capsys.readouterr().out
    assert "few has no fit: different pairs of size and tokens: 1, and at least 6" in written
    assert "| few | no fit |" in written
    assert "| dense does not reach it†" in written
    for line in written.splitlines():
        if line.startswith("| same "):
            assert "better" not in line and "worse" not in line


def test_without_dense_nothing_is_compared_and_another_base_can_be_named(make_run, capsys):
    folders = write_all(make_run, {"a": DENSE, "b": DENSE._replace(flops=1.0)})
    run(*folders)
    alone = capsys.readouterr().out
    assert "No family is called dense" in alone and "beside" not in alone
    run(*folders, "--baseline=a", "--brief")
    compared = capsys.readouterr().out
    assert (
        "FLOPs a needs, ×" in compared
        and "| by FLOPs, beside a |" in compared
        and "noise of" not in compared
    )
    with pytest.raises(UserError, match="--baseline=c names no family"):
        run(*folders, "--baseline=c")


@pytest.mark.parametrize("option", ["--by-folder", "--also=x:1", "--budgets=b.svg", "--uses=u.svg"])
def test_options_that_mean_nothing_here_are_refused(make_run, option):
    folder = write(make_run, "dense@5e12,2x32-s0", DENSE)
    with pytest.raises(UserError, match=re.escape(option.partition("=")[0])):
        run(folder, option)


def test_unfinished_runs_are_counted(make_run, tmp_path, capsys):
    write(make_run, "sweep/dense@5e12,2x32-s0", DENSE)
    other = write(make_run, "sweep/dense@5e12,2x32-s1", DENSE)
    (other / "result.json").unlink()
    run(tmp_path / "sweep")
    assert "1 run is left out: not finished." in capsys.readouterr().out
