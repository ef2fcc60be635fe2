"""kill -9, SIGTERM and rotten disks: a run that is started again ends as if nothing had happened,
bit for bit.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import STEPS, assert_same, lines, words, write_data
from tests.runs import start as run


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A small text in three splits."""
    return write_data(tmp_path_factory.mktemp("text"))["text"]


def start(text: Path, workdir: Path, env: dict[str, str], chaos: str = ""):
    return run(words("text", text, workdir), env, chaos)


@pytest.fixture(scope="module")
def reference(text, tmp_path_factory, clean_env) -> Path:
    """The run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    done = start(text, workdir, clean_env)
    assert done.returncode == 0, done.stderr
    return workdir


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
