"""kill -9, SIGTERM and rotten disks: a run that is started again ends as if nothing had happened,
bit for bit.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = 24
TIMING = {"tokens_per_s", "step_ms"}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A small text in three splits."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "nine", "birds"]
    for split, lines in (("train", 400), ("valid", 20), ("test", 20)):
        rows = (" ".join(rng.choice(words) for _ in range(12)) for _ in range(lines))
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return folder


def command(text: Path, workdir: Path) -> list[str]:
    keys = {
        "task.data_dir": text,
        "task.tokenizer": "bytes",
        "task.seq_len": 32,
        "net.depth": 3,
        "net.width": 16,
        "net.heads": 2,
        "net.ffn_width": 16,
        "net.dropout": 0.1,
        "objective.lam": 0.1,
        "train.batch_size": 4,
        "train.duration": f"{STEPS} steps",
        "train.eval_every": "8 steps",
        "train.checkpoint_every": "3 steps",
    }
    words = [f"--config.{k}={v}" for k, v in keys.items()]
    config = Path(__file__).parent.parent / "configs" / "wikitext.py"
    return [
        sys.executable,
        "-m",
        "cerebra_jax.main",
        f"--config={config}",
        f"--workdir={workdir}",
        *words,
    ]


def start(
    text: Path, workdir: Path, env: dict[str, str], chaos: str = ""
) -> subprocess.CompletedProcess:
    env = env | ({"CEREBRA_CHAOS": chaos} if chaos else {})
    return subprocess.run(
        command(text, workdir), env=env, capture_output=True, text=True, timeout=300
    )


def lines(workdir: Path) -> list[dict]:
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in found]


def result(workdir: Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


@pytest.fixture(scope="module")
def reference(text, tmp_path_factory, clean_env) -> Path:
    """The run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    done = start(text, workdir, clean_env)
    assert done.returncode == 0, done.stderr
    return workdir


def assert_same(workdir: Path, reference: Path) -> None:
    assert lines(workdir) == lines(reference)
    for key in ("params_sha256", "best_step", "val", "test", "params", "tokens"):
        assert result(workdir)[key] == result(reference)[key], key


def test_reference_has_one_line_a_step(reference):
    steps = [line["step"] for line in lines(reference) if line["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines(reference) if line["split"] == "valid"] == [8, 16, 24]


def test_killed_at_any_step_ends_the_same(text, reference, tmp_path, clean_env):
    """Kills before the first checkpoint, right after a save began (3 k + 1), at an evaluation,
    before the last step.
    """
    for step in (2, 4, 16, 23):
        killed = start(text, tmp_path / "run", clean_env, f"SIGKILL@{step}")
        assert killed.returncode == -9, killed.stderr
    done = start(text, tmp_path / "run", clean_env)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stdout
    assert_same(tmp_path / "run", reference)


def test_signals_save_the_step_they_come_at(text, reference, tmp_path, clean_env):
    for signal, step in (("SIGINT", 8), ("SIGTERM", 24)):  # a validation is due, and is interrupted
        stopped = start(text, tmp_path / "run", clean_env, f"{signal}@{step}")
        assert stopped.returncode == 75, stopped.stderr
        assert stopped.stderr.count("\n") == 1 and f"step {step}" in stopped.stderr
        assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    done = start(text, tmp_path / "run", clean_env)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "run", reference)
