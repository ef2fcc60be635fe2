"""Turns what was written for a key into a value of the key's type, and says what is wrong with it.

No JAX here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from cerebra_jax.checks import joined
from cerebra_jax.config.names import SWITCHES, current_value
from cerebra_jax.errors import UserError

_BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_LISTS = {
    int: ("whole numbers with commas", "1,0,2"),
    float: ("numbers with commas", "0.5,1.5"),
    str: ("names with commas", "A,B"),
}


def type_name(field: dataclasses.Field) -> str:
    """Returns what a person calls the type of a key: int, str, or list of int."""
    item = field.metadata["item"]
    return f"list of {item.__name__}" if item else type(field.default).__name__


def listed(value: str | Sequence[Any]) -> list[Any]:
    """Returns the items of a list, which may be text with commas."""
    if not isinstance(value, str):
        return list(value)
    return [word.strip() for word in value.split(",") if word.strip()]


def typed(key: str, text: str, field: dataclasses.Field) -> Any:
    """Returns the value that text on the command line means.

    Raises UserError where it has another type.
    """
    want = type(field.default)
    if field.metadata["item"]:
        return _items(key, text, field.metadata["item"])
    if key in SWITCHES and text.lower() in _BOOLS:
        return current_value(key, _BOOLS[text.lower()])
    try:
        return _BOOLS[text.lower()] if want is bool else want(text)
    except (KeyError, ValueError):
        raise UserError(f"{key} is {text!r}", f"it must be of type {want.__name__}") from None


def checked(key: str, value: Any, field: dataclasses.Field) -> Any:
    """Returns the value of a key in today's form.

    Raises UserError where its type or size is wrong.
    """
    value = of_type(key, value, field)
    if field.metadata["item"]:
        return value
    want = type(field.default)
    choices, least, most = (field.metadata[name] for name in ("of", "lo", "hi"))
    if choices and value not in choices:
        raise UserError(f"{key} is {value!r}", f"choose one of {', '.join(map(str, choices))}")
    if want in (int, float) and not least <= value <= most:  # NaN fails too
        bounds = f"{key} >= {least:g}" if most == math.inf else f"{least:g} <= {key} <= {most:g}"
        raise UserError(f"{key} is {value!r}", f"choose {bounds}")
    return value


def of_type(key: str, value: Any, field: dataclasses.Field) -> Any:
    """Returns the value of a key in today's form; raises UserError where its type is wrong."""
    if field.metadata["item"]:
        return _items(key, value, field.metadata["item"])
    want = type(field.default)
    value = current_value(key, value)
    if want is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            raise UserError(f"{key} is a huge number", "choose a smaller one") from None
    if type(value) is not want:
        raise UserError(f"{key} is {_short(value)}", f"it must be of type {want.__name__}")
    if want is str and "\0" in value:  # no path and no word has one
        raise UserError(f"{key} holds a NUL character", "leave it out")
    return value


def _short(value: Any) -> str:
    """Returns a value as Python writes it, not more than a line of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _items(key: str, value: Any, item: type) -> tuple[Any, ...]:
    """Returns a list as a tuple of items of one type."""
    if isinstance(value, str):
        try:
            return tuple(item(word) for word in listed(value))
        except ValueError:
            raise _no_list(key, value, item) from None
    if not isinstance(value, list | tuple):
        raise _no_list(key, value, item)
    kinds = (int, float) if item is float else (item,)
    if any(type(x) not in kinds for x in value):
        raise _no_list(key, joined(value), item)
    try:
        return tuple(item(x) for x in value)
    except OverflowError:
        raise _no_list(key, "a huge number", item) from None


def _no_list(key: str, value: Any, item: type) -> UserError:
    what, example = _LISTS[item]
    return UserError(f"{key} is {_short(value)}", f"give {what}: {example}")
