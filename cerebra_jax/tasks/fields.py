"""What a field of a table says: a number, a date, or nothing.

People write 1,234.5 and 1.234,5; 13.11.1993, 11/13/1993 and 1993-11-13; and a dozen marks for what
is missing. How a column is written is found from its own fields, and from the file's other columns
where they do not tell.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from cerebra_jax.config import TaskCfg

# as pandas, R, SAS, MySQL, Excel and people write what is missing; in lower case
MISSING = frozenset(
    "|na|n/a|#na|#n/a|#n/a n/a|nan|-nan|1.#qnan|-1.#qnan|1.#ind|-1.#ind|null|#null!|(null)|nil|none"
    "|<na>|nat|n.a.|k.a.|missing|(missing)|?|.|-|--|---|\\n|#value!|#ref!|#div/0!|#num!|#name?"
    "|#n/v|#wert!|#bezug!|#zahl!".split("|")
)
MISSING_BEFORE = frozenset(("", "na", "n/a", "nan", "null", "none", "?"))
NEARLY = 0.95  # share of a column's fields that decides its kind; the others count as missing
LARGEST = 3.4e38  # of float32
_SPACES = "\u00a0\u202f\u2009 "
_GROUP = {".": f"[,'’{_SPACES}]", ",": f"[.'’{_SPACES}]"}
_NUMBER = {
    mark: re.compile(
        rf"[+-]?(?:[1-9]\d{{0,2}}(?:{group}\d{{3}})+|\d+|(?={re.escape(mark)}\d))"
        rf"(?:{re.escape(mark)}\d*)?(?:[eE][+-]?\d+)?"
    )
    for mark, group in _GROUP.items()
}
_NO_GROUPS = {mark: re.compile(group) for mark, group in _GROUP.items()}
DATES = (
    "%d.%m.%Y",
    "%d.%m.%y",
    "%Y/%m/%d",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%d %b %Y",
    "%d %B %Y",
    "%b %d, %Y",
    "%B %d, %Y",
)
TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
ISO = "iso"  # of the standard ISO 8601, as datetime.fromisoformat takes it
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Marks(NamedTuple):
    """Says how missing fields, decimals and dates are marked; "" is found out."""

    missing: frozenset[str] = MISSING
    decimal: str = ""  # "." or ","
    dates: str = ""  # a form of strptime, or "iso"
    before: bool = False  # True: as tables were read by version 0.1, which knew no dates


BEFORE = Marks(MISSING_BEFORE, ".", before=True)


class Form(NamedTuple):
    """Says how the fields of a column are written."""

    kind: str  # number, date or category
    decimal: str = "."
    date: str = ""
    others: tuple[str, ...] = ()  # of a number or date: fields that are none, taken as missing
    doubt: str = ""  # what the fields could be as well


def composed(text: str) -> str:
    """Returns a category or class as it is compared: without space around it, in NFC."""
    return unicodedata.normalize("NFC", text.strip())


def absent(text: str, marks: Marks) -> bool:
    """Returns True for an empty field, and for what people and programs write in one."""
    return text.strip().lower() in marks.missing


def number(text: str, decimal: str = ".") -> float | None:
    """Returns the finite number of a field, None where it holds something else.

    decimal: "." or ","; the other one, spaces and apostrophes may part groups of three digits.
    """
    text = text.strip().replace("\u2212", "-")
    if not _NUMBER[decimal].fullmatch(text):
        return None
    plain = _NO_GROUPS[decimal].sub("", text).replace(",", ".")
    value = float(plain)
    return value if math.isfinite(value) else None


def days(text: str, form: str) -> float | None:
    """Returns the days from 1970-01-01 to a date or time, None where it is none of that form."""
    try:
        if form == ISO:
            when = datetime.fromisoformat(text.strip())
        else:
            when = datetime.strptime(text.strip(), form)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return (when - _EPOCH).total_seconds() / 86_400


def value(text: str, form: Form) -> float | None:
    """Returns what a field of numbers or dates holds, dates as days, None for any other field."""
    return days(text, form.date) if form.kind == "date" else number(text, form.decimal)


def marks_of(task: TaskCfg) -> Marks:
    """Returns what a configuration says of the marks of a table."""
    more = frozenset(way for text in task.missing for way in _spellings(text.strip().lower()))
    decimal = {"comma": ",", "point": ".", "": ""}[task.decimal]
    return Marks(MISSING | more, decimal, task.dates)


def _spellings(mark: str) -> set[str]:
    """Returns a mark as programs write it: of -999 also -999.0, -999.00 and both with a comma."""
    value = number(mark)
    if value is None:
        return {mark}
    written = {f"{value:.{digits}f}" for digits in range(3) if round(value, digits) == value}
    return {mark} | written | {text.replace(".", ",") for text in written}


def counted(column: Iterable[str], marks: Marks) -> Counter[str]:
    """Returns how often a column holds each field that is not missing."""
    counts = Counter(column)
    return Counter({text: n for text, n in counts.items() if not absent(text, marks)})


def _share(counts: Mapping[str, int], reads) -> float:
    """Returns the share of the fields that `reads` gives a value for."""
    total = sum(counts.values())
    return sum(n for text, n in counts.items() if reads(text) is not None) / total if total else 0.0


def decimal_of(columns: Iterable[Sequence[str]], marks: Marks) -> str:
    """Returns the decimal mark that some column needs and no column forbids; "" for none."""
    if marks.decimal:
        return marks.decimal
    needed = {_needed(counted(column, marks)) for column in columns} - {""}
    return needed.pop() if len(needed) == 1 else ""


def _needed(counts: Mapping[str, int]) -> str:
    """Returns the mark by which nearly all fields are numbers, "" where both do, or none does."""
    point, comma = (_share(counts, functools.partial(number, decimal=mark)) for mark in ".,")
    if max(point, comma) < NEARLY or point == comma:
        return ""
    return "." if point > comma else ","


def form_of(column: Sequence[str], marks: Marks, file_decimal: str = "", kind: str = "") -> Form:
    """Returns how a column is written; `kind` where the user has said it.

    A column is of numbers, or dates, where nearly all fields are. One of missing fields only is one
    of categories. file_decimal: the mark that the file's other columns have.
    """
    if kind == "category":
        return Form(kind)
    counts = counted(column, marks)
    if marks.before:
        numbers = all(_of_before(text) is not None for text in counts)
        return Form("number" if kind == "number" or (counts and numbers) else "category")
    known = marks.decimal or _needed(counts) or file_decimal
    decimal = known or "."
    shares = _share(counts, functools.partial(number, decimal=decimal))
    if kind == "number" or shares >= NEARLY:
        doubt = "" if known else _doubt(counts)
        return Form("number", decimal, "", _others(counts, lambda t: number(t, decimal)), doubt)
    found = _date_form(counts, marks)
    if kind == "date" or found:
        date, doubt = found or (ISO, "")
        return Form("date", decimal, date, _others(counts, lambda t: days(t, date)), doubt)
    return Form("category")


def _of_before(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def _others(counts: Mapping[str, int], reads) -> tuple[str, ...]:
    return tuple(sorted(text for text in counts if reads(text) is None))


def _doubt(counts: Mapping[str, int]) -> str:
    """Returns what numbers could mean as well whose only sign is before three digits."""
    for text in counts:
        point, comma = number(text), number(text, ",")
        if None not in (point, comma) and point != comma:
            other = f"--config.task.decimal=comma makes it {comma:,.6g}"
            return f"{text!r} is read as {point:,.6g}; {other}"
    return ""


def _date_form(counts: Mapping[str, int], marks: Marks) -> tuple[str, str] | None:
    """Returns (the form of nearly all fields, what they could be as well), None for no dates."""
    if not counts:
        return None
    if marks.dates:
        forms = [marks.dates]
    else:
        first = next(iter(counts))
        if not any(c.isdigit() for c in first) and len(counts) == 1:
            return None
        forms = [ISO, *(date + time for date in DATES for time in TIMES)]
        some = list(counts)[:20]
        forms = [form for form in forms if any(days(text, form) is not None for text in some)]
    found = [f for f in forms if _share(counts, functools.partial(days, form=f)) >= NEARLY]
    if not found:
        return None
    doubt = ""
    for other in found[1:]:
        if any(days(text, found[0]) != days(text, other) for text in counts):
            doubt = f"its dates are read as {found[0]}; they could be {other} (--config.task.dates)"
    return found[0], doubt


def dates_read(column: Sequence[str], form: str, marks: Marks) -> int:
    """Returns how many fields are dates of that form."""
    counts = counted(column, marks)
    return sum(n for text, n in counts.items() if days(text, form) is not None)
