"""report: means, paired intervals, marks in a file, and one line for what cannot be reported."""

import json
import math

import numpy as np
import pytest
import scipy.stats

from cerebra_jax import config
from cerebra_jax.cli import report
from cerebra_jax.errors import UserError
from cerebra_jax.report import runs, tables


def write_run(path, name: str, seed: int, ppl: float, dataset: str = "wikitext2"):
    path.mkdir()
    result = {
        "model": name, "seed": seed, "dataset": dataset, "params": 1_500_000, "steps": 60, "tokens": 6000,
        "val": {"ppl_word": ppl + 10}, "test": {"ppl_word": ppl, "bits_per_byte": 1.5}, "step_ms": 100.0 + seed,
        "costs": {"relative": {"expected": 0.9, "hard": 0.8, "executed": 0.7}, "executed": 1.4e6, "dense": 2e6,
                  "train_total": 6e9},
        "device": {"device": "cpu", "cores": 2, "jax": "0.10.2"}, "wall_s": 60.0, "commit": "abc",
    }  # fmt: skip
    (path / "result.json").write_text(json.dumps(result))
    (path / "config.json").write_text(json.dumps(config.to_dict(config.parse({"net": {"name": name}, "seed": seed}))))
    lines = [{"step": i, "split": "train", "loss": 8 - i / 20, "executed_rel_flops": 1.0} for i in range(1, 61)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def folders(tmp_path):
    dense = [write_run(tmp_path / f"d{s}", "transformer", s, 200.0 + 3 * s) for s in range(3)]
    chiar = [write_run(tmp_path / f"c{s}", "chiar", s, 210.0 + 4 * s) for s in range(3)]
    return dense + chiar


def test_table_has_mean_sd_and_costs_of_each_group(folders):
    text = tables.markdown(runs.load(folders), {"5-gram": 217.8})
    dense, chiar, also = (next(line for line in text.splitlines() if line.startswith(f"| {n}")) for n in
                          ("transformer", "chiar", "5-gram"))  # fmt: skip
    assert "203.0 ± 3.0" in dense and "214.0 ± 4.0" in chiar and "| 0.900 | 0.800 | 0.700 |" in chiar
    assert dense.endswith("| 0, 1, 2 |") and "217.8" in also


def test_a_twin_is_named_after_what_ran_and_what_it_is_a_twin_of(tmp_path):
    path = write_run(tmp_path / "t", "chiar", 0, 200.0)
    result = json.loads((path / "result.json").read_text())
    result["net"] = config.to_dict(config.parse({"net": {"name": "transformer", "width": 112}}))["net"]
    (path / "result.json").write_text(json.dumps(result))
    (path / "config.json").write_text(json.dumps(config.to_dict(config.parse({"twin": "equal_flops"}))))
    assert list(runs.load([path])) == ["transformer 6x112, L=256, pre-LN (equal_flops twin of chiar)"]


def test_paired_interval_is_the_t_interval_of_the_differences():
    rng = np.random.RandomState(0)
    for n in (2, 3, 7, 11):
        a, b = rng.standard_normal(n), rng.standard_normal(n)
        mean, half, count = runs.paired(dict(enumerate(a)), dict(enumerate(b)) | {99: 1.0})
        low, high = scipy.stats.t.interval(0.95, n - 1, (a - b).mean(), scipy.stats.sem(a - b))
        assert count == n
        np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-3)
    assert runs.paired({0: 1.0}, {0: 2.0}) is None
    assert math.isnan(runs.mean_sd([1.0])[1])


def test_verdict_follows_the_interval(tmp_path, folders):
    (clear,) = tables.differences(runs.load(folders))
    assert "+11.0" in clear and "higher than dense" in clear
    noisy = [write_run(tmp_path / f"n{s}", "chiar", s, ppl) for s, ppl in enumerate((150.0, 203.0, 260.0))]
    (overlap,) = tables.differences(runs.load(folders[:3] + noisy))
    assert "no difference shown" in overlap and "higher" not in overlap


def test_writes_between_the_marks_and_nowhere_else(tmp_path, folders, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- RESULTS: begin. x -->\nOLD TEXT\n<!-- RESULTS: end -->\nafter\n")
    report.run([*map(str, folders), f"--into={page}", f"--plot={tmp_path / 'x' / 'curves.svg'}"])
    text = page.read_text()
    assert text.startswith("before\n<!-- RESULTS: begin. x -->\n| model") and text.endswith("end -->\nafter\n")
    assert "OLD TEXT" not in text and "| model" in capsys.readouterr().out
    assert "transformer 6x128" in (tmp_path / "x" / "curves.svg").read_text()
    report.run([*map(str, folders), f"--into={page}"])
    assert page.read_text() == text


def test_runs_under_a_budget_say_how_far_they_ended_from_it(tmp_path, folders):
    for s, off in enumerate((0.01, -0.02)):
        path = write_run(tmp_path / f"b{s}", "chiar", s, 200.0)
        result, c = (json.loads((path / name).read_text()) for name in ("result.json", "config.json"))
        result["costs"]["relative"]["executed"] = 0.7 * (1 + off)
        c["objective"]["budget"] = 0.7
        (path / "result.json").write_text(json.dumps(result))
        (path / "config.json").write_text(json.dumps(c))
        line = {"split": "train", "loss": 1.0, "executed_rel_flops": 0.7, "hard_rel_flops": 0.7, "multiplier": 2.0,
                "budget_target": 0.7, "budget_gap": 0.25}  # fmt: skip
        (path / "metrics.jsonl").write_text("".join(json.dumps(line | {"step": i}) + "\n" for i in range(1, 61)))
    groups = runs.load([tmp_path / "b0", tmp_path / "b1"])
    (line,) = tables.held(groups)
    assert "budget 0.7" in line and "executed -2.0%" in line and "hard cost +14.3% " in line and "2 seeds" in line
    assert tables.held(runs.load(folders)) == []
    report.run([*map(str, tmp_path.glob("b?")), f"--budgets={tmp_path / 'gap.svg'}"])
    assert "duality gap" in (tmp_path / "gap.svg").read_text()
    with pytest.raises(UserError, match="has a budget"):
        report.run([*map(str, folders), f"--budgets={tmp_path / 'none.svg'}"])


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "required"),
        (["{tmp}/none"], "no finished run"),
        (["{d0}", "{d0}"], "repeats seed"),
        (["{d0}", "{other}"], "different data sets"),
        (["{d0}", "--also=x"], "cannot read"),
        (["{d0}", "--into={tmp}/none.md"], "there is no"),
        (["{d0}", "--into={d0}/result.json"], "lacks the marks"),
        (["{d0}", "--intoo=x"], "unrecognized"),
    ],
)
def test_mistakes_are_one_line(tmp_path, folders, words, what):
    other = write_run(tmp_path / "other", "chiar", 0, 1.0, dataset="text:mine")
    filled = [w.format(tmp=tmp_path, d0=folders[0], other=other) for w in words]
    with pytest.raises(UserError, match=what):
        report.run(filled)
