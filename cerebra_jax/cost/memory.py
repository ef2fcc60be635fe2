"""Knows how much memory is free, and which errors say that there was not enough. No JAX here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path("/")
ALWAYS = 1 << 60  # bytes; where nothing can be known, everything fits
_FULL = ("RESOURCE_EXHAUSTED", "std::bad_alloc", "Out of memory", "out of memory")


def free(device: Any) -> int:
    """Returns the bytes that a `jax.Device` can still give, those of the machine for a CPU."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return free_on_host() if device.platform == "cpu" else ALWAYS


def free_on_host(root: Path = ROOT) -> int:
    """Returns the bytes that this process can still take: of the machine, and of its cgroups.

    `ALWAYS` on a system that does not say.
    """
    return min([_of_machine(root), *_of_cgroups(root)])


def _of_machine(root: Path) -> int:
    for line in _lines(root / "proc/meminfo"):
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) * 1024
    return ALWAYS


def _of_cgroups(root: Path) -> Iterator[int]:
    """Yields what each group of this process, and each that holds it, leaves to it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # the second version
            base, limit, used, cache = "sys/fs/cgroup", "max", "current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, used = "sys/fs/cgroup/memory", "limit_in_bytes", "usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = root / base / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root / base):
                break
            most = _number(folder / f"memory.{limit}")
            if most is None:  # no limit, or a group that this process does not see
                continue
            taken = _number(folder / f"memory.{used}") or 0
            dropped = _stat(folder / "memory.stat", cache)  # the system takes it back when needed
            yield max(0, most - taken + dropped)


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _stat(path: Path, name: str) -> int:
    found = dict(line.split() for line in _lines(path) if len(line.split()) == 2)
    return int(found[name]) if name in found else 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def is_exhausted(error: BaseException) -> bool:
    """Returns whether an error says that memory was not enough: Python's own, or XLA's by its text.

    XLA has no class for it.
    """
    if isinstance(error, MemoryError):
        return True
    is_xla = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return is_xla and any(words in str(error) for words in _FULL)


def shown(size: float) -> str:
    """Returns bytes for a person: "3.2 GB"."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
