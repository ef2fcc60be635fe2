"""The walks in CONTRIBUTING.md: short, and every command and example in them runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from cerebra_jax import main
from cerebra_jax.layers.linear import linear
from cerebra_jax.layers.rows import ranks, tokens

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WALKS = {part.splitlines()[0]: part for part in TEXT.split("\n## ")[1:]}


def blocks(walk: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", WALKS[walk], re.S)


@pytest.mark.parametrize("walk", ["Add a layer", "Add a task", "Follow a batch"])
def test_a_walk_is_short_and_its_commands_run(walk, monkeypatch, capsys):
    assert len([line for line in WALKS[walk].splitlines() if line.strip()]) < 40
    monkeypatch.chdir(ROOT)
    commands = [line for text in blocks(walk, "bash") for line in text.splitlines()]
    assert len(commands) == 2
    for words in map(shlex.split, commands):
        if words[:3] == ["python", "-m", "cerebra_jax"]:
            assert main.main(words[3:]) == 0, capsys.readouterr().err
        else:  # that its tests are there; they run in this very suite
            assert words[:3] == ["python", "-m", "pytest"]
            line = [sys.executable, *words[1:], "--collect-only", "-q", "-p", "no:cacheprovider"]
            done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
            assert done.returncode == 0, done.stdout


def test_the_layer_of_the_walk_is_a_layer():
    names = {"nn": nn, "jnp": jnp, "linear": linear}
    exec(blocks("Add a layer", "python")[0], names)
    layer = names["MeanOfThePast"].of(type("net", (), {"width": 8}), 1, 1.0, "cpu")
    rows = tokens(jnp.ones((2, 5, 8)), ranks(5, True), True)
    y, _ = layer.init_with_output(jax.random.key(0), rows, rows)
    assert y.shape == (2, 5, 8)


def test_the_batch_of_the_walk_gets_through(capsys):
    exec(blocks("Follow a batch", "python")[0], {})
    assert capsys.readouterr().out.startswith("(2, ")
