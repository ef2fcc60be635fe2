"""CSV files as columns of text. Python's csv module.

Every way in which a file can be broken is one UserError.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from pathlib import Path
from typing import NamedTuple

from cerebra_jax.config import suggest
from cerebra_jax.errors import UserError

DELIMITERS = ",;\t|"
LIMIT = 1 << 24  # characters of one field


class Table(NamedTuple):
    """Columns by name, all of one length, as text."""

    name: str
    columns: dict[str, list[str]]

    @property
    def rows(self) -> int:
        """Returns how many rows the table has."""
        return len(next(iter(self.columns.values())))


def read(path: str) -> Table:
    """Returns the table of a CSV file with a header, plain or .gz.

    Commas, semicolons, tabs or bars part its fields.

    UserError: no such file, not text, empty, without rows, a name twice, a row of another length.
    """
    file = Path(path).expanduser()
    text = text_of(file)
    first_line = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    csv.field_size_limit(LIMIT)
    try:
        header = _header(file, next(reader, []))
        rows = []
        for row in reader:
            if not row:  # an empty line
                continue
            if len(row) != len(header):
                what = f"{file}:{reader.line_num} has {len(row)} fields, "
                raise UserError(f"{what}the header has {len(header)}", "mend that line")
            rows.append(row)
    except csv.Error as e:
        raise UserError(f"{file}:{reader.line_num} is not CSV ({e})", "mend that line") from None
    if not rows:
        raise UserError(f"{file} has no rows", "give a table with a header and rows")
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    return Table(file.name.removesuffix(".gz").removesuffix(".csv"), columns)


def _header(file: Path, first: list[str]) -> list[str]:
    """Returns the names of the columns; raises UserError where one is missing or stands twice."""
    names = [name.strip() for name in first]
    if not any(names):
        raise UserError(f"{file} is empty", "its first line must hold the names of the columns")
    for i, name in enumerate(names):
        if name in names[:i]:
            hint = "give each column a name of its own"
            raise UserError(f"{file} has two columns {name!r}", hint)
    if "" in names:
        what = f"{file}: column {names.index('') + 1} has no name"
        raise UserError(what, "name it in the first line")
    return names


def text_of(file: Path) -> str:
    """Returns the text of a UTF-8 file, plain or .gz; raises UserError where there is none."""
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"{file} {what}", "give a file: --config.task.path=FILE")
    try:
        data = file.read_bytes()
        if file.suffix == ".gz":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as e:
        raise UserError(f"{file} cannot be read ({e})", "give UTF-8 text, plain or .gz") from None


def known(table: Table, name: str, who: str) -> str:
    """Returns `name`, a column of the table.

    Raises UserError where it is none, with what `who` names may mean.
    """
    if name in table.columns:
        return name
    hint = suggest(name, list(table.columns))
    if not hint.startswith("did you mean"):
        hint = f"its columns are {', '.join(list(table.columns)[:20])}"
    raise UserError(f"{who} names {name!r}, which {table.name} does not have", hint)
