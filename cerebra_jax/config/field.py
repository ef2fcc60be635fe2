"""What a key of a configuration holds: its default, its meaning and its allowed values."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any


def key(
    default: Any,
    doc: str,
    *,
    of: tuple[Any, ...] = (),
    lo: float = -math.inf,
    hi: float = math.inf,
    item: type | None = None,
) -> Any:
    """Returns a field with its meaning and what it may be: one of `of`, or between lo and hi, or a
    list of items.
    """
    metadata = {"doc": doc, "of": of, "lo": lo, "hi": hi, "item": item, "place": ""}
    return field(default=default, metadata=metadata)


def path(place: str, doc: str) -> Any:
    """Returns a field for a path.

    place: "read" where it names files of data, which any configuration may name; "write" where it
    names a folder to write in and to load compiled programs from, which a file of data (a run's
    config.json) may not name.
    """
    plain = {"of": (), "lo": -math.inf, "hi": math.inf, "item": None}
    return field(default="", metadata={"doc": doc, "place": place} | plain)
