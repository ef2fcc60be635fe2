"""Searches: shared by processes, resumed where they were killed, and exactly as many trials as were
asked for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cerebra_jax.cli import flags
from cerebra_jax.cli import sweep as command
from cerebra_jax.cli import sweep_pool as pool
from cerebra_jax.cli import sweep_search as search
from cerebra_jax.errors import PointsFailed, UserError

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import fcntl, json, math, os, signal, sys, time
from pathlib import Path

here = Path(sys.argv[1])
cfg = json.loads((here / "config.json").read_text())
lr, depth = cfg["train"]["lr"], cfg["net"]["depth"]
with open(here / "run.lock", "a+") as lock:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"error: {here} is in use by another")
    if (here / "result.json").exists():  # as a run says that it is done
        sys.exit(0)
    with open(here.parent / "begun.txt", "a") as f:
        f.write(here.name + "\\n")
    (here / "metrics.jsonl").touch()
    how, first = cfg["task"]["gpt2_dir"], not (here / "hung").exists()
    if how == "hang" and here.name.startswith("trial-0002") and first:
        (here / "hung").touch()
        time.sleep(600)
    first = not (here / "died").exists()
    if how == "die" and here.name.startswith("trial-0001") and first:
        (here / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg["task"]["gpt2_dir"] == "diverge" and here.name.startswith("trial-0001"):
        print("error: step 3: the loss is not finite; lower train.lr")
        sys.exit(77)
    time.sleep(0.05)
    (here / "result.json").write_text(json.dumps({
        "metrics": [{"key": "acc", "name": "accuracy", "digits": 3, "lower": False, "table": True}],
        "val": {"acc": -abs(math.log(lr / 2e-3))}, "seed": cfg["seed"],
        "costs": {"executed_flops": float(depth), "relative": {"executed": depth / 10}},
    }))
"""
RUN = """
import os, sys
from cerebra_jax.cli import flags, sweep, sweep_pool
child = os.environ["CHILD"]
sweep_pool.command = lambda point: [sys.executable, "-ISc", child, str(point.workdir)]
price = {"steps": 1, "flops": 1, "step_flops": 1, "executed": 1.0}
sweep.prices = lambda cfgs: [price for _ in cfgs]
sweep.run(flags.parse(sys.argv[1:]))
"""
SEARCH = """
def get_search():
    return {{
        "config": "configs/wikitext.py:dense-smoke", "task.gpt2_dir": "{how}",
        "ranges": {{
            "train.lr": {{"low": 1e-5, "high": 1.0, "log": True}},
            "net.depth": {{"low": 1, "high": 3}},
        }},
        "trials": {trials}, "objectives": {objectives},
    }}
"""


@pytest.fixture
def words(tmp_path):
    """The command line of a search of children that train nothing."""

    def make(
        how: str = "", trials: int = 6, objectives: str = '["quality"]', jobs: int = 2
    ) -> list[str]:
        (tmp_path / "mine.py").write_text(
            SEARCH.format(how=how, trials=trials, objectives=objectives)
        )
        return [
            "sweep",
            f"--config={tmp_path / 'mine.py'}",
            f"--workdir={tmp_path / 'runs'}",
            f"--jobs={jobs}",
        ]

    return make


@pytest.fixture
def here(monkeypatch):
    """Runs a search in this process."""
    pytest.importorskip("optuna", reason="searches take Optuna: the extra `sweep`")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        pool, "command", lambda point: [sys.executable, "-ISc", CHILD, str(point.workdir)]
    )
    monkeypatch.setattr(
        command,
        "prices",
        lambda cfgs: [{"steps": 1, "flops": 1, "step_flops": 1, "executed": 1.0} for _ in cfgs],
    )
    return lambda words: command.run(flags.parse(words))


@pytest.fixture
def process(clean_env):
    """Starts a search in a process of its own."""
    pytest.importorskip("optuna", reason="searches take Optuna: the extra `sweep`")

    def start(words: list[str]) -> subprocess.Popen:
        line = [sys.executable, "-c", RUN, *words]
        return subprocess.Popen(
            line,
            env=clean_env | {"CHILD": CHILD},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def trials(words: list[str]):
    """The trials of the study, read from its file."""
    study = search.Study(flags.parse(words).sweep.search)
    return study._study.get_trials()


def begun(tmp_path: Path) -> list[str]:
    return (tmp_path / "runs" / "begun.txt").read_text().split()


def test_it_makes_the_trials_it_was_asked_for_and_names_the_best(words, here, tmp_path, capsys):
    here(words())
    found = trials(words())
    assert [t.state.name for t in found] == ["COMPLETE"] * 6 and sorted(begun(tmp_path)) == sorted(
        set(begun(tmp_path))
    )
    for t in found:
        cfg = json.loads(
            (tmp_path / "runs" / f"trial-{t.number:04d}-s0" / "config.json").read_text()
        )
        assert (cfg["train"]["lr"], cfg["net"]["depth"]) == (
            t.params["train.lr"],
            t.params["net.depth"],
        )
        result = json.loads(
            (tmp_path / "runs" / f"trial-{t.number:04d}-s0" / "result.json").read_text()
        )
        assert t.values == [-result["val"]["acc"]]  # more is better: its opposite is made small
    best = min(found, key=lambda t: t.values)
    out = capsys.readouterr().out
    assert f"best: trial-{best.number:04d}-s0" in out and out.count("best: ") == 1
    here(words(trials=8))  # more are asked for: the study goes on
    assert len(trials(words(trials=8))) == 8 and len(begun(tmp_path)) == 8


def test_no_point_is_trained_twice(words, here, tmp_path, capsys):
    line = words(trials=5)
    file = tmp_path / "mine.py"
    ranges = '"ranges": {"net.depth": {"low": 1, "high": 3}},'
    source = file.read_text()
    start, end = source.index('"ranges"'), source.index('"trials"')
    file.write_text(source[:start] + ranges + source[end:])
    here(line)
    counted = [t for t in trials(line) if not t.user_attrs.get(search.REPEAT)]
    assert sorted(t.params["net.depth"] for t in counted) == [1, 2, 3]
    assert len(begun(tmp_path)) == 3
    shown = capsys.readouterr().out
    assert "3 of 3 trials have a result" in shown and "there are only 3 points" in shown


def test_two_objectives_give_a_front(words, here, capsys):
    made = words(objectives='["quality", "executed"]')
    here(made)
    found = [t.values for t in trials(made)]
    front = [v for v in found if not any(w != v and w[0] <= v[0] and w[1] <= v[1] for w in found)]
    assert capsys.readouterr().out.count("best: ") == len(front)


def test_two_processes_share_one_study_and_one_that_is_killed_is_taken_up_again(
    words, process, tmp_path
):
    first, second = process(words("hang", 8)), process(words("hang", 8))
    hung = tmp_path / "runs" / "trial-0002-s0" / "hung"
    while not hung.exists():
        assert first.poll() is None or second.poll() is None
        time.sleep(0.05)
    while len(list((tmp_path / "runs").glob("*/result.json"))) < 7:
        time.sleep(0.05)
    for one in (first, second):  # the machine goes down with the runs on it
        os.killpg(one.pid, signal.SIGKILL)
        one.communicate()
    again = process(words("hang", 8))
    out = again.communicate()[0]
    assert again.returncode == 0, out
    assert [t.state.name for t in trials(words("hang", 8))] == ["COMPLETE"] * 8
    assert sorted(begun(tmp_path)) == sorted(
        [f"trial-{i:04d}-s0" for i in range(8)] + ["trial-0002-s0"]
    )


def test_a_killed_trial_goes_on_and_one_that_diverged_is_a_finding(words, here, tmp_path, capsys):
    with pytest.raises(PointsFailed, match="1 of 4 points failed: trial-0001-s0"):
        here(words("die", 4))
    here(words("die", 4))
    assert [t.state.name for t in trials(words("die", 4))] == ["COMPLETE"] * 4
    made = words("diverge", 4)
    made[2] = f"--workdir={tmp_path / 'other'}"
    here(made)
    assert [t.state.name for t in trials(made)] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "3 of 4 trials have a result" in capsys.readouterr().out


def test_values_that_do_not_go_together_fail_their_trial_only(words, here, tmp_path, capsys):
    made, file = words(trials=3), tmp_path / "mine.py"
    text = file.read_text().replace(
        '"net.depth": {"low": 1, "high": 3}', '"net.width": [48, 32], "net.heads": [2, 24]'
    )
    file.write_text(
        text.replace("[2, 24]", "[2, 32]")
    )  # the first width with the last number of heads
    with pytest.raises(UserError, match="net.width 48 is not divisible by net.heads 32"):
        flags.parse(made)
    file.write_text(text)  # 32 is not divisible by 24, which no single end of a range shows
    search.Study(flags.parse(made).sweep.search)._study.enqueue_trial(
        {"net.width": 32, "net.heads": 24, "train.lr": 0.1}
    )
    with pytest.raises(PointsFailed, match="trial-0000"):
        here(made)
    states = [t.state.name for t in trials(made)]
    assert states[0] == "FAIL" and len(states) == 3
    assert (
        "trial-0000: failed: trial 0: net.width 32 is not divisible by net.heads 24"
        in capsys.readouterr().out
    )


def test_another_search_in_the_folder_is_refused(words, here):
    here(words(trials=1))
    with pytest.raises(UserError, match="holds another search"):
        here(words("x", trials=1))


def test_without_optuna_it_is_one_line(words, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        UserError, match=r"a search needs Optuna; pip install .cerebra-jax\[sweep\]."
    ):
        search.Study(flags.parse(words()).sweep.search)


BAD = {
    "[]": "returns list",
    "{'config': C}": "trials is None",
    "{'config': C, 'trials': 3}": "has no ranges",
    "{'config': C, 'trials': 3, 'ranges': {'train.rl': [1]}}": "did you mean --config.train.lr?",
    "{'config': C, 'trials': 3, 'ranges': {'train.lr': []}}": "no choices",
    "{'config': C, 'trials': 3, 'ranges': {'train.lr': [20.0]}}": "0 <= train.lr <= 10",
    "{'config': C, 'trials': 3, 'ranges': {'train.lr': {'low': 1}}}": "the range of train.lr",
    "{'config': C, 'trials': 3, 'ranges': {'train.lr': {'low': 1, 'high': 0}}}": "low < high",
    "{'config': C, 'trials': 3, 'ranges': {'train.lr': {'low': 0, 'high': 1, 'log': True}}}": (
        "0 < low for a log"
    ),
    "{'config': C, 'trials': 3, 'ranges': {'net.depth': {'low': 1.5, 'high': 2}}}": (
        "int, low < high"
    ),
    "{'config': C, 'trials': 3, 'ranges': {'net.ffn': {'low': 1, 'high': 2}}}": (
        "write a list of choices"
    ),
    "{'config': C, 'trials': 3, 'ranges': {'train.lr': [0.1]}, 'train.lr': 0.1}": (
        "searched and set"
    ),
    "{'config': C, 'trials': 3, 'ranges': {'train.lr': [0.1]}, 'objectives': ['speed']}": (
        "choose from quality"
    ),
    "{'config': C, 'trials': 3, 'ranges': {'train.lr': [0.1]}, 'net.dpeth': 3}": (
        "did you mean --config.net.depth?"
    ),
}


@pytest.mark.parametrize("value", BAD)
def test_a_mistake_in_a_search_is_one_line_before_anything_starts(value, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "s.py").write_text(
        f"C = 'configs/wikitext.py:smoke'\ndef get_search():\n    return {value}\n"
    )
    with pytest.raises(UserError) as e:
        flags.parse(["sweep", f"--config={tmp_path / 's.py'}", f"--workdir={tmp_path / 'runs'}"])
    assert BAD[value] in str(e.value) and not (tmp_path / "runs").exists()
