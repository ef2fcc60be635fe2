"""The commands of the README on a small text: train, again, eval, cost, as a user types them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cerebra_jax.main import main

ROOT = Path(__file__).resolve().parent.parent


def command(env: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "cerebra_jax.main", *words]
    return subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory, clean_env) -> tuple[Path, subprocess.CompletedProcess, list[str]]:
    """The folder of a finished smoke run, what it showed, and its command."""
    folder = tmp_path_factory.mktemp("smoke")
    rng = random.Random(2)
    for split, lines in (("train", 3000), ("valid", 60), ("test", 60)):
        rows = (
            " ".join("".join(rng.choices("abcdefgh", k=5)) for _ in range(9)) for _ in range(lines)
        )
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    words = [
        "--config=configs/wikitext.py:smoke",
        f"--config.task.data_dir={folder}",
        f"--workdir={folder / 'run'}",
    ]
    done = command(clean_env, *words)
    assert done.returncode == 0, done.stderr
    return folder / "run", done, words


def test_a_smoke_run_leaves_what_the_house_promises(run):
    workdir, done, _ = run
    assert not done.stderr
    shown = done.stdout.splitlines()
    assert 10 < len(shown) <= 25 and "\x1b" not in done.stdout
    assert "has no effect" not in done.stdout
    assert {"config.json", "metrics.jsonl", "result.json", "checkpoints", "log.txt"} <= {
        p.name for p in workdir.iterdir()
    }
    result = json.loads((workdir / "result.json").read_text())
    for key in (
        "task",
        "dataset",
        "model",
        "seed",
        "params",
        "val",
        "test",
        "costs",
        "step_ms",
        "peak_memory_bytes",
        "versions",
        "commit",
        "device",
        "notice",
        "tokens",
        "tokens_per_s",
        "wall_s",
        "train_s",
        "params_non_embedding",
        "params_sha256",
    ):
        assert key in result, key


def test_the_same_command_again_says_that_it_is_done(run, clean_env):
    workdir, first, words = run
    before = (workdir / "metrics.jsonl").read_bytes()
    again = command(clean_env, *words)
    assert again.returncode == 0 and not again.stderr
    assert (
        again.stdout.splitlines()[-1]
        == first.stdout.splitlines()[-1]
        == f"done: {workdir / 'result.json'}"
    )
    assert (workdir / "metrics.jsonl").read_bytes() == before
    changed = command(clean_env, *words, "--config.train.duration=39 steps")
    assert changed.returncode == 2 and "train.duration '40 steps' -> '39 steps'" in changed.stderr


def test_eval_measures_what_the_run_measured(run, clean_env):
    workdir, _, _ = run
    done = command(clean_env, "eval", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    found = json.loads((workdir / "eval-test.json").read_text())
    test = json.loads((workdir / "result.json").read_text())["test"]
    assert {k: found[k] for k in test} == test


def test_generate_continues_every_prompt_and_says_what_it_cost(run, clean_env, tmp_path, capsys):
    workdir, _, _ = run
    (tmp_path / "prompts.txt").write_text("abcde fgh\n\nhgf\n")
    words = (
        "generate",
        f"--workdir={workdir}",
        f"--prompt=@{tmp_path / 'prompts.txt'}",
        "--max_tokens=7",
    )
    done = command(clean_env, *words, "--temperature=0")
    assert done.returncode == 0, done.stderr
    *text, rate, cost = done.stdout.splitlines()
    shown = "\n".join(text)
    assert shown.startswith("abcde fgh") and "\nhgf" in shown and len(shown) > len("abcde fgh\nhgf")
    assert "tokens/s" in rate and "FLOP a token" in cost and "of the dense" in cost
    words = ("generate", f"--workdir={workdir}", "--prompt=", "--temperature=0")
    assert main([*words, "--max_tokens=100"]) == 0  # from nothing, and beyond the context of 64
    long = capsys.readouterr().out
    assert "longer than the context of 64 tokens: written in 3 turns" in long
    mark = long[3]
    assert main([*words, "--max_tokens=100", f"--stop={mark}"]) == 0
    assert capsys.readouterr().out.split("\n")[0] == long.split("\n")[0].partition(mark)[0]
    for word, what in (
        ("--top_p=x", "--top_p is 'x'"),
        ("--prompt=@none", "no none"),
    ):
        assert main([*words, word]) == 2
        said = capsys.readouterr().err
        assert what in said and said.count("\n") == 1
