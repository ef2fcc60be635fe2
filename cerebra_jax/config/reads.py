"""Which keys a run reads. A key that was set, and that nothing has read once the first step is
compiled, has no effect in that run, and a person should know it.

There is no list of such keys: `watched` returns the configuration with sections that note each
field that is read. What Python does with a whole section (copy, compare, hash, write as JSON) is no
reading.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

Section = TypeVar("Section")
_WHOLE = (dataclasses.__file__, "<string>")  # the code of replace and asdict, and of == and hash
_read: set[tuple[str, str]] = set()  # (name of a section's class, name of a field)
_paused: list[bool] = []


def watched(cfg: Section) -> Section:
    """Returns a configuration whose readings are noted from here on; forgets those of before."""
    _read.clear()
    return _watched(cfg)


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Notes nothing inside: for rules, which look at keys that a run has no use for."""
    _paused.append(True)
    try:
        yield
    finally:
        _paused.pop()


def unread(cfg: Any, prefix: str = "") -> list[str]:
    """Returns the keys that are not at their defaults and were not read since `watched`.

    None of a configuration that is not watched.
    """
    if not isinstance(cfg, _Watching):
        return []
    found = []
    for field in dataclasses.fields(cfg):
        value = vars(cfg)[field.name]
        if dataclasses.is_dataclass(value):
            found += unread(value, f"{prefix}{field.name}.")
        elif value != field.default and (type(cfg).__name__, field.name) not in _read:
            found.append(prefix + field.name)
    return found


def _watched(section: Any) -> Any:
    if not dataclasses.is_dataclass(section):
        return section
    copy = object.__new__(_watching(type(section)))
    copy.__dict__.update({name: _watched(value) for name, value in vars(section).items()})
    return copy


@functools.cache
def _watching(cls: type) -> type:
    """Returns a subclass that notes which fields are read, and is equal to what it is made of."""
    if issubclass(cls, _Watching):
        return cls
    return type(cls.__name__, (_Watching, cls), {"__module__": cls.__module__})


class _Watching:
    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name.startswith("_") or _paused:
            return value
        if sys._getframe(1).f_code.co_filename not in _WHOLE:
            _read.add((type(self).__name__, name))
        return value

    def __eq__(self, other: Any) -> bool:
        plain = isinstance(other, type(self).__mro__[2])
        return plain and vars(self) == vars(other)

    def __hash__(self) -> int:
        return type(self).__mro__[2].__hash__(self)
