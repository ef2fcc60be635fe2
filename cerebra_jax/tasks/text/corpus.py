"""Where text comes from: a folder, a pinned download, or Python's own standard library (the offline corpus).

A text is used byte for byte: nothing is stripped, lower-cased or re-encoded. A line ends at "\\n" and nowhere else.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import platform
import re
import sysconfig
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cerebra_jax.config import TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.text import download

SPLITS = ("train", "valid", "test")
BLOCK = 1 << 16  # bytes of a record
OFFLINE = "python-stdlib (offline corpus)"
OFFLINE_TRAIN_BYTES = 8 << 20


class Source(NamedTuple):
    """A text in three splits that can be read as streams of bytes."""

    dataset: str  # its name in result.json; "" = decided by the hash of the text
    origin: str  # where it was found
    key: str  # hash of what is read
    open: Callable[[str], BinaryIO]  # split -> stream
    files: dict[str, str]  # split -> name for messages
    notice: str = ""


class Count(NamedTuple):
    """What a split holds. A word is what stands between white space; every line also counts one <eos>."""

    bytes: int
    lines: int
    words: int
    blocks: int
    sha256: str
    sha1: str


class Archive(NamedTuple):
    """A pinned zip: `limit` bytes at most; the sha256 decides."""

    urls: tuple[str, ...]
    sha256: str
    limit: int
    member: str


# sha256: the same in mlx-data (wikitext.py), CorpusLoaders.jl and qnarre. The published sizes are 4.3 and 181 MiB.
# The original S3 bucket (research.metamind.io) has answered 403 since 2024.
ARCHIVES = {
    "wikitext2": Archive(
        ("https://wikitext.smerity.com/wikitext-2-v1.zip",
         "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/dataset/wikitext-2/wikitext-2-v1.zip"),
        "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c", 5 << 20, "wikitext-2/wiki.{}.tokens"),
    "wikitext103": Archive(
        ("https://wikitext.smerity.com/wikitext-103-v1.zip",
         "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/dataset/wikitext-103/wikitext-103-v1.zip"),
        "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590", 200 << 20, "wikitext-103/wiki.{}.tokens"),
}  # fmt: skip

# sha1 of the uncompressed texts as GluonNLP pins them (data/corpora/wikitext.py); valid and test of both were checked
# against copies of known origin. The second train text of wikitext2 is the official one, its articles in another order.
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


def find(
    cfg: TaskCfg, have: Callable[[str], bool], downloads: Path, say: Callable[[str], None]
) -> Source:
    """The text that a configuration asks for. `have(key)`: prepared already, so that nothing is downloaded again."""
    if cfg.data_dir:
        return folder(Path(cfg.data_dir).expanduser())
    if cfg.dataset == "offline":
        return offline("task.dataset=offline")
    pin = ARCHIVES[cfg.dataset]
    path = downloads / f"{cfg.dataset}-{pin.sha256[:8]}.zip"
    if not have(pin.sha256):
        downloads.mkdir(parents=True, exist_ok=True)
        try:
            download.fetch(pin.urls, path, pin.sha256, pin.limit, say)
        except download.Unavailable as err:
            if not cfg.offline_fallback:
                raise UserError(
                    f"{cfg.dataset} cannot be downloaded ({err})",
                    "give its files with --config.task.data_dir=DIR, or allow --config.task.offline_fallback=True",
                ) from None
            say(f"no download of {cfg.dataset}: {err}")
            return offline(f"{cfg.dataset} cannot be downloaded here")
    return archive(path, pin, cfg.dataset)


def name_of(source: Source, counts: dict[str, Count]) -> str:
    """The true name: a known text by its hash, whatever the folder or the configuration call it."""
    if source.dataset:
        return source.dataset
    for name, known in KNOWN.items():
        if all(counts[split].sha1 in known[split] for split in SPLITS):
            return name
    return f"text:{Path(source.origin).resolve().name}"


def archive(path: Path, pin: Archive, dataset: str) -> Source:
    """The members of a zip, read in place: nothing is extracted, so no name in it can point anywhere."""
    files = {split: pin.member.format(split) for split in SPLITS}
    return Source(
        dataset, pin.urls[0], pin.sha256, lambda split: _member(path, files[split]), files
    )


def _member(path: Path, name: str) -> BinaryIO:
    with zipfile.ZipFile(path) as z:
        return z.open(name)  # the member keeps the archive's file open until it is closed itself


def folder(path: Path) -> Source:
    """train, valid and test of a folder: plain or .gz, named like train.txt or wiki.train.tokens.gz."""
    if not path.is_dir():
        raise UserError(
            f"task.data_dir {path} is not a folder",
            "give the folder that holds train.txt, valid.txt, test.txt",
        )
    found: dict[str, Path] = {}
    try:
        for split, names in {
            "train": "train",
            "valid": "valid|validation|val|dev",
            "test": "test",
        }.items():
            pattern = re.compile(rf"(wiki\.)?({names})(\.(txt|tokens|raw|text))?(\.gz)?")
            hits = sorted(p for p in path.iterdir() if pattern.fullmatch(p.name) and p.is_file())
            if not hits:
                mend = f"add {split}.txt (or {split}.txt.gz, wiki.{split}.tokens)"
                raise UserError(f"{path} has no {split} text", mend)
            if len(hits) > 1:
                raise UserError(
                    f"{path} has {len(hits)} {split} texts: {', '.join(p.name for p in hits)}",
                    "keep one",
                )
            found[split] = hits[0]
        key = _hash(download.digest(found[split]) + found[split].suffix for split in SPLITS)
    except OSError as err:
        raise UserError(
            f"{err.filename} cannot be read: {err.strerror}", "check its permissions"
        ) from None
    files = {split: str(p) for split, p in found.items()}
    return Source("", str(path), key, lambda split: _plain_or_gz(found[split]), files)


def _plain_or_gz(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _hash(parts: Iterator[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def offline(why: str) -> Source:
    """The *.py text of the running Python's standard library: sorted, split by the hash of each file (90/5/5)."""
    root = Path(sysconfig.get_path("stdlib"))
    files = _library(root)
    if any(not files[split] for split in SPLITS):
        raise UserError(
            f"no offline corpus: {root} holds no Python sources",
            "give text with --config.task.data_dir=DIR",
        )
    key = _hash(
        f"{split} {name} {hashlib.sha256(files[split][name]).hexdigest()}"
        for split in SPLITS
        for name in files[split]
    )
    version = platform.python_version()
    return Source(
        OFFLINE,
        f"standard library of Python {version}: {sum(map(len, files.values()))} files",
        key,
        lambda split: io.BytesIO(b"".join(files[split].values())),
        {split: f"{root} ({split})" for split in SPLITS},
        f"OFFLINE CORPUS: this is the source text of Python {version}'s standard library, not WikiText ({why})",
    )


# Tests and installed packages are not the library; config-* and _sysconfigdata* differ between machines.
_SKIP_FOLDER = re.compile(
    r"tests?|idlelib|idle_test|site-packages|dist-packages|ensurepip|__pycache__|lib2to3|turtledemo|config-.*"
)
_SKIP_FILE = re.compile(r"_sysconfigdata.*|sitecustomize\.py|.*(?<!\.py)")


def _library(root: Path) -> dict[str, dict[str, bytes]]:
    """{split: {relative path: text}}, sorted by path. Where train is too large, the files of the largest hash go."""
    splits: dict[str, dict[str, bytes]] = {split: {} for split in SPLITS}
    order: dict[str, str] = {}
    for name in _files(root):
        data = (root / name).read_bytes()
        if not data or b"\0" in data or not _is_utf8(data):
            continue
        order[name] = hashlib.sha256(data).hexdigest()
        share = (
            int(order[name][:8], 16) / 2**32
        )  # by content: copies of a file never stand on both sides
        split = "valid" if share < 0.05 else "test" if share < 0.10 else "train"
        splits[split][name] = data if data.endswith(b"\n") else data + b"\n"
    size = 0
    for name in sorted(splits["train"], key=lambda n: (order[n], n)):
        size += len(splits["train"][name])
        if size > OFFLINE_TRAIN_BYTES:
            del splits["train"][name]
    return {split: dict(sorted(texts.items())) for split, texts in splits.items()}


def _files(root: Path) -> Iterator[str]:
    for here, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not _SKIP_FOLDER.fullmatch(f)]
        yield from (
            Path(here, f).relative_to(root).as_posix() for f in files if not _SKIP_FILE.fullmatch(f)
        )


def _is_utf8(data: bytes) -> bool:
    try:
        return data.decode() is not None
    except UnicodeDecodeError:
        return False


def blocks(stream: BinaryIO, size: int = BLOCK) -> Iterator[bytes]:
    """Whole lines, at most `size` bytes together; a longer line is cut where no word is cut, if it has such a place."""
    rest = b""
    while data := stream.read(size - len(rest)):
        rest += data
        if len(rest) == size:
            cut = rest.rfind(b"\n") + 1 or _cut_in_line(rest)
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _cut_in_line(data: bytes) -> int:
    """Before the last single space between two printable ASCII characters, else before the last character.

    A tokenizer that splits at white space finds the same words on both sides of such a space as in the whole line.
    """
    if spaces := re.findall(rb"(?s)^.*[!-~](?= [!-~])", data):
        return len(spaces[0])
    cut = len(data) - 1
    while cut > 0 and data[cut] & 0xC0 == 0x80:  # inside a UTF-8 character
        cut -= 1
    return cut or len(data)


def scan(source: Source) -> dict[str, Count]:
    """Reads all of a text once, counts it, and refuses what is not text, with file, line and column."""
    return {split: _scan(source, split) for split in SPLITS}


def _scan(source: Source, split: str) -> Count:
    name = source.files[split]
    size = lines = words = n_blocks = 0
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    last = "\n"
    column = 0  # bytes of the current line that earlier blocks hold

    def bad(at: int, what: str, mend: str) -> UserError:
        line_start = block.rfind(b"\n", 0, at) + 1
        col = at - line_start + 1 + (0 if line_start else column)
        line = lines + block.count(b"\n", 0, at) + 1
        return UserError(f"{name}:{line}:{col} {what}", mend)

    try:
        with source.open(split) as stream:
            for block in blocks(stream):
                try:
                    text = block.decode()
                except UnicodeDecodeError as err:
                    what = f"is not UTF-8 (byte 0x{block[err.start]:02x})"
                    raise bad(
                        err.start,
                        what,
                        "convert it: iconv -f LATIN1 -t UTF-8 (or UTF-16, if it is)",
                    ) from None
                if (nul := block.find(b"\0")) >= 0:
                    raise bad(
                        nul,
                        "holds a NUL byte",
                        "it is no plain text file: give another, or remove the byte",
                    )
                # a word that a block border cuts was counted with the block before
                words += len(text.split()) - (not last.isspace() and not text[0].isspace())
                lines += block.count(b"\n")
                column = (
                    len(block) - block.rfind(b"\n") - 1 if b"\n" in block else column + len(block)
                )
                last = text[-1]
                size += len(block)
                n_blocks += 1
                sha256.update(block)
                sha1.update(block)
    except (gzip.BadGzipFile, EOFError, zlib.error, zipfile.BadZipFile, KeyError) as err:
        raise UserError(
            f"{name} cannot be unpacked ({err})", "it is damaged or not compressed: copy it again"
        ) from None
    except OSError as err:
        raise UserError(
            f"{name} cannot be read: {err.strerror or err}", "check the file and its permissions"
        ) from None
    if not words:
        raise UserError(
            f"{name}:1 holds no words" if size else f"{name}:1 is empty", f"give text for {split}"
        )
    return Count(
        size, lines + (last != "\n"), words, n_blocks, sha256.hexdigest(), sha1.hexdigest()
    )
