"""Tables as people have them: one table in many forms is the same task, and what is not is said."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import fields, registry
from cerebra_jax.tasks.table import Table, delimiter_of, read
from cerebra_jax.tasks.task import SPLITS

HEADER = ("id", "city", "area", "built", "rent")


def text_of(rows, delimiter=",", header=HEADER) -> str:
    return "".join(delimiter.join(row) + "\n" for row in (header, *rows))


def german(rows) -> list[list[str]]:
    """The same rows with decimal commas and points between thousands."""

    def mark(number: str) -> str:
        return f"{float(number):,.2f}".translate(str.maketrans(",.", ".,"))

    return [[i, city, area.replace(".", ","), day, mark(rent)] for i, city, area, day, rent in rows]


def task_of(path, said: list[str] | None = None, **keys):
    task = {"name": "tabular", "seq_len": 0, "path": str(path), "target": "rent"} | keys
    cfg = config.parse({"task": task, "net": {"name": "transformer", "causal": False}})
    return registry.build(cfg, said.append if said is not None else lambda line: None)


def arrays(task) -> list[np.ndarray]:
    return [x for split in SPLITS for _, x in sorted(task._splits[split].items())]


def assert_same(task, other) -> None:
    for a, b in zip(arrays(task), arrays(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("reading")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, rents) -> Path:
    path = tmp_path_factory.mktemp("plain") / "plain.csv"
    path.write_text(text_of(rents(80)), encoding="utf-8")
    return path


def forms(folder: Path, plain_rows: list[list[str]]) -> list[Path]:
    """The same table as files of every form."""
    text, rows = text_of(plain_rows), german(plain_rows)
    semicolons = text_of(rows, ";")
    files = {
        "comma.csv": semicolons.encode(),
        "windows.csv": semicolons.encode("cp1252"),
        "utf16.csv": semicolons.encode("utf-16"),
        "utf16be.csv": semicolons.encode("utf-16-be"),
        "bom.csv": text.encode("utf-8-sig").replace(b"\n", b"\r\n"),
        "excel.csv": b"sep=;\n" + semicolons.encode(),
        "tabs.tsv": text_of(rows, "\t").encode(),
        "bars.txt": text.replace(",", "|").encode(),
        "nfd.csv": text.replace("ö", "o\u0308").encode(),
        "packed.csv.gz": gzip.compress(text.encode()),
        "packed.csv.bz2": bz2.compress(text.encode()),
        "packed.csv.xz": lzma.compress(text.encode()),
    }
    paths = []
    for name, data in files.items():
        (folder / name).write_bytes(data)
        paths.append(folder / name)
    columns = dict(zip(HEADER, map(list, zip(*plain_rows, strict=True)), strict=True))
    typed = columns | {name: [float(x) for x in columns[name]] for name in ("area", "rent")}
    parquet.write_table(pa.table(typed), folder / "typed.parquet")
    feather.write_feather(pa.table(typed), str(folder / "typed.feather"))
    return [*paths, folder / "typed.parquet", folder / "typed.feather"]


def test_a_table_in_any_form_is_the_same_task(plain, tmp_path, rents):
    want = task_of(plain)
    for path in forms(tmp_path, rents(80)):
        assert_same(want, task_of(path))


@pytest.mark.parametrize(
    ("text", "decimal", "value"),
    [
        ("1.5", ".", 1.5),
        ("-1e-3", ".", -1e-3),
        (".5", ".", 0.5),
        ("1,234.5", ".", 1234.5),
        ("1 234 567", ".", 1234567),
        ("1'234.5", ".", 1234.5),
        ("\u22125", ".", -5),
        ("1.234,5", ",", 1234.5),
        ("1.234", ",", 1234),
        ("0.123", ",", None),
        ("1,23,4", ".", None),
        ("inf", ".", None),
        ("1e999", ".", None),
        ("1_0", ".", None),
        ("", ".", None),
        ("01.02.2020", ",", None),
    ],
)
def test_a_number_is_what_people_write(text, decimal, value):
    assert fields.number(text, decimal) == value


def test_a_column_says_how_it_is_written():
    marks = fields.Marks()

    def form(column, decimal=""):
        return fields.form_of(column, marks, decimal)

    assert form(["1,5", "2", "N/A"]) == fields.Form("number", ",")
    assert form(["1.5", "2"]).decimal == "." and not form(["1.5", "2"]).doubt
    assert "task.decimal=comma" in form(["1,234", "5"]).doubt and not form(["1,234"], ",").doubt
    assert form(["1,234"], ",").decimal == ","
    assert form(["13.11.1993", "1.2.2020"]).date == "%d.%m.%Y"
    assert form(["11/13/1993", "1/2/2020"]).date == "%m/%d/%Y"
    assert "could be %m/%d/%Y" in form(["1/2/1993", "3/4/2020"]).doubt
    assert form(["2025-01-01 00:30", "2025-01-02T01:00:00Z"]).date == fields.ISO
    assert fields.days("2025-01-01 12:00", fields.ISO) == 20089.5
    nearly = form(["3"] * 40 + ["foo"])
    assert nearly.kind == "number" and nearly.others == ("foo",)
    assert form(["3"] * 9 + ["foo"]).kind == form(["A-1", "A-2"]).kind == "category"
    assert form(["#N/A", "-"]).kind == "category"


def test_the_delimiter_makes_the_rows_alike():
    head = "id;Stadt, Land;Fläche, m², netto;Miete, Euro\n"
    assert delimiter_of(head + "A-1;Köln;133.7;869.32\nA-2;Köln;72.0;284.17\n") == ";"
    assert delimiter_of('a,b\n"x;y;z",1\n"u;v;w",2\n') == ","
    assert delimiter_of("only\n1,5\n2,5\n") != ","  # a column of decimal commas


def test_what_was_understood_is_said_a_line_a_column_and_what_is_doubtful(plain, tmp_path, rents):
    said: list[str] = []
    task_of(plain, said)
    assert said[0].endswith("80 rows of 5 columns, UTF-8, fields parted by commas")
    lines = {line.split()[0]: line for line in said[1:6]}
    assert lines.keys() == set(HEADER)
    assert "number" in lines["area"] and "date" in lines["built"] and "3 different" in lines["city"]
    assert "the target" in lines["rent"]
    doubts = [line for line in said if line.startswith("warning:")]
    assert len(doubts) == 1 and "task.ignore=id" in doubts[0]
    assert said[-1] == "rows are split at random: 64 train, 8 valid, 8 test"

    rows = [[*row[:4], str(i % 4)] for i, row in enumerate(rents(80))]
    rows[7][2] = "foo"
    for row in rows:
        row[0] = "the same"
    other = tmp_path / "t.csv"
    other.write_text(text_of(rows))
    said.clear()
    task_of(other, said)
    doubts = "\n".join(line for line in said if line.startswith("warning:"))
    assert f"'foo'; the first at {other}:9" in doubts and "taken as missing" in doubts
    assert "every field is 'the same'" in doubts
    assert "--config.task.types=rent:category, else rent:number" in doubts
    said.clear()
    task_of(other, said, types="rent:number,area:category,id:category")
    assert not any(line.startswith("warning:") for line in said)


@pytest.mark.parametrize("field", ["inf", "1e999", "foo", "1e39"])
def test_a_target_that_is_no_number_is_named_by_its_line(field, tmp_path, rents):
    rows = rents(80)
    rows[40][4] = field
    path = tmp_path / "t.csv"
    path.write_text(text_of(rows))
    with pytest.raises(UserError, match=f"t.csv:42: column rent holds '{field}'") as e:
        task_of(path)
    assert f"task.missing={field}" in e.value.hint.replace("'", "")
    said: list[str] = []
    task_of(path, said, missing=field)
    assert f"1 of 80 rows have no rent: left out ({path}:42)" in said


def test_how_a_target_is_learnt_fits_it_or_is_refused(plain, tmp_path, rents):
    rows = rents(80)
    rows[40][4] = "-3"
    path = tmp_path / "t.csv"
    path.write_text(text_of(rows))
    with pytest.raises(UserError, match="t.csv:42: the target rent is -3, which has no logarithm"):
        task_of(path, target_scale="log")
    with pytest.raises(UserError, match="the target city is no number"):
        task_of(plain, target="city", target_scale="log")
    with pytest.raises(UserError, match="the target rent is a number"):
        task_of(plain, class_weights="balanced")
    said: list[str] = []
    task = task_of(plain, said, target="city", class_weights="Köln:2")
    assert task.choice.key == "macro_f1" and any("Köln 2" in line for line in said)

    # what is learnt comes back in its unit, with and without the table
    task = task_of(plain, target_scale="log")
    again = type(task).restored(
        config.parse({"task": {"name": "tabular"}}),
        json.loads(json.dumps(task.learnt())),
        task.info() | {"lengths": []},
    )
    labels_Nx1 = task._splits["test"]["labels_BxL"]
    rents_N = again.answers(labels_Nx1)["prediction"]
    wanted = [float(row[4]) for row in rents(80)]
    assert all(min(abs(x - y) for y in wanted) < 1e-3 for x in rents_N)


def test_a_number_beyond_float32_is_named_by_its_line(tmp_path, rents):
    rows = rents(80)
    rows[9][2] = "1e300"
    path = tmp_path / "t.csv"
    path.write_text(text_of(rows))
    with pytest.raises(UserError, match="t.csv:11: column area holds '1e300'.* largest float32"):
        task_of(path)


@pytest.mark.parametrize("mark", ["#N/A", "NaN", "-", "", "NULL", "<NA>"])
def test_marks_of_missing_fields_are_not_categories(mark, tmp_path, plain, rents):
    rows = rents(80)
    rows[3][2] = mark
    path = tmp_path / "t.csv"
    path.write_text(text_of(rows))
    task = task_of(path)
    assert task.info()["columns"]["area"]["kind"] == "number"
    assert task.shape == task_of(plain).shape


@pytest.mark.parametrize("mark", ["-999", "-999.0"])
def test_a_number_that_marks_missing_fields_does_so_however_it_is_written(mark, tmp_path, rents):
    """pandas writes whole numbers as 5.0 where a column has gaps."""
    rows = rents(80)
    for i, text in enumerate(("-999", "-999.0", "-999.00")):
        rows[10 * i][2] = text
    path = tmp_path / "t.csv"
    path.write_text(text_of(rows))
    kept, column = (
        next(c for c in task_of(path, **keys)._row.columns if c.name == "area")
        for keys in ({}, {"missing": mark})
    )
    assert 20 < column.mean < 140 and kept.sd > 2 * column.sd


def test_dates_of_new_rows_are_read_as_those_of_the_table(tmp_path, rents):
    rows = [
        [*row[:3], f"{i % 12 + 1}/{i % 28 + 1}/2020", row[4]] for i, row in enumerate(rents(80))
    ]
    rows[7][3] = "unknown"
    path = tmp_path / "t.csv"
    path.write_text(text_of(rows))
    task = task_of(path)
    names = task.columns

    def read_as(*dates: str):
        table = {name: ["" if name != "built" else date for date in dates] for name in names}
        return task.inputs(Table("new", table))["values_BxL"][:, 1 + names.index("built")]

    third_of_march, first_of_march = read_as("3/3/2020")[0], read_as("3/1/2020")[0]
    day = (third_of_march - first_of_march) / 2
    for dates in (("3/4/2020",), ("3/4/2020", "unknown"), ("3/4/2020",) * 3 + ("unknown",)):
        assert read_as(*dates)[0] == pytest.approx(third_of_march + day, abs=1e-4)
    # another form is taken where it reads more
    assert read_as("2020-03-04", "2020-03-20")[0] == pytest.approx(third_of_march + day, abs=1e-4)


def test_a_constant_column_has_no_deviation_of_its_rounding(tmp_path, rents):
    path = tmp_path / "t.csv"
    path.write_text(text_of([[*row[:2], "0.1", *row[3:]] for row in rents(80)]))
    column = next(c for c in task_of(path)._row.columns if c.name == "area")
    assert column.sd == 1.0
    path.write_text(text_of([[*row[:4], "0.1"] for row in rents(80)]))
    with pytest.raises(UserError, match="is 0.1 in every training row"):
        task_of(path)


def test_a_run_without_its_table_reads_rows_as_with_it(plain, tmp_path, rents):
    for keys in ({}, {"scale": "quantile"}, {"target": "city"}):
        task = task_of(plain, **keys)
        learnt = json.loads(json.dumps(registry.learnt(task), allow_nan=False))
        info = json.loads(json.dumps(task.info(), allow_nan=False))
        values = {"name": "tabular", "seq_len": 0, "path": "gone.csv", "target": "rent"} | keys
        cfg = config.parse({"task": values, "net": {"name": "transformer", "causal": False}})
        other = registry.restored(cfg, learnt, info)
        assert (other.shape, other.examples, other.info()) == (task.shape, task.examples, info)
        assert [m.digits for m in other.metrics] == [m.digits for m in task.metrics]
        assert {k: x.shape for k, x in other.example(5).items()} == {
            k: x.shape for k, x in task.example(5).items()
        }
        want = task.inputs(read(str(plain)))
        for path in forms(tmp_path, rents(80)):
            found = other.inputs(read(str(path)))
            for name, x in want.items():
                np.testing.assert_allclose(found[name], x, rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rng=st.randoms(use_true_random=False),
    factor=st.floats(0.01, 1000),
    delimiter=st.sampled_from(",;\t|"),
)
def test_answers_do_not_depend_on_units_orders_names_or_delimiters(
    folder, rents, rng, factor, delimiter
):
    """Rescaling a column, more columns, other order, other delimiter: the same tokens."""
    rows = rents(40)
    path = folder / "a.csv"
    path.write_text(text_of(rows))
    header = [*HEADER, "more"]
    scaled = [
        [i, c, repr(float(a) * factor), d, repr(float(y) * 3), str(rng.random())]
        for i, c, a, d, y in rows
    ]
    order = rng.sample(range(6), 6)
    moved = [[row[k] for k in order] for row in scaled]
    other = folder / "b.csv"
    other.write_text(text_of(moved, delimiter, [header[k] for k in order]))
    assert_same(task_of(path), task_of(other, ignore="more"))
    # classes by other names that sort alike
    for row in rows:
        row[1] = f"the {row[1].upper()}"
    other.write_text(text_of(rows, delimiter))
    assert_same(task_of(path, target="city"), task_of(other, target="city"))


def test_rows_are_split_as_is_asked_for(tmp_path, plain, rents):
    rows = rents(60)
    header = (*HEADER, "when", "part", "who")
    parts = ["train"] * 40 + ["dev"] * 10 + ["test"] * 10
    for i, row in enumerate(rows):
        row += [f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00", parts[i], f"w{i % 12}"]
    random.Random(1).shuffle(rows)
    path = tmp_path / "t.csv"
    path.write_text(text_of(rows, header=header))
    table = read(str(path))

    def split(**keys):
        said: list[str] = []
        seed = keys.pop("seed", 0)
        values = {"name": "tabular", "seq_len": 0, "path": str(path), "target": "rent"} | keys
        net = {"name": "transformer", "causal": False}
        cfg = config.parse({"task": values, "net": net, "seed": seed})
        task = registry.build(cfg, said.append)
        at = {float(rent): i for i, rent in enumerate(table.columns["rent"])}
        target = task.info()["target"]
        found = {}
        for name in SPLITS:
            labels = task._splits[name]["labels_BxL"][:, 0].astype(float)
            rents_of = np.round(labels * target["sd"] + target["mean"], 2)
            found[name] = [at[min(at, key=lambda x, y=y: abs(x - y))] for y in rents_of]
        return found, task, said[-1]

    found, task, line = split(time="when")
    whens = {name: [table.columns["when"][i] for i in rows] for name, rows in found.items()}
    assert max(whens["train"]) < min(whens["valid"]) and max(whens["valid"]) < min(whens["test"])
    assert "by time" in line and "when" in task.columns
    found, task, line = split(split_column="part")
    assert {table.columns["part"][i] for i in found["valid"]} == {"dev"}
    assert len(found["test"]) == 10 and "part" not in task.columns
    found, task, line = split(group="who")
    whose = {name: {table.columns["who"][i] for i in rows} for name, rows in found.items()}
    assert not whose["train"] & (whose["valid"] | whose["test"]) and not (
        whose["valid"] & whose["test"]
    )
    assert "who" not in task.columns and 3 <= len(found["test"]) <= 9
    tests = [split(folds=3, seed=seed)[0]["test"] for seed in range(3)]
    assert sorted(sum(tests, [])) == list(range(60))
    with pytest.raises(UserError, match="task.group and task.time are set"):
        split(group="who", time="when")
    with pytest.raises(UserError, match=r"t.csv:2: column who holds 'w\d+'"):
        split(split_column="who")


def test_every_split_has_rows_or_the_run_is_refused_before_it_trains(plain):
    with pytest.raises(UserError, match="at random leaves no row for test"):
        task_of(plain, test_share=0.0)


def test_each_class_has_its_share_where_that_is_asked_for(tmp_path):
    rows = [[f"{i}", "ab"[i % 10 == 0]] for i in range(200)]
    path = tmp_path / "t.csv"
    path.write_text(text_of(rows, header=("x", "rent")))
    task = task_of(path, stratify=True, types="rent:category")
    shares = {s: float(task._splits[s]["labels_BxL"].mean()) for s in SPLITS}
    assert shares == {split: pytest.approx(0.1) for split in SPLITS}


def test_a_folder_of_splits_is_a_table(tmp_path, plain, rents):
    rows = rents(80)
    for split, part in (("train", rows[:60]), ("valid", rows[60:70]), ("test", rows[70:])):
        (tmp_path / f"{split}.csv").write_text(text_of(part))
    said: list[str] = []
    task = task_of(tmp_path, said)
    assert task.size == {"train": 60, "valid": 10, "test": 10} and "as their files are" in said[-1]
    for keys in ({"folds": 5}, {"time": "built"}):  # nothing would follow from them
        with pytest.raises(UserError, match=f"a file for each split, and task.{next(iter(keys))}"):
            task_of(tmp_path, **keys)
    rows[75][4] = "foo"
    (tmp_path / "test.csv").write_text(text_of(rows[70:]))
    with pytest.raises(UserError, match="test.csv:7: column rent holds 'foo'"):
        task_of(tmp_path)


def test_typed_columns_that_are_no_fields_are_refused(tmp_path):
    parquet.write_table(pa.table({"rent": [1.0], "tags": [["a", "b"]]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="column tags of .* holds list"):
        read(str(tmp_path / "t.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match="cannot be read"):
        read(str(tmp_path / "bad.parquet"))


@settings(max_examples=300, deadline=None)
@given(
    data=st.binary(max_size=200),
    end=st.sampled_from([".csv", ".csv.gz", ".parquet", ".tsv.xz"]),
)
def test_any_bytes_are_a_table_or_one_line(folder, data, end):
    path = folder / f"any{end}"
    path.write_bytes(data)
    try:
        table = read(str(path))
    except UserError as e:
        assert str(path) in str(e) and e.hint
        return
    assert isinstance(table, Table) and table.rows > 0
