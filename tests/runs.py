"""Small runs as a user starts them, and what has to be the same however often they were stopped."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STEPS = 24
# what differs between two runs of the same command, on the same machine
TIMING = {"tokens_per_s", "step_ms"}
OF_THE_SESSION = TIMING | {"train_s", "wall_s", "peak_memory_bytes", "peak_memory_of", "commit"}
SMALL = {
    "net.width": 16,
    "net.heads": 2,
    "net.ffn_width": 16,
    "train.batch_size": 4,
    "train.duration": f"{STEPS} steps",
    "train.eval_every": "8 steps",
    "train.checkpoint_every": "3 steps",
}
TEXT = {"task.tokenizer": "bytes", "task.seq_len": 32}


class Kind(NamedTuple):
    """A configuration file and its keys; `data` is the key that names the data."""

    config: str
    data: str
    keys: dict[str, Any]


KINDS = {
    "text": Kind(
        "wikitext.py",
        "task.data_dir",
        SMALL | TEXT | {"net.depth": 3, "net.dropout": 0.1, "objective.lam": 0.1},
    ),
    "table": Kind("tabular.py:smoke", "task.path", SMALL | {"task.target": "y"}),
    # a learned threshold, a budget, pruning, 8 bits and the sampler, one after the other
    "everything": Kind(
        "wikitext.py:cerebra-full-smoke",
        "task.data_dir",
        SMALL
        | TEXT
        | {"net.loss_chunk": 64, "prune.rounds": 2, "prune.tile": 2, "objective.budget": 0.8},
    ),
}


def write_data(folder: Path) -> dict[str, Path]:
    """Writes a text in three splits and a table of 60 rows; returns where, for each kind."""
    rng = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "nine", "birds"]
    for split, lines in (("train", 400), ("valid", 20), ("test", 20)):
        rows = (" ".join(rng.choice(words) for _ in range(12)) for _ in range(lines))
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    rows = [f"{rng.choice('abc')},{rng.gauss(0, 1):.3f},{rng.gauss(5, 2):.3f}" for _ in range(60)]
    table = folder / "rows.csv"
    table.write_text("kind,x,y\n" + "\n".join(rows) + "\n")
    return {"text": folder, "table": table, "everything": folder}


def words(kind: str, data: Path, workdir: Path, **train: str) -> list[str]:
    """Returns the words of the command line that trains; `train` are keys of config.train."""
    config, key, keys = KINDS[kind]
    keys = keys | {key: data} | {f"train.{name}": value for name, value in train.items()}
    return [
        f"--config={ROOT / 'configs' / config}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in keys.items()),
    ]


def start(
    line: list[str], env: dict[str, str], chaos: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs a command line in a process of its own; `chaos` is CEREBRA_CHAOS."""
    env = env | ({"CEREBRA_CHAOS": chaos} if chaos else {})
    command = [sys.executable, "-m", "cerebra_jax.main", *line]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def lines(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl without times."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in found]


def result(workdir: Path) -> dict[str, Any]:
    """Returns result.json without what is of the session: times, memory, the commit."""
    found = json.loads((workdir / "result.json").read_text())
    return {k: v for k, v in found.items() if k not in OF_THE_SESSION}


def assert_same(workdir: Path, reference: Path) -> None:
    """Fails where a run is not bit for bit the reference: parameters, metrics and result."""
    assert lines(workdir) == lines(reference)
    mine, other = result(workdir), result(reference)
    assert mine.keys() == other.keys()
    for key, value in other.items():
        assert mine[key] == value, key


def same(workdir: Path, reference: Path) -> bool:
    """Returns whether a run is bit for bit the reference."""
    try:
        assert_same(workdir, reference)
    except (AssertionError, OSError, ValueError):
        return False
    return True
