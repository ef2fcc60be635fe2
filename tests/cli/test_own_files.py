"""Files as people have them, from the command line and from Python: a run answers without its data,
and says where they are others.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import cerebra_jax
from cerebra_jax.errors import UserError
from cerebra_jax.main import main
from cerebra_jax.tasks.table import read

SMALL = (
    "--config.net.depth=1",
    "--config.train.devices=1",
    "--config.train.duration=6 steps",
    "--config.train.batch_size=16",
)
KEYS = ("id", "city", "area", "built", "rent")


@pytest.fixture(scope="session")
def large(rents):
    """Returns a function that makes n rows whose rents are about 1e9."""
    return lambda n: [[*row[:4], f"{float(row[4]) * 1e6:.0f}"] for row in rents(n)]


def write(path: Path, rows: list[list[str]], header=KEYS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def train(file: Path, workdir: Path, *more: str) -> int:
    words = ["--config=configs/tabular.py:smoke", f"--config.task.path={file}", *SMALL, *more]
    return main([*words, "--config.task.target=rent", f"--workdir={workdir}"])


@pytest.fixture(scope="module")
def made(tmp_path_factory, large) -> tuple[Path, Path]:
    """The folder of a run and its table."""
    folder = tmp_path_factory.mktemp("own")
    table = write(folder / "plain.csv", large(60))
    assert train(table, folder / "run") == 0
    return folder / "run", table


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy of the run whose table is nowhere."""
    shutil.copytree(made[0], tmp_path / "copy")
    config = json.loads((made[0] / "config.json").read_text())
    config["task"]["path"] = "/nowhere/plain.csv"
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    return tmp_path / "copy"


def predict(run: Path, data: Path) -> list[dict[str, str]]:
    assert main(["predict", f"--workdir={run}", f"--data={data}"]) == 0
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def reader(to: Path, *change: str) -> dict[str, Any]:
    """Runs the reader in the card of an exported program, changed, and returns its names."""
    code = Path(f"{to}.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert change[0] in code and code.startswith("# pip install jax flatbuffers")
    scope: dict[str, Any] = {}
    exec(code.replace(*change).replace(f'"{to.name}', f'"{to}'), scope)
    return scope


def test_a_copied_run_without_its_table_gives_the_same_bytes(made, run):
    workdir, table = made
    predict(workdir, table)
    predict(run, table)
    want = (workdir / "predictions.csv").read_bytes()
    assert (run / "predictions.csv").read_bytes() == want
    with (workdir / "predictions.csv").open(newline="") as file:
        found = [row["prediction"] for row in csv.DictReader(file)]
    assert all(len(x.replace(".", "").lstrip("-")) >= 12 for x in found)  # all digits of 1e9


def test_other_data_are_named_by_eval_and_by_resuming(made, tmp_path, capsys, large):
    workdir, table = made
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    other = large(60)
    for row in other:
        row[2] = f"{float(row[2]) / 10:.2f}"
    kept = table.read_bytes()
    try:
        write(table, other)
        assert main(["eval", f"--workdir={run}"]) == 2
        assert "trained on: 'area' is not as before" in capsys.readouterr().err
        (run / "result.json").unlink()
        assert train(table, run) == 2
        assert "trained on: 'area' is not as before" in capsys.readouterr().err
        write(table, large(60) + large(60)[:1])
        assert main(["eval", f"--workdir={run}"]) == 2
        assert "are not as before" in capsys.readouterr().err
        assert len(predict(run, write(tmp_path / "new.csv", other))) == len(other)
    finally:
        table.write_bytes(kept)


def test_a_column_of_the_users_is_never_replaced_and_what_is_new_is_counted(
    run, tmp_path, capsys, large
):
    rows = [[*row[:4], "mine"] for row in large(3)]
    rows[1][1] = "Ulm"
    found = predict(run, write(tmp_path / "new.csv", rows, (*KEYS[:4], "prediction")))
    assert [row["prediction"] for row in found] == ["mine"] * 3
    assert all(np.isfinite(float(row["prediction_2"])) for row in found)
    shown = capsys.readouterr().out
    assert "city: 1 of 3 rows hold what training showed rarely or never" in shown
    assert "the answers are in prediction_2" in shown


def test_a_number_that_cannot_be_is_named_by_its_line(run, made, tmp_path, capsys, large):
    rows = large(20)
    rows[2][2] = "1e300"
    assert main(["predict", f"--workdir={run}", f"--data={write(tmp_path / 'n.csv', rows)}"]) == 2
    assert "n.csv:4: column area holds '1e300'" in capsys.readouterr().err
    assert train(tmp_path / "n.csv", tmp_path / "huge") == 2
    assert "n.csv:4" in capsys.readouterr().err


def test_strict_makes_a_warning_an_end(made, tmp_path, capsys):
    _, table = made
    assert train(table, tmp_path / "strict", "--strict") == 2
    assert "an id? --config.task.ignore=id" in capsys.readouterr().out
    words = ["cost", "--config=configs/tabular.py:smoke", f"--config.task.path={table}"]
    assert main([*words, "--config.task.target=rent", "--strict"]) == 2
    assert main([*words, "--config.task.target=rent", "--config.task.ignore=id", "--strict"]) == 0
    assert "60 rows of 5 columns" in capsys.readouterr().out


def test_rows_come_in_any_form(made, run):
    table = read(str(made[1]))
    loaded = cerebra_jax.load(run)
    want = loaded.predict(str(made[1]))["prediction"]
    columns: dict[str, Any] = {name: table.columns[name] for name in loaded.task.columns}
    typed = columns | {"area": [float(x) for x in columns["area"]]}
    dicts = [dict(zip(typed, row, strict=True)) for row in zip(*typed.values(), strict=True)]
    for rows in (columns, typed, dicts, pa.table(typed), pa.record_batch(typed)):
        assert loaded.predict(rows)["prediction"] == pytest.approx(want, rel=1e-6)
    array = np.array(list(zip(*columns.values(), strict=True)))
    assert loaded.predict(array)["prediction"] == pytest.approx(want, rel=1e-6)
    assert loaded.predict(dicts[0])["prediction"] == pytest.approx(want[:1], rel=1e-5)
    with pytest.raises(UserError, match="the array has 2 columns, the run has 4"):
        loaded.predict(array[:, :2])
    with pytest.raises(UserError, match="a list of int"):
        loaded.predict([1, 2])


def test_an_exported_table_reads_its_rows_alone(run, made, tmp_path):
    """The reader in the card: plain fields, without this package."""
    to = tmp_path / "model.stablehlo"
    words = ["export", f"--workdir={run}", "--format=stablehlo", f"--to={to}", "--platforms=cpu"]
    assert main(words) == 0
    table = read(str(made[1]))
    found = predict(run, made[1])
    names = ("area", "built", "city", "id")
    rows = []
    for i in range(5):
        row = {name: table.columns[name][i] for name in names}
        row["city"] = f" {row['city']} "  # as predict, it strips
        day, month, year = row["built"].split(".")
        days = np.datetime64(f"{year}-{month}-{day}") - np.datetime64("1970-01-01")
        rows.append(row | {"built": str(days.astype(int))})
    empty = json.dumps(dict.fromkeys(names, ""))
    scope = reader(to, f"rows = [{empty}]", f"rows = {rows!r}")
    want = [float(row["prediction"]) for row in found[:5]]
    np.testing.assert_allclose(scope["y"], want, rtol=1e-5)


def test_texts_with_new_words_and_empty_ones_have_answers(tmp_path, capsys):
    rng = random.Random(0)
    said = {
        "refund": "I want my money back",
        "hours": "are you open on sundays",
        "配送": "包裹",
    }
    texts = [
        (text + rng.choice(("", "?", " please")), label)
        for label, text in said.items()
        for _ in range(20)
    ]
    table = write(tmp_path / "t.csv", [list(row) for row in texts], ("text", "label"))
    words = ["--config=configs/intent.py:smoke", f"--config.task.path={table}", *SMALL]
    assert main([*words, f"--workdir={tmp_path / 'run'}"]) == 0
    assert "60 texts, UTF-8" in capsys.readouterr().out
    # another run takes its words, keeps them, and goes on without it
    more = ["--config.task.tokenizer_from=" + str(tmp_path / "run"), "--config.task.min_count=9"]
    assert main([*words, *more, f"--workdir={tmp_path / 'next'}"]) == 0
    kept = [json.loads((tmp_path / x / "preprocessing.json").read_text()) for x in ("run", "next")]
    assert kept[0]["learnt"]["tokenizer"] == kept[1]["learnt"]["tokenizer"]
    (tmp_path / "run").rename(tmp_path / "moved")
    assert main(["eval", f"--workdir={tmp_path / 'next'}"]) == 0
    (tmp_path / "moved").rename(tmp_path / "run")
    capsys.readouterr()

    table.unlink()
    new = write(tmp_path / "n.csv", [["zzzz qqqq"], [""], ["are you open"]], ("text",))
    found = predict(tmp_path / "run", new)
    shown = capsys.readouterr().out
    assert "2 of 5 words were rare or not seen" in shown and "1 of 3 texts are empty" in shown
    for row in found:
        each = [float(row[f"probability of {label}"]) for label in said]
        assert sum(each) == pytest.approx(1) and max(each) == float(row["probability"])
        assert row["prediction"] == list(said)[int(np.argmax(each))]

    # the reader in the card of a program: the same answers without this package
    to = tmp_path / "model.stablehlo"
    words = ["export", f"--workdir={tmp_path / 'run'}", "--format=stablehlo", f"--to={to}"]
    assert main([*words, "--platforms=cpu"]) == 0
    asked = ["zzzz qqqq", "", "are you open"]
    scope = reader(to, 'texts = [""]', f"texts = {asked!r}")
    power_NxC = np.exp(scope["logits"])
    for row, power_C in zip(found, power_NxC / power_NxC.sum(1, keepdims=True), strict=True):
        names = scope["kept"]["classes"]
        want = [float(row[f"probability of {label}"]) for label in names]
        np.testing.assert_allclose(power_C, want, atol=1e-6)
