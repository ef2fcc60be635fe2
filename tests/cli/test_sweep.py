"""sweep: a list of runs, each in its folder, that ends the same whatever stopped it on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cerebra_jax.cli import flags
from cerebra_jax.cli import sweep as command
from cerebra_jax.cli import sweep_points as points
from cerebra_jax.cli import sweep_pool as pool
from cerebra_jax.errors import PointsFailed, Preempted, UserError
from cerebra_jax.main import main
from cerebra_jax.training import workdir as folder

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import fcntl, json, os, signal, sys, time
from pathlib import Path

here = Path(sys.argv[1])
cfg = json.loads((here / "config.json").read_text())
with open(here / "run.lock", "a+") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (here / "metrics.jsonl").touch()
    how = cfg["task"]["gpt2_dir"]  # a string that nothing here reads otherwise
    if how == "fail":
        sys.exit("error: it broke; mend it")
    if how == "die" and not (here / "died").exists():
        (here / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "wait" and not (here / "saved").exists():
        signal.signal(signal.SIGTERM, lambda *_: ((here / "saved").touch(), os._exit(75)))
        (here / "waiting").touch()
        time.sleep(600)
    result = {"seed": cfg["seed"], "cores": int(os.environ["NPROC"]), "lr": cfg["train"]["lr"]}
    (here / "result.json").write_text(json.dumps(result))
"""
PRICE = {"steps": 1, "flops": 1, "step_flops": 1, "executed": 1.0}
PRICE |= {"seconds": 1.0, "modelled": "a model"}
SWEEP = """
HOWS = {hows}

def get_sweep():
    for how in HOWS:
        for seed in range(2):
            base = {{"config": "configs/wikitext.py:smoke", "name": how}}
            yield base | {{"task.gpt2_dir": how, "seed": seed}}
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Runs a sweep of children that train nothing: sweep("ok", "fail") has two seeds of each."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        pool, "command", lambda point: [sys.executable, "-ISc", CHILD, str(point.workdir)]
    )
    monkeypatch.delenv("NPROC")  # of these tests
    monkeypatch.setattr(pool, "_cores", lambda: 4)
    monkeypatch.setattr(
        command,
        "prices",
        lambda asked: [PRICE] * len(asked),
    )

    def run(*hows: str, into: str = "runs", jobs: int = 2) -> Path:
        file = tmp_path / "mine.py"
        file.write_text(SWEEP.format(hows=hows))
        words = [f"--config={file}", f"--workdir={tmp_path / into}", f"--jobs={jobs}"]
        command.run(flags.parse(["sweep", *words]))
        return tmp_path / into

    return run


def results(root: Path) -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text()) for p in root.glob("*/result.json")}


def test_each_point_is_a_run_and_a_done_one_is_not_run_again(sweep, capsys):
    root = sweep("ok", "also")
    assert sorted(results(root)) == ["also-s0", "also-s1", "ok-s0", "ok-s1"]
    for name, result in results(root).items():
        assert result["seed"] == int(name[-1])
        assert json.loads((root / name / "config.json").read_text())["seed"] == result["seed"]
    (root / "ok-s1" / "result.json").write_text('{"mine": 1}')
    capsys.readouterr()
    sweep("ok", "also", "third")
    assert results(root)["ok-s1"] == {"mine": 1} and len(results(root)) == 6
    assert "2 of 6 points to run" in capsys.readouterr().out


def test_a_done_point_that_is_to_be_longer_is_run_on(sweep, tmp_path, capsys):
    root = sweep("ok")
    words = ["sweep", f"--config={tmp_path / 'mine.py'}", f"--workdir={root}", "--dry"]
    for more, state in (([], "done"), (["--config.train.duration=41 steps"], "to resume")):
        capsys.readouterr()
        command.run(flags.parse([*words, *more]))
        out = capsys.readouterr().out
        rows = [line for line in out.splitlines() if "  " in line and " ok-s" in line]
        assert [row.startswith(state) for row in rows] == [True, True]
        assert f"{2 if more else 0} of 2 points to run" in out


def test_killed_and_run_again_is_as_if_never_stopped(sweep):
    with pytest.raises(PointsFailed, match="2 of 4 points failed: die-s0, die-s1"):
        sweep("die", "ok")
    root = sweep("die", "ok")
    other = root.with_name("never")
    for name in ("die-s0", "die-s1"):
        (other / name).mkdir(parents=True)
        (other / name / "died").touch()  # this one never dies
    never = results(sweep("die", "ok", into="never"))
    assert len(never) == 4 and results(root) == never


def test_a_failure_stops_no_other_point_and_is_listed(sweep, tmp_path, capsys):
    with pytest.raises(PointsFailed) as e:
        sweep("fail", "ok")
    assert e.value.status == 1 and sorted(results(tmp_path / "runs")) == ["ok-s0", "ok-s1"]
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert len(listed) == 2 and all(
        "it broke; mend it" in line and "screen.txt" in line for line in listed
    )


def test_a_signal_reaches_the_children_and_the_same_command_goes_on(sweep, tmp_path):
    here = tmp_path / "runs"

    def stop() -> None:
        while not (
            (here / "wait-s0" / "waiting").exists() and (here / "wait-s1" / "waiting").exists()
        ):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Preempted, match="stopped: 2 stopped;"):
        sweep("wait", "ok")
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert (
        (here / "wait-s0" / "saved").exists()
        and (here / "wait-s1" / "saved").exists()
        and not results(here)
    )
    assert len(results(sweep("wait", "ok"))) == 4


def test_a_point_at_work_elsewhere_is_passed_over(sweep, tmp_path, capsys):
    (tmp_path / "runs" / "ok-s0").mkdir(parents=True)
    with folder.locked(
        tmp_path / "runs" / "ok-s0"
    ):  # flock(2) does not tell a second opening from a second process
        assert sorted(results(sweep("ok"))) == ["ok-s1"]
    assert "1 points are at work in other processes" in capsys.readouterr().out
    assert sorted(results(sweep("ok"))) == ["ok-s0", "ok-s1"]


def test_children_share_the_cores(sweep, monkeypatch):
    for n in range(1, 9):
        for jobs in range(1, 12):
            shares = [pool.share(range(n), slot, jobs) for slot in range(jobs)]
            assert all(shares) and set().union(*shares) == set(range(n))
            if jobs <= n:
                assert (
                    sum(map(len, shares)) == n
                    and max(map(len, shares)) - min(map(len, shares)) <= 1
                )
    monkeypatch.setattr(pool, "_cores", lambda: 6)
    assert {r["cores"] for r in results(sweep("ok", jobs=3)).values()} == {2}


def test_children_share_the_gpus():
    two = {"CUDA_VISIBLE_DEVICES": "3,5", "NPROC": "1"}
    assert pool.environment(0, 1, two) == {}
    assert [pool.environment(i, 2, two) for i in range(2)] == [
        {"CUDA_VISIBLE_DEVICES": d} for d in "35"
    ]
    four = [pool.environment(i, 4, two) for i in range(4)]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in four] == ["3", "3", "5", "5"]
    assert {e["XLA_PYTHON_CLIENT_MEM_FRACTION"] for e in four} == {"0.45"}
    assert pool.environment(0, 2, {"CUDA_VISIBLE_DEVICES": "", "NPROC": "1"}) == {}


ROW = '{"config": "configs/wikitext.py:smoke"'
BAD = {
    "": "defines no get_sweep",
    "def get_sweep(): return 3": "returns int",
    "def get_sweep(): return {}": "returns one dict",
    "def get_sweep(): return []": "has no point",
    "def get_sweep(arg): return []": "needs an argument",
    "def get_sweep(): return [1]": 'point 1 of sweep.py is no dict with "config"',
    "def get_sweep(): yield 1 / 0": "ZeroDivisionError: division by zero (line 1)",
    "def get_sweep(:": "SyntaxError",
    'def get_sweep(): return [{"config": "nowhere.py"}]': "there is no nowhere.py",
    "def get_sweep(): return [%s, 'net.dpeth': 3}]": "did you mean --config.net.depth?",
    "def get_sweep(): return [%s}, {'config': 'x.py', 'net.depth': '3'}]": "net.depth is '3'",
    "def get_sweep(): return [%s, 'train.lr': True}]": "train.lr is True; it must be of type float",
    "def get_sweep(): return [%s, 'net.heads': 3}]": "not divisible by net.heads",
    "def get_sweep(): return [%s, 'name': 3}]": "its name is 3",
    "def get_sweep(): return [%s}, %s}]": "points 1 and 2 of sweep.py are the same configuration",
    "def get_sweep(): return [%s, 'name': 'b'}, %s, 'name': 'b', 'seed': 0, 'net.depth': 5}]": (
        "are both called b-s0"
    ),
    "def get_sweep():\n  while True: yield 0": "no dict",
    "import itertools\ndef get_sweep(): return (%s, 'seed': i} for i in itertools.count())": (
        "more than 10 points"
    ),
}


@pytest.mark.parametrize("text", BAD)
def test_a_mistake_in_the_file_is_one_line_before_anything_starts(
    text, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(points, "MOST", 10)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "sweep.py").write_text(text.replace("%s", ROW))
    assert main(["sweep", "--config=sweep.py"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and BAD[text] in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("sweep", "--config is missing"),
        ("sweep --config=absent.py", "no sweep file"),
        ("sweep --config={0}:x:y", "no part 'x:y'"),
        ("sweep --config={0} --jobs=0", "--jobs is '0'"),
        ("sweep --config={0} --jobs=two", "--jobs is 'two'"),
        ("sweep --config={0} --workdir=", "--workdir is empty"),
        ("sweep --config={0} --fresh", "sweep takes no --fresh"),
        ("sweep --config={0} --config.net.dpeth=3", "did you mean --config.net.depth?"),
        ("sweep --config={0} --config.seed=3", "are the same configuration"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(words, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words.format(ROOT / "configs" / "sweeps" / "ablation.py").split()) == 2
    assert what in capsys.readouterr().err


def test_a_folder_with_another_run_is_refused_before_the_start(sweep, tmp_path):
    root = sweep("ok")
    file = tmp_path / "mine.py"
    with pytest.raises(UserError, match="train.lr 0.002 -> 0.003"):
        flags.parse(["sweep", f"--config={file}", f"--workdir={root}", "--config.train.lr=0.003"])


def test_names_do_not_depend_on_the_other_points():
    keys = {"train.lr": 1e-3, "net.route.rate": 0.5, "seed": 2}
    assert points.label("configs/wikitext.py:smoke", keys) == "wikitext-smoke,lr=0.001,rate=0.5"
    both = points.label("a.py", {"train.b1": 1, "x.b1": 2, "net.k": 3})
    assert both == "a,train.b1=1,x.b1=2,k=3"


def test_a_dry_run_prices_and_writes_nothing_and_needs_no_jax(tmp_path, clean_env):
    code = (
        "import sys\nfrom cerebra_jax.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'tensorflow'}\n"
        "assert not heavy & set(sys.modules), 'JAX was imported'\n"
    )
    words = ["sweep", f"--config={ROOT / 'configs' / 'sweeps' / 'ablation.py'}:smoke", "--dry"]
    line = [sys.executable, "-c", code, *words]
    done = subprocess.run(line, cwd=tmp_path, env=clean_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(tmp_path.iterdir())
    *rows, total, hours = done.stdout.splitlines()
    assert "modelled, not measured: 0.4 of the roofline of cpu" in hours
    assert len(rows) == 24 and total.startswith("24 of 24 points to run") and "960 steps" in total
    dense = next(row for row in rows if " dense-s0 " in row)
    assert dense.startswith("new ") and "40 steps · 8.05 GFLOP · 1.000 of dense" in dense


def test_a_dry_run_of_epochs_of_a_text_says_what_it_knows_and_what_it_does_not(
    tmp_path, monkeypatch, capsys
):
    """How many steps an epoch of a text has, only the prepared text tells; a step has its price."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    base = ROOT / "configs" / "wikitext.py"
    (tmp_path / "mine.py").write_text(
        f"def get_sweep():\n    return [{{'config': '{base}:chiar-17m', 'name': 'mine'}}]\n"
    )
    assert main(["sweep", "--config=mine.py", "--dry"]) == 0
    row, total, why = capsys.readouterr().out.splitlines()
    assert " 0 steps" not in row + total and " 0 FLOP" not in row + total
    flops = re.search(r"mine-s0  5 epochs · ([\d.]+) TFLOP a step · 0\.\d+ of dense", row)[1]
    assert total.endswith("in runs/mine: 1 of them for epochs of their data")
    assert "is not known before the text is prepared" in why and "train.duration" in why
    # so many steps cost so much
    words = ["sweep", "--config=mine.py", "--dry", "--config.train.duration=1000 steps"]
    assert main(words) == 0
    row, total, _ = capsys.readouterr().out.splitlines()
    assert f"1,000 steps · {float(flops):g} PFLOP" in row
    assert total.endswith(f"1,000 steps · {float(flops):g} PFLOP at most")
