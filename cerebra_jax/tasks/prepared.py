"""The folder of prepared data, and the sha256 of each of its files: what a disk or a hand has
changed is noticed when the data are opened, and prepared again.

FOLDER/sha256.json     {"train.bin": sha256, ...} of all files below the folder
FOLDER/verified.json   size, times and inode of large files when they were last found good

A large file is not hashed again while its size, its times and its inode are those of the last time.
`forget` makes the next opening hash everything.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from cerebra_jax.config import TaskCfg
from cerebra_jax.documents import read_or_nothing
from cerebra_jax.tasks.text import download

SEAL = "sha256.json"
VERIFIED = "verified.json"
LARGE = 1 << 28  # bytes, 0.2 s of hashing


def cache_folder(cfg: TaskCfg) -> Path:
    """Returns the folder where prepared data and compiled programs are kept."""
    folder = cfg.cache_dir or os.environ.get("CEREBRA_CACHE") or "~/.cache/cerebra_jax"
    return Path(folder).expanduser()


def seal(folder: Path) -> None:
    """Writes the sha256 of every file below a folder that is complete."""
    found = {name: download.digest(folder / name) for name in _names(folder)}
    (folder / SEAL).write_text(json.dumps(found, indent=1), encoding="utf-8")


def seals(folder: Path) -> dict[str, str]:
    """Returns {name of a file: its sha256} as it was written; {} where nothing is readable."""
    return {name: str(value) for name, value in read_or_nothing(folder / SEAL).items()}


def damage(folder: Path) -> str:
    """Returns what is not as it was written, for a person; "" where everything is."""
    wanted, verified = seals(folder), read_or_nothing(folder / VERIFIED)
    if not wanted:
        return f"{SEAL} is missing or damaged"
    strange = sorted(set(wanted) ^ set(_names(folder)))
    if strange:
        return f"{strange[0]} is {'missing' if strange[0] in wanted else 'not of it'}"
    stamps: dict[str, Any] = {}
    for name, sha256 in wanted.items():
        path = folder / name
        stamp = _stamp(path)
        if stamp and verified.get(name) == stamp:
            stamps[name] = stamp
            continue
        if download.digest(path) != sha256:
            return f"{name} is not what was written"
        if stamp:
            stamps[name] = stamp
    if stamps != verified:
        with contextlib.suppress(OSError):  # a shared cache that nobody here can write
            (folder / VERIFIED).write_text(json.dumps(stamps), encoding="utf-8")
    return ""


def forget(cfg: TaskCfg) -> None:
    """Makes the next opening of all prepared data hash every file."""
    for path in cache_folder(cfg).rglob(VERIFIED):
        with contextlib.suppress(OSError):
            path.unlink()


def _names(folder: Path) -> list[str]:
    """Returns the files below a folder, without the two of this module."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    return [name for name in names if name not in (SEAL, VERIFIED)]


def _stamp(path: Path) -> list[int]:
    """Returns what changes whenever a large file is written; [] of a small one."""
    at = path.stat()
    return [at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino] if at.st_size > LARGE else []
