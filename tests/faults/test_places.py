"""A message names a row by its line in the file, as an editor or a spreadsheet counts it."""

from __future__ import annotations

import gzip

import pyarrow
import pytest
from pyarrow import feather, parquet

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import registry
from cerebra_jax.tasks.table import Format, read

ROWS = [["a", str(i), str(i % 7)] for i in range(40)]
ROWS[0][0] = 'two\nlines of "text"'  # so row 1 of the table stands in lines 2 and 3
ROWS[20][1] = "foo"


def text_of(rows=ROWS, newline="\n", first="") -> str:
    def field(text):
        return '"' + text.replace('"', '""') + '"' if '"' in text else text

    lines = [",".join(map(field, row)) for row in [["kind", "x", "y"], *rows]]
    return first + "\n".join([*lines, ""]).replace("\n", newline)


def built(path, **task):
    task = {"name": "tabular", "path": str(path), "target": "y", "seq_len": 0} | task
    net = {"name": "transformer", "causal": False, "width": 8, "heads": 2}
    return registry.build(config.parse({"task": task, "net": net}), lambda line: None)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (text_of().encode(), 23),
        (text_of(newline="\r\n").encode("utf-8-sig"), 23),
        (text_of(newline="\r").encode(), 23),
        (text_of().encode("utf-16"), 23),
        (text_of(first="sep=,\r\n").encode(), 24),
        (text_of([[], *ROWS[:5], [], [], *ROWS[5:]]).encode(), 26),
    ],
    ids=["plain", "windows", "old mac", "utf-16", "sep", "empty lines"],
)
@pytest.mark.parametrize("end", ["csv", "csv.gz"])
def test_a_wrong_field_is_named_by_its_line(data, line, end, tmp_path):
    file = tmp_path / f"t.{end}"
    file.write_bytes(gzip.compress(data) if end.endswith("gz") else data)
    for given in ({"types": "x:number"}, {"target": "x", "types": "x:number"}):
        with pytest.raises(UserError) as e:
            built(file, **given)
        assert str(e.value).startswith(f"{file}:{line}: column x holds 'foo', which is no finite")


@pytest.mark.parametrize("write", [parquet.write_table, feather.write_feather])
def test_rows_of_files_without_lines_count_from_one(write, tmp_path):
    columns = dict(zip(("kind", "x", "y"), map(list, zip(*ROWS, strict=True)), strict=True))
    file = tmp_path / ("t.parquet" if write is parquet.write_table else "t.feather")
    write(pyarrow.table(columns), str(file))
    with pytest.raises(UserError) as e:
        built(file, types="x:number")
    assert str(e.value).startswith(f"{file}, row 21: column x holds 'foo'")


def test_rows_of_several_files_are_named_by_their_own(tmp_path):
    good = [row for row in ROWS if row[1] != "foo"]
    (tmp_path / "train.csv").write_text(text_of(good))
    (tmp_path / "test.csv").write_text(text_of())
    with pytest.raises(UserError) as e:
        built(tmp_path, types="x:number")
    assert str(e.value).startswith(f"{tmp_path / 'test.csv'}:23: column x holds 'foo'")


def test_a_broken_row_is_named_by_the_line_in_which_it_begins(tmp_path):
    file = tmp_path / "t.csv"
    for text, said in (
        ('a,b\n1,2\n3,"4\n5,6\n7,8\n', "3 is not CSV"),  # the quote is never closed
        ('a,b\n1,2\n"3\n4"\n5,6\n', "3 has 1 fields"),
        ("sep=;\na;b\n1;2\n3\n", "4 has 1 fields"),
        ('a,b\n1,"2\n3"\n\n"4"5,6\n', "5 is not CSV"),
    ):
        file.write_text(text)
        with pytest.raises(UserError) as e:
            read(str(file))
        assert str(e.value).startswith(f"{file}:{said}")


def test_a_byte_that_is_no_text_is_named_by_its_line(tmp_path):
    file = tmp_path / "t.csv"
    for newline, encoding in (("\r", "utf-8"), ("\n", "utf-16-le"), ("\r\n", "utf-8")):
        text = newline.join(["a,\u010a", "1,2", "3,"])  # U+010A holds the byte of a newline
        bad = b"\xff" if encoding == "utf-8" else b"\x00\xd8\x00\x00"
        file.write_bytes(text.encode(encoding) + bad)
        with pytest.raises(UserError, match=":3 is not"):
            read(str(file), Format(encoding=encoding))


def test_a_text_without_a_label_is_named_by_its_line(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text('text,label\n"one\ntwo",a\nthree,b\nfour,\n')
    task = {"name": "intent", "path": str(file), "seq_len": 0, "tokenizer": "words"}
    cfg = config.parse({"task": task, "net": {"name": "transformer", "causal": False}})
    with pytest.raises(UserError) as e:
        registry.build(cfg, lambda line: None)
    assert str(e.value).startswith(f"{file}:5: the row has no label")
