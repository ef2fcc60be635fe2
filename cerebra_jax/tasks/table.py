"""Tables as columns of text, from the files and objects in which people have them.

CSV is read by Python's csv module: it names the line of a fault, which pyarrow's reader does not.
Parquet, Feather and whatever speaks Arrow (a DataFrame of pandas or polars) is read by pyarrow.

What a file does not say is found out: its compression, its encoding, and the sign between its
fields. Every way in which a file can be broken is one UserError, which names the line.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import itertools
import lzma
import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cerebra_jax.config import suggest
from cerebra_jax.cost import memory
from cerebra_jax.errors import UserError

DELIMITERS = ",;\t|"
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LOOKED_AT = 200  # rows by which the delimiter is chosen
LIMIT = 1 << 24  # characters of one field
LARGEST_UNPACKED = 1 << 28  # bytes of what a packed file becomes
AS_TABLE = 6  # bytes in memory for each byte of a CSV file, at least
OF_FIELD = 64  # bytes in memory for each field of a Parquet file
BINARY = (".parquet", ".pq", ".feather", ".arrow")
HINT_BINARY = "copy the file again, or give a CSV file"
PACKED = (".gz", ".bz2", ".xz", ".zst")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Format(NamedTuple):
    """Says what a user knows of a text file; "" is found out."""

    delimiter: str = ""  # one sign, or "tab"
    encoding: str = ""


FOUND_OUT = Format()


class Table(NamedTuple):
    """Columns by name, all of one length, as text."""

    name: str
    columns: dict[str, list[str]]
    file: str = ""  # where the rows come from; "": not a file
    # the line of the file in which each row begins; of rows from several files, where it stands
    lines: Sequence[int | str] = ()
    how: str = ""  # what was found out of the file

    @property
    def rows(self) -> int:
        """Returns how many rows the table has."""
        return len(next(iter(self.columns.values())))

    def place(self, row: int) -> str:
        """Returns where a row stands, for a message: FILE:LINE, or its number from 1 on."""
        if self.lines:
            line = self.lines[row]
            return line if isinstance(line, str) else f"{self.file}:{line}"
        return f"{self.file or self.name}, row {row + 1}"


def read(path: str, form: Format = FOUND_OUT) -> Table:
    """Returns the table of a file: CSV (plain or compressed), Parquet or Feather.

    UserError: no such file, not text, empty, without rows, a name twice, a row of another length.
    """
    file = Path(path).expanduser()
    name = _stem(file)
    if file.suffix.lower() in BINARY:
        _require_file(file)
        return of_arrow(_read_binary(file), name, str(file))
    text, encoding = decoded(file, form.encoding)
    text, delimiter, before = _delimiter_named(text, form.delimiter)
    delimiter = delimiter or delimiter_of(text)
    csv.field_size_limit(LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begins = before + 1  # the line of the file in which the next row begins
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        header = _header(file, next(reader, []))
        begins = before + reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                what = f"{file}:{begins} has {len(row)} fields, "
                hint = f"mend that line, or name what stands between fields, {_shown(delimiter)} "
                hint += "here: --config.task.delimiter"
                raise UserError(f"{what}the header has {len(header)}", hint)
            if row:  # no empty line
                rows.append(row)
                lines.append(begins)
            begins = before + reader.line_num + 1
    except csv.Error as e:
        raise UserError(f"{file}:{begins} is not CSV ({e})", "mend that line") from None
    if not rows:
        raise UserError(f"{file} has no rows", "give a table with a header and rows")
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    how = f"{encoding}, fields parted by {_shown(delimiter)}"
    return Table(name, columns, str(file), lines, how)


def joined(tables: Sequence[Table], name: str, file: str) -> Table:
    """Returns the rows of several tables as one.

    UserError where one of them lacks a column of the first.
    """
    first = tables[0]
    columns: dict[str, list[str]] = {column: [] for column in first.columns}
    lines: list[int | str] = []
    for table in tables:
        for column in columns:
            known(table, column, first.file)
            columns[column] += table.columns[column]
        lines += [table.place(i) for i in range(table.rows)]
    return Table(name, columns, file, lines, first.how)


def _shown(delimiter: str) -> str:
    return NAMES.get(delimiter, repr(delimiter))


def _stem(file: Path) -> str:
    name = file.name
    for end in (*PACKED, ".csv", ".tsv", ".txt", *BINARY):
        name = name.removesuffix(end)
    return name or file.name


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


# text files: compression, encoding, delimiter


def text_of(file: Path) -> str:
    """Returns the text of a file, plain or compressed; raises UserError where there is none."""
    return decoded(file)[0]


def decoded(file: Path, encoding: str = "") -> tuple[str, str]:
    """Returns (the text of a file, what it is encoded in), characters composed (NFC).

    A byte-order mark decides, then UTF-8 where the bytes are that, then UTF-16 where every second
    byte is 0, then Windows-1252. UserError names the line where that fails.
    """
    data = _bytes_of(file)
    encoding = encoding or _encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as e:
        line = 1 + len(_NEWLINE.findall(data[: e.start].decode(encoding, "replace")))
        hint = "save it as UTF-8, or name its encoding: --config.task.encoding=utf-16, say"
        what = f"{file}:{line} is not {_public(encoding)} (byte {data[e.start]:#04x})"
        raise UserError(what, hint) from None
    except LookupError:
        hint = "use utf-8, utf-16, cp1252, latin-1 …, as Python names them"
        raise UserError(f"task.encoding is {encoding!r}, which is no encoding", hint) from None
    return unicodedata.normalize("NFC", text.removeprefix("\ufeff")), _public(encoding)


def _public(encoding: str) -> str:
    names = {"utf-8-sig": "UTF-8", "utf-8": "UTF-8", "cp1252": "Windows-1252"}
    return names.get(encoding, encoding.upper())


def _encoding_of(data: bytes) -> str:
    for mark, name in _BOMS:
        if data.startswith(mark):
            return name
    try:
        data.decode("utf-8")
        plain = True
    except UnicodeDecodeError:
        plain = False
    head = data[:4096]
    for name, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if len(zeros) > 8 and zeros.count(0) > 0.4 * len(zeros):
            return name
    return "utf-8" if plain else "cp1252"


def _require_file(file: Path) -> None:
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"{file} {what}", "give a file: --config.task.path=FILE")


def _unzstd(file: Path) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(file)), "zstd")


_OPEN: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _unzstd,
}


def _bytes_of(file: Path) -> bytes:
    """Returns the bytes of a file, unpacked by what its name ends with.

    A packed one is read up to LARGEST_UNPACKED bytes, however much it would become; a plain one
    has its size on the disk, and memory must hold what is made of it.
    """
    _require_file(file)
    opened = _OPEN.get(file.suffix.lower())
    try:
        if opened is None:
            _require_memory(file, AS_TABLE * file.stat().st_size)
            return file.read_bytes()
        with opened(file) as stream:
            data = stream.read(LARGEST_UNPACKED + 1)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as e:
        hint = f"give text, plain or packed ({', '.join(PACKED)})"
        raise UserError(f"{file} cannot be read ({e})", hint) from None
    if len(data) > LARGEST_UNPACKED:
        what = f"{file} unpacks to more than {LARGEST_UNPACKED >> 20} MiB"
        raise UserError(what, "unpack it yourself and give the plain file, or a part of it")
    return data


def _require_memory(file: Path, need: int) -> None:
    """Raises UserError where what is made of a file does not fit into free memory."""
    if need > (free := memory.free_on_host()):
        what = (
            f"{file} needs about {memory.shown(need)} of memory, and {memory.shown(free)} are free"
        )
        raise UserError(what, "give a part of it")


def _delimiter_named(text: str, given: str) -> tuple[str, str, int]:
    """Returns (text, delimiter, lines left out of the text) as the user or the file itself says.

    Excel writes `sep=;` into a first line of its own.
    """
    first, *rest = _NEWLINE.split(text, maxsplit=1)
    first = first.strip("\ufeff")
    if first.lower().startswith("sep=") and len(first) == 5:
        return "".join(rest), "\t" if given == "tab" else given or first[4], 1
    return text, "\t" if given in ("tab", "\\t") else given, 0


def delimiter_of(text: str) -> str:
    """Returns what parts the fields of a text.

    That is the sign by which most of the first rows have as many fields as the header, two at
    least; of several, the one that makes most fields.
    """
    csv.field_size_limit(LIMIT)

    def fit(delimiter: str) -> tuple[bool, float, int]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            rows = [row for row in itertools.islice(reader, LOOKED_AT) if row]
        except csv.Error:
            return False, 0.0, 0
        if not rows:
            return False, 0.0, 0
        fields = len(rows[0])
        return fields > 1, sum(len(row) == fields for row in rows) / len(rows), fields

    return max(DELIMITERS, key=fit)


# what has types already


def _read_binary(file: Path) -> Any:
    import pyarrow
    from pyarrow import feather, parquet

    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            about = parquet.read_metadata(file)  # a few bytes may stand for very many rows
            _require_memory(file, OF_FIELD * about.num_rows * about.num_columns)
            return parquet.read_table(file)
        return feather.read_table(file)
    except (pyarrow.ArrowException, OSError, MemoryError) as e:
        first = (str(e).splitlines() or [""])[0]
        raise UserError(f"{file} cannot be read ({first})", HINT_BINARY) from None


def of_arrow(table: Any, name: str, file: str = "") -> Table:
    """Returns an Arrow table as columns of text; "" where a value is missing.

    UserError names a column that holds lists or other nested values.
    """
    import pyarrow

    columns = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        kind = field.type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        if pyarrow.types.is_nested(kind) or pyarrow.types.is_binary(kind):
            hint = "leave it out, or write it as text or numbers"
            raise UserError(f"column {field.name} of {file or name} holds {kind}", hint)
        columns[field.name] = [plain(value) for value in column.to_pylist()]
    if not columns or not table.num_rows:
        raise UserError(f"{file or name} has no rows", "give a table with columns and rows")
    _header(Path(file or name), list(columns))
    return Table(name, columns, file, (), "typed columns")


def plain(value: Any) -> str:
    """Returns a value as the text of a field; "" for what is missing.

    Numbers keep all their digits, dates are in ISO form.
    """
    if value is None:
        return ""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "item"):  # numpy's
        return plain(value.item())
    return str(value)


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
