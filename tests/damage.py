"""What a disk, a program or a hand may do to a file; where it is done comes from a seeded draw."""

from __future__ import annotations

import random
from pathlib import Path


def flip(path: Path, rng: random.Random) -> None:
    """Flips one bit."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random) -> None:
    """Cuts the end off."""
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def zero(path: Path, rng: random.Random) -> None:
    """Writes zeros over all of it."""
    path.write_bytes(bytes(path.stat().st_size))


def delete(path: Path, rng: random.Random) -> None:
    """Takes the file away."""
    path.unlink()


def rename(path: Path, rng: random.Random) -> None:
    """Gives the file another name."""
    path.rename(path.with_name(f"{path.name}{rng.choice('~_x')}"))


TO_A_FILE = (flip, truncate, zero, delete, rename)


def files(folder: Path) -> list[Path]:
    """Returns the files below a folder that are not empty, in order."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
