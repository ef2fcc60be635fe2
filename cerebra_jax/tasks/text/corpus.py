"""Where a text comes from: a folder, a pinned download, or Python's standard library (offline).

A text is used byte for byte: nothing is stripped, lower-cased or re-encoded.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import platform
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cerebra_jax.config import TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.task import SPLITS, Log
from cerebra_jax.tasks.text import download, library
from cerebra_jax.tasks.text.scan import Count

OFFLINE = "python-stdlib (offline corpus)"


class Source(NamedTuple):
    """A text in three splits that can be read as streams of bytes."""

    dataset: str  # its name in result.json; "" = decided by the hash of the text
    origin: str  # where it was found
    key: str  # hash of what is read
    open: Callable[[str], BinaryIO]  # split -> stream
    files: dict[str, str]  # split -> name for messages
    notice: str = ""


class Archive(NamedTuple):
    """A pinned zip: `limit` bytes at most; the sha256 decides."""

    urls: tuple[str, ...]
    sha256: str
    limit: int
    member: str


# sha256: the same in mlx-data (wikitext.py), CorpusLoaders.jl and qnarre. The published sizes are
# 4.3 and 181 MiB. The original S3 bucket (research.metamind.io) has answered 403 since 2024.
_SMERITY = "https://wikitext.smerity.com"
_GLUON = "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/dataset"
ARCHIVES = {
    "wikitext2": Archive(
        urls=(f"{_SMERITY}/wikitext-2-v1.zip", f"{_GLUON}/wikitext-2/wikitext-2-v1.zip"),
        sha256="92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
        limit=5 << 20,
        member="wikitext-2/wiki.{}.tokens",
    ),
    "wikitext103": Archive(
        urls=(f"{_SMERITY}/wikitext-103-v1.zip", f"{_GLUON}/wikitext-103/wikitext-103-v1.zip"),
        sha256="242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
        limit=200 << 20,
        member="wikitext-103/wiki.{}.tokens",
    ),
}

# sha1 of the uncompressed texts as GluonNLP pins them (data/corpora/wikitext.py); valid and test of
# both were checked against copies of known origin. The second train text of wikitext2 is the
# official one, its articles in another order.
KNOWN = {
    "wikitext2": {
        "train": (
            "863f29c46ef9d167fff4940ec821195882fe29d1",
            "ddc62251223002638e180ea946fbe909bb7f477a",
        ),
        "valid": ("0418625c8b4da6e4b5c7a0b9e78d4ae8f7ee5422",),
        "test": ("c7b8ce0aa086fb34dab808c5c49224211eb2b172",),
    },
    "wikitext103": {
        "train": ("b7497e2dfe77e72cfef5e3dbc61b7b53712ac211",),
        "valid": ("c326ac59dc587676d58c422eb8a03e119582f92b",),
        "test": ("8a5befc548865cec54ed4273cf87dbbad60d1e47",),
    },
}

# what the file of a split may be called, before its endings
_NAMES = {"train": "train", "valid": "valid|validation|val|dev", "test": "test"}


def find(cfg: TaskCfg, have: Callable[[str], bool], downloads: Path, log: Log) -> Source:
    """Returns the text that a configuration asks for; raises UserError where there is none.

    `have(key)` says whether the text of this key was prepared before: then nothing is downloaded
    again.
    """
    if cfg.data_dir:
        return folder(Path(cfg.data_dir).expanduser())
    if cfg.dataset == "offline":
        return offline("task.dataset=offline")

    pin = ARCHIVES[cfg.dataset]
    path = downloads / f"{cfg.dataset}-{pin.sha256[:8]}.zip"
    if not have(pin.sha256):
        downloads.mkdir(parents=True, exist_ok=True)
        try:
            download.fetch(pin.urls, path, pin.sha256, pin.limit, log)
        except download.Unavailable as err:
            if not cfg.offline_fallback:
                hint = "give its files with --config.task.data_dir=DIR, or allow "
                hint += "--config.task.offline_fallback=True"
                raise UserError(f"{cfg.dataset} cannot be downloaded ({err})", hint) from None
            log(f"no download of {cfg.dataset}: {err}")
            return offline(f"{cfg.dataset} cannot be downloaded here")
    return archive(path, pin, cfg.dataset)


def name_of(source: Source, counts: dict[str, Count]) -> str:
    """Returns the true name of a text: its hash tells a known one, whatever it is called."""
    if source.dataset:
        return source.dataset
    for name, known in KNOWN.items():
        if all(counts[split].sha1 in known[split] for split in SPLITS):
            return name
    return f"text:{Path(source.origin).resolve().name}"


def archive(path: Path, pin: Archive, dataset: str) -> Source:
    """Returns the members of a zip, read in place.

    Nothing is extracted, so no name in it can point anywhere.
    """
    files = {split: pin.member.format(split) for split in SPLITS}

    def open_member(split: str) -> BinaryIO:
        with zipfile.ZipFile(path) as z:
            return z.open(files[split])  # keeps the archive's file open until it is closed itself

    return Source(dataset, pin.urls[0], pin.sha256, open_member, files)


def folder(path: Path) -> Source:
    """Returns train, valid and test of a folder: plain or .gz.

    They are named like train.txt or wiki.train.tokens.gz.
    """
    if not path.is_dir():
        hint = "give the folder that holds train.txt, valid.txt, test.txt"
        raise UserError(f"task.data_dir {path} is not a folder", hint)
    try:
        found = {split: _file_of(path, split) for split in SPLITS}
        key = _hash(download.digest(file) + file.suffix for file in found.values())
    except OSError as err:
        what = f"{err.filename} cannot be read: {err.strerror}"
        raise UserError(what, "check its permissions") from None

    def open_file(split: str) -> BinaryIO:
        file = found[split]
        return gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb")

    return Source("", str(path), key, open_file, {split: str(p) for split, p in found.items()})


def _file_of(path: Path, split: str) -> Path:
    """Returns the file that holds a split in a folder.

    Raises UserError where there is none, or more than one.
    """
    pattern = re.compile(rf"(wiki\.)?({_NAMES[split]})(\.(txt|tokens|raw|text))?(\.gz)?")
    hits = sorted(p for p in path.iterdir() if pattern.fullmatch(p.name) and p.is_file())
    if not hits:
        hint = f"add {split}.txt (or {split}.txt.gz, wiki.{split}.tokens)"
        raise UserError(f"{path} has no {split} text", hint)
    if len(hits) > 1:
        names = ", ".join(p.name for p in hits)
        raise UserError(f"{path} has {len(hits)} {split} texts: {names}", "keep one")
    return hits[0]


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def offline(why: str) -> Source:
    """Returns the text of the running Python's standard library.

    `why` becomes a part of its notice.
    """
    root = library.root()
    files = library.read(root)
    if any(not files[split] for split in SPLITS):
        hint = "give text with --config.task.data_dir=DIR"
        raise UserError(f"no offline corpus: {root} holds no Python sources", hint)

    def open_split(split: str) -> BinaryIO:
        return io.BytesIO(b"".join(files[split].values()))

    version = platform.python_version()
    n_files = sum(len(texts) for texts in files.values())
    return Source(
        dataset=OFFLINE,
        origin=f"standard library of Python {version}: {n_files} files",
        key=_hash(
            f"{split} {name} {hashlib.sha256(data).hexdigest()}"
            for split in SPLITS
            for name, data in files[split].items()
        ),
        open=open_split,
        files={split: f"{root} ({split})" for split in SPLITS},
        notice=f"OFFLINE CORPUS: this is the source text of Python {version}'s standard library, "
        f"not WikiText ({why})",
    )
