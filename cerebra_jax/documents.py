"""Reads the JSON files of a folder that anyone may have written, and checks them by a shape.

A shape says what a value must be, in the form of the value itself:

    {"steps": WHOLE, "notice?": or_null(TEXT), "gates?": {"*": [NUMBER]}}

A name that ends in "?" may be missing, "*" stands for all names that are not listed. Other names
may be there and hold anything. Whatever is wrong is one UserError, which names the file, the place
and what belongs there: "RUN/result.json: costs.dense is missing".
"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cerebra_jax import errors
from cerebra_jax.errors import UserError

DEEPEST = 64  # levels inside each other
LARGEST = 1 << 28  # bytes of a document
LONGEST = 1 << 24  # bytes of a line
MOST = 1e60  # the products of a few such numbers are still finite
HINT = "take the file of an undamaged run"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of value: what a person calls it, and whether a value is one."""

    name: str
    fits: Callable[[Any], bool]


Shape = Kind | Sequence[Any] | Mapping[str, Any]


def number(least: float = -MOST, most: float = MOST, above: bool = False) -> Kind:
    """Returns the kind of finite numbers in these bounds; `above`: the least is left out."""

    def fits(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return least <= value <= most and not (above and value == least)  # NaN fails too

    bound = f" above {least:g}" if above else "" if least == -MOST else f" of at least {least:g}"
    return Kind(f"a number{bound}" if bound else "a finite number", fits)


def whole(least: int = 0, most: float = MOST) -> Kind:
    """Returns the kind of whole numbers in these bounds."""

    def fits(value: Any) -> bool:
        return type(value) is int and least <= value <= most

    upto = "" if most == MOST else f" and at most {most:g}"
    return Kind(f"a whole number of at least {least}{upto}", fits)


def one_of(*names: str) -> Kind:
    """Returns the kind of these words."""
    return Kind(f"one of {', '.join(names)}", lambda value: value in names)


def or_null(kind: Kind) -> Kind:
    """Returns a kind that may be null as well."""
    return Kind(f"{kind.name} or null", lambda value: value is None or kind.fits(value))


ANY = Kind("anything", lambda value: True)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = number()
POSITIVE = number(0.0, above=True)
TEXT = Kind("text", lambda value: isinstance(value, str))
WHOLE = whole()


def read(path: Path, shape: Shape = ANY, hint: str = HINT) -> Any:
    """Returns the value of a JSON file that has this shape.

    Raises UserError where there is no such file, and DiskError where it cannot be read.
    """
    try:
        with _regular(path) as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise errors.of_os(error, path, hint) from None
    if len(data) > LARGEST:
        raise UserError(f"{path} is larger than {LARGEST:,} bytes", hint)
    return check(_parsed(data, str(path), hint), shape, str(path), hint)


def read_or_nothing(path: Path) -> dict[str, Any]:
    """Returns the object that a file holds; {} where there is none, for a caller that can do
    without.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_lines(path: Path, shape: Shape = ANY, hint: str = HINT) -> Iterator[tuple[str, Any]]:
    """Yields (where it stands, its value) of each line of JSON; a torn last line is left out.

    Raises UserError where there is no such file, or where a line has another shape.
    """
    for where, data in raw_lines(path, hint):
        yield where, check(_parsed(data, where, hint), shape, where, hint)


def raw_lines(path: Path, hint: str = HINT) -> Iterator[tuple[str, bytes]]:
    """Yields (where it stands, its bytes) of each whole line of a file."""
    try:
        with _regular(path) as file:
            number = 0
            while data := file.readline(LONGEST + 1):
                number += 1
                where = f"{path}, line {number}"
                if len(data) > LONGEST:
                    raise UserError(f"{where} is longer than {LONGEST:,} bytes", hint)
                if data.endswith(b"\n"):  # a kill can tear the last line only
                    yield where, data
    except OSError as error:
        raise errors.of_os(error, path, hint) from None


def check(value: Any, shape: Shape, where: str, hint: str = HINT) -> Any:
    """Returns a value that has this shape; raises UserError where it has another one."""
    _check(value, shape, "", lambda what: _refuse(where, what, hint))
    return value


def _refuse(where: str, what: str, hint: str) -> NoReturn:
    raise UserError(f"{where}: {what}", hint)


def _check(value: Any, shape: Shape, place: str, refuse: Callable[[str], NoReturn]) -> None:
    if isinstance(shape, Kind):
        if not shape.fits(value):
            refuse(f"{place or 'this'} is {described(value)}, not {shape.name}")
    elif isinstance(shape, Mapping):
        if not isinstance(value, dict):
            refuse(f"{place or 'this'} is {described(value)}, not an object")
        _check_names(value, shape, place, refuse)
    else:
        if not isinstance(value, list):
            refuse(f"{place or 'this'} is {described(value)}, not a list")
        for i, item in enumerate(value):
            _check(item, shape[0], f"{place}[{i}]", refuse)


def _check_names(
    value: dict[str, Any],
    shape: Mapping[str, Any],
    place: str,
    refuse: Callable[[str], NoReturn],
) -> None:
    inside = f"{place}." if place else ""
    listed = set()
    for entry, own in shape.items():
        name = entry.removesuffix("?")
        listed.add(name)
        if name in value:
            _check(value[name], own, inside + name, refuse)
        elif entry == name and name != "*":
            refuse(f"{inside}{name} is missing")
    if "*" in shape:
        for name in value.keys() - listed:
            _check(value[name], shape["*"], inside + name, refuse)


def described(value: Any) -> str:
    """Returns what a value is, in a few words."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null"
    if isinstance(value, int) and not -MOST < value < MOST:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _regular(path: Path) -> Any:
    """Returns the open file; raises OSError for a folder, and UserError for a pipe or a device.

    Reading a pipe would wait for ever.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(21, os.strerror(21), str(path))
        raise UserError(f"{path} is no file", HINT)
    return open(number, "rb")


def _parsed(data: bytes, where: str, hint: str) -> Any:
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is damaged (not UTF-8 at byte {error.start})", hint) from None
    except RecursionError:
        raise UserError(f"{where} is damaged (too deeply nested)", hint) from None
    except ValueError as error:  # not JSON, or a number of thousands of digits
        raise UserError(f"{where} is damaged ({error})", hint) from None
    if _is_deep(value):
        raise UserError(f"{where} is damaged (too deeply nested)", hint)
    return value


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _is_deep(value: Any) -> bool:
    """Returns whether a value has more than DEEPEST levels."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inside: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inside += item.values()
            elif isinstance(item, list):
                inside += item
        level = inside
    return bool(level)
