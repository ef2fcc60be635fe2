"""Generated configurations and data files: each is refused in one line, or it really runs."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from cerebra_jax import checks, config
from cerebra_jax.errors import RunError, UserError
from cerebra_jax.main import main
from cerebra_jax.tasks import registry
from tests.faults.record import Counts, record

PLACES = set(config.places())
TINY = {
    "task.seq_len": 16,
    "task.tokenizer": "bytes",
    "net.width": 16,
    "net.heads": 2,
    "net.ffn_width": 16,
    "net.depth": 3,
    "train.duration": "2 steps",
    "train.batch_size": 4,
    "train.devices": 1,
}
WORDS = ("", "x", "0", "-1", "1e9", "nan", "inf", "None", "1,2", "a b", "é", "\x1b[31m", "=1+1")


def value_of(key: str, rng: random.Random) -> Any:
    """Returns a value for a key: mostly one that it may have, sometimes nonsense."""
    field = config.fields()[key]
    of, lo, hi = (field.metadata[name] for name in ("of", "lo", "hi"))
    if rng.random() < 0.15:
        return rng.choice(WORDS)
    if of:
        return rng.choice(of)
    if isinstance(field.default, bool):
        return rng.choice((True, False))
    if isinstance(field.default, int):
        return rng.choice((lo, hi, 0, 1, 2, 3, 5, 16, 10**20, field.default))
    if isinstance(field.default, float):
        return rng.choice((lo, hi, 0.0, 0.1, 0.5, 1.0, 3.7, field.default))
    if str(field.default).endswith((" frac", " steps", " epochs")):
        return rng.choice(("0 steps", "1 steps", "0.3 frac", "1 frac", "9 frac", "1e30 steps", "x"))
    return rng.choice(("x", "0.5", "1,2", "0.5,0.5,0.5", "y", "kind,x"))


def text_of(value: Any) -> str:
    """Returns a value as it is written on the command line."""
    return str(value)


def generated(rng: random.Random, table: Path) -> list[str]:
    """Returns the keys of a configuration as words of a command line."""
    name = rng.choice(("text", "tabular", "intent", "long_sequence", "listops"))
    keys: dict[str, Any] = TINY | {"task.name": name, "task.dataset": "offline"}
    if name in ("tabular", "intent") and rng.random() < 0.7:
        keys |= {"task.path": table, "task.target": "y" if name == "tabular" else "kind"}
    if name in ("tabular", "intent"):
        keys |= {"task.seq_len": 0, "net.causal": False}
    keys["net.name"] = rng.choice(checks.UNROUTED + checks.ROUTED + ("transformer",))
    chosen = rng.sample(sorted(set(config.fields()) - PLACES), rng.randint(1, 4))
    keys |= {key: value_of(key, rng) for key in chosen}
    if keys["net.name"] == "chiar" and keys["task.name"] in ("tabular", "intent"):
        keys["net.name"] = "cerebra"
    return [f"--config.{key}={text_of(value)}" for key, value in keys.items()]


def accepted(words: list[str], capsys) -> bool:
    """Returns whether a configuration is accepted; a refusal has to be one line."""
    overrides = dict(word.removeprefix("--config.").split("=", 1) for word in words)
    try:
        values = {key: config.typed(key, text) for key, text in overrides.items()}
        nested: dict[str, Any] = {}
        for key, value in values.items():
            config._put(nested, key, value)
        config.parse(nested)
    except UserError as error:
        assert "\n" not in str(error).strip() and error.what, words
        return False
    return True


def run(words: list[str], folder: Path, capsys) -> int:
    """Trains two steps by the command line; returns its status."""
    base = folder / "base.py"
    base.parent.mkdir(parents=True, exist_ok=True)
    base.write_text("from cerebra_jax.config import defaults\nget_config = defaults\n")
    status = main(["train", f"--config={base}", f"--workdir={folder / 'run'}", *words])
    shown = capsys.readouterr()
    assert status in (0, 2, 77), (words, shown.err)
    assert "Traceback" not in shown.err, words
    assert status == 0 or len(shown.err.strip().splitlines()) <= 2, (words, shown.err)
    return status


def check(
    count: int, runs: int, table: Path, folder: Path, capsys, seed: int = 0
) -> dict[str, int]:
    """Generates `count` configurations, or more until so many of those accepted have really run."""
    rng = random.Random(seed)
    found = {"configurations": 0, "refused": 0, "run": 0, "refused by their data": 0}
    while found["configurations"] < count or found["run"] < runs:
        words = generated(rng, table)
        found["configurations"] += 1
        if not accepted(words, capsys):
            found["refused"] += 1
        elif found["run"] < runs:
            found["run"] += 1
            into = folder / str(found["configurations"])
            found["refused by their data"] += run(words, into, capsys) == 2
    return found


def test_generated_configurations_are_refused_in_a_line_or_run(table, tmp_path, capsys):
    found = check(200, 1, table, tmp_path, capsys)
    assert found["refused"] > 20 and found["run"] == 1


@pytest.mark.faults
@pytest.mark.parametrize("part", range(4))
def test_many_generated_configurations(part, table, tmp_path, capsys):
    counts = Counts("exit 70", "more than one line")
    found = check(125, 50, table, tmp_path, capsys, seed=part)
    counts.times, counts.ended = found.pop("configurations"), found
    record(f"generated configurations, some really run, part {part + 1} of 4", counts)


# ---- data files

GOOD = "kind,x,y\n" + "".join(f"{'abc'[i % 3]},{i * 0.7:.1f},{i}\n" for i in range(40))
CELLS = (
    "",
    "NA",
    "inf",
    "1e300",
    "1e39",
    "-",
    "1,5",
    '"',
    "é",
    "\x00",
    "'",
    "=1+1",
    "a\nb",
    "x" * 99,
)


def damaged(rng: random.Random) -> bytes:
    """Returns a table that people might have: cut, mixed, or not a table at all."""
    rows = [line.split(",") for line in GOOD.splitlines()]
    for _ in range(rng.randint(1, 4)):
        i, j = rng.randrange(len(rows)), rng.randrange(3)
        what = rng.randrange(9)
        if what < 3 and j < len(rows[i]):
            rows[i][j] = rng.choice(CELLS)
        elif what == 3:
            rows[i] = rows[i][: rng.randrange(3)]
        elif what == 4:
            rows[i] = [*rows[i], "more"]
        elif what == 5:
            rows = rows[: rng.randrange(len(rows)) + 1]
        elif what == 6:
            rows.insert(i, [])
        elif what == 7:
            rows[0] = [rng.choice(["x", "y", "", "kind", "\x1b[2J", "a" * 400]) for _ in range(3)]
        else:
            j = min(j, len(rows[i]) - 1)
            if j >= 0:
                rows[i][j] = f'"{rows[i][j]}'
        rows = rows or [["x"]]
    text = rng.choice(["\n", "\r\n", "\r"]).join(rng.choice(",;\t").join(row) for row in rows)
    data = text.encode(rng.choice(["utf-8", "utf-16", "cp1252", "utf-8-sig"]), "replace")
    change = rng.randrange(6)
    if change == 0:
        return data[: rng.randrange(len(data) + 1)]
    if change == 1:
        return gzip.compress(data)[: rng.randrange(1, 60)]
    if change == 2:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(200)))
    if change == 3 and data:
        i = rng.randrange(len(data))
        return data[:i] + bytes([rng.randrange(256)]) + data[i + 1 :]
    return data


def clinc(rng: random.Random) -> bytes:
    """Returns a file that is nearly CLINC150's JSON."""
    rows: Any = [["book a flight", "travel"], ["how are you", "talk"]] * 5
    for _ in range(rng.randint(0, 2)):
        rows = rng.choice([rows, [rows], {"a": rows}, rows[:1], [["x"]], [[1, 2]], None, "x"])
        rows = rows if isinstance(rows, list) else [rows]
    found: Any = {"train": rows, "val": rows[:2], "test": rows[:2]}
    for name in list(found):
        if rng.random() < 0.2:
            found[name] = rng.choice([{}, None, "text", 5, [["\ud800", "x"]], [[]]])
    text = json.dumps(rng.choice([found, found, [found], None]))
    if rng.random() < 0.1:
        text = "[" * 100_000
    return text.encode()[: rng.choice([None, None, len(text) // 2])]


def read_files(count: int, folder: Path) -> int:
    """Reads so many generated files; returns how many were refused."""
    rng, refused = random.Random(1), 0
    for i in range(count):
        kind = rng.choice(("tabular", "tabular", "intent", "clinc"))
        file = folder / f"{i}{'.json' if kind == 'clinc' else rng.choice(['.csv', '.csv.gz'])}"
        file.write_bytes(clinc(rng) if kind == "clinc" else damaged(rng))
        task = {"path": str(file), "target": "y", "seq_len": 0, "name": "tabular"}
        if kind != "tabular":
            task |= {"name": "intent", "target": "kind", "tokenizer": "words"}
        if kind == "clinc":
            task["target"] = ""
        cfg = config.parse({"task": task, "net": {"name": "transformer", "causal": False}})
        try:
            built = registry.build(cfg, lambda line: None)
        except RunError as error:
            assert error.status == 2 and error.hint, (file, error)
            assert "\n" not in str(error), (file, error)
            refused += 1
            continue
        batch = built.train_batch(0, 0, 4)
        for name, array in batch.items():
            assert array.dtype.kind != "f" or abs(array).max() < 1e30, (file, name)
    return refused


def test_generated_data_files_are_refused_with_a_place_or_read(tmp_path):
    assert 20 < read_files(80, tmp_path) < 80


@pytest.mark.faults
def test_many_generated_data_files(tmp_path):
    counts = Counts("exit 70", "without a hint", "numbers that cannot be")
    refused = read_files(300, tmp_path)
    assert 100 < refused < 300
    counts.times = 300
    counts.ended = {"refused in a line": refused, "read": 300 - refused}
    record("generated data files", counts)
