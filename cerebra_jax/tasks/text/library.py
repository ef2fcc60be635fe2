"""The offline corpus: the *.py text of the running Python's standard library, in three splits."""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from cerebra_jax.tasks.task import SPLITS

TRAIN_BYTES = 8 << 20  # at most
VALID, TEST = (
    0.05,
    0.10,
)  # a file whose hash is below VALID is for validation, else below TEST a test

# Tests and installed packages are not the library; config-* and _sysconfigdata* differ between
# machines.
_SKIP_FOLDER = re.compile(
    r"tests?|idlelib|idle_test|site-packages|dist-packages|ensurepip|__pycache__|lib2to3"
    r"|turtledemo|config-.*"
)
_SKIP_FILE = re.compile(r"_sysconfigdata.*|sitecustomize\.py|.*(?<!\.py)")


def root() -> Path:
    """Returns the folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def read(folder: Path) -> dict[str, dict[str, bytes]]:
    """Returns {split: {relative path: text}} of the sources below a folder, sorted by path.

    A file belongs to a split by the hash of its content, so that copies of it never stand on both
    sides. Where train is larger than TRAIN_BYTES, the files of the largest hashes are left out.
    """
    splits: dict[str, dict[str, bytes]] = {split: {} for split in SPLITS}
    hashes: dict[str, str] = {}
    for name in _files(folder):
        data = (folder / name).read_bytes()
        if data and b"\0" not in data and _is_utf8(data):
            hashes[name] = hashlib.sha256(data).hexdigest()
            splits[_split(hashes[name])][name] = data if data.endswith(b"\n") else data + b"\n"

    size = 0
    for name in sorted(splits["train"], key=lambda name: (hashes[name], name)):
        size += len(splits["train"][name])
        if size > TRAIN_BYTES:
            del splits["train"][name]
    return {split: dict(sorted(texts.items())) for split, texts in splits.items()}


def _split(sha256: str) -> str:
    fraction = int(sha256[:8], 16) / 2**32
    if fraction < VALID:
        return "valid"
    return "test" if fraction < TEST else "train"


def _files(root: Path) -> Iterator[str]:
    for here, folders, files in os.walk(root):
        folders[:] = [folder for folder in folders if not _SKIP_FOLDER.fullmatch(folder)]
        for file in files:
            if not _SKIP_FILE.fullmatch(file):
                yield Path(here, file).relative_to(root).as_posix()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
