"""Text -> ArrayRecord -> memory-mapped token files, once; afterwards they are only opened.

CACHE/text/KEY      the tfds data set of a text, and its counts
CACHE/tokens/KEY    train.bin valid.bin test.bin, tokenizer.json, meta.json

Tokens are uint16, or uint32 if vocab_size > 65,536. Keys are hashes of the content and of all
settings that matter. A folder has its name only when it is complete, and holds the sha256 of each
of its files (`tasks.prepared`): a damaged one is prepared again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cerebra_jax.config import TaskCfg
from cerebra_jax.errors import DiskError, UserError
from cerebra_jax.tasks import prepared
from cerebra_jax.tasks.task import SPLITS, Log
from cerebra_jax.tasks.text import corpus, tokenizer
from cerebra_jax.tasks.text.corpus import Source
from cerebra_jax.tasks.text.scan import Count, scan

FORMAT = 1  # of everything below CACHE; a new number prepares anew
GROUP = 16  # blocks that are tokenised together: about 1 MiB of text in Python objects at once

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class Prepared(NamedTuple):
    """Tokens on disk, and all that is known of them."""

    folder: Path
    source: Source
    dataset: str
    counts: dict[str, Count]
    tokens: dict[str, int]
    dtype: str
    tokens_sha256: str  # of the tokens of all splits, as they lie on the disk
    tokenizer: tokenizer.Bytes | tokenizer.Bpe

    def memmap(self, split: str) -> np.ndarray:
        """Returns the tokens of a split, read from disk where they are looked at."""
        return np.memmap(self.folder / f"{split}.bin", self.dtype, "r")


def digest(ready: Prepared) -> str:
    """Returns one sha256 for the text of all splits."""
    hashes = "\n".join(ready.counts[split].sha256 for split in SPLITS)
    return hashlib.sha256(hashes.encode()).hexdigest()


def prepare(cfg: TaskCfg, log: Log) -> Prepared:
    """Returns the tokens of the text that `cfg` asks for.

    Raises UserError (text, settings) or DiskError (cache).
    """
    cache = prepared.cache_folder(cfg)
    try:
        (cache / "text").mkdir(parents=True, exist_ok=True)
        (cache / "tokens").mkdir(exist_ok=True)
        with _alone(cache / "lock"):  # two runs that start together prepare once
            return _prepare(cfg, cache, log)
    except OSError as err:
        where = err.filename or cache
        if err.errno in _FULL:
            hint = "free some, or choose another task.cache_dir"
            raise DiskError(f"no space left for {where}", hint) from err
        if err.errno in _UNUSABLE:
            hint = "choose another --config.task.cache_dir"
            raise UserError(f"cannot use {where}: {err.strerror}", hint) from err
        raise


def _prepare(cfg: TaskCfg, cache: Path, log: Log) -> Prepared:
    def text_folder(key: str) -> Path:
        return cache / "text" / _key("text", key)

    def is_prepared(key: str) -> bool:
        return _meta(text_folder(key), log) is not None

    # which text, and where its tokens belong
    source = corpus.find(cfg, is_prepared, cache / "downloads", log)
    settings = tokenizer.settings(cfg, source.dataset == corpus.OFFLINE)
    tokens = cache / "tokens" / _key(source.key, json.dumps(settings, sort_keys=True))

    # what is missing is made
    meta = _meta(tokens, log)
    if meta is None:
        log(f"preparing {source.origin} (once, kept in {cache})")
        text = text_folder(source.key)
        if not is_prepared(source.key):
            counts = scan(source)  # refuses broken files before the slow imports
            _write_text(source, counts, text)
        _write_tokens(text, settings, cfg, tokens)
        meta = _read_meta(tokens)

    counts = {split: Count(**meta["counts"][split]) for split in SPLITS}
    return Prepared(
        folder=tokens,
        source=source,
        dataset=corpus.name_of(source, counts),
        counts=counts,
        tokens=meta["tokens"],
        dtype=meta["dtype"],
        tokens_sha256=_sha256_of_tokens(tokens),
        tokenizer=tokenizer.load(tokens, settings["name"]),
    )


def _sha256_of_tokens(folder: Path) -> str:
    found = prepared.seals(folder)
    hashes = "\n".join(found[f"{split}.bin"] for split in SPLITS)
    return hashlib.sha256(hashes.encode()).hexdigest()


def _write_text(source: Source, counts: dict[str, Count], target: Path) -> None:
    from cerebra_jax.tasks.text import wikitext

    with _new_folder(target) as folder:
        n_blocks = {split: count.blocks for split, count in counts.items()}
        data = wikitext.write(source, n_blocks, folder)
        meta = {
            "counts": {split: count._asdict() for split, count in counts.items()},
            "data": str(data.relative_to(folder)),
        }
        (folder / "meta.json").write_text(json.dumps(meta, indent=1))
        prepared.seal(folder)


def _write_tokens(text: Path, settings: dict[str, Any], cfg: TaskCfg, target: Path) -> None:
    from cerebra_jax.tasks.text import wikitext

    meta = _read_meta(text)
    records = text / meta["data"]
    counts = {split: Count(**meta["counts"][split]) for split in SPLITS}
    with _new_folder(target) as folder:
        # the tokenizer
        if cfg.tokenizer_from:
            found = tokenizer.of_run(cfg)["json"]
            (folder / "tokenizer.json").write_text(found, encoding="utf-8")
        elif settings["name"] == "bpe":
            some = _evenly(wikitext.read(records, "train"), counts["train"], settings["bytes"])
            found = tokenizer.train_bpe(some, cfg.vocab_size)
            (folder / "tokenizer.json").write_text(found, encoding="utf-8")
        elif settings["name"] == "gpt2":
            found = tokenizer.gpt2(Path(cfg.gpt2_dir).expanduser())
            (folder / "tokenizer.json").write_text(found, encoding="utf-8")
        tok = tokenizer.load(folder, settings["name"])

        # the tokens of each split
        dtype = "uint16" if tok.vocab_size <= 1 << 16 else "uint32"
        tokens = {}
        for split in SPLITS:
            sha256 = hashlib.sha256()
            with open(folder / f"{split}.bin", "wb") as f:
                for group in _groups(wikitext.read(records, split)):
                    for record in group:
                        sha256.update(record)
                    f.write(tok.encode_blocks(group).astype(dtype).tobytes())
                tokens[split] = f.tell() // np.dtype(dtype).itemsize
            if sha256.hexdigest() != counts[split].sha256:
                what = f"{text} differs from the text it was made of"
                raise DiskError(what, "the disk damaged it: delete it")

        done = {"counts": meta["counts"], "tokens": tokens, "dtype": dtype, "tokenizer": settings}
        (folder / "meta.json").write_text(json.dumps(done, indent=1))
        prepared.seal(folder)


def _groups(records: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Yields GROUP records at a time, in order."""
    while group := list(itertools.islice(records, GROUP)):
        yield group


def _evenly(blocks: Iterable[bytes], count: Count, size: int) -> Iterator[bytes]:
    """Returns every n-th block, so that about `size` bytes come from all over the text."""
    step = max(1, -(-count.bytes // size))
    return itertools.islice(blocks, 0, None, step)


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join((str(FORMAT), *parts)).encode()).hexdigest()[:24]


def _meta(folder: Path, log: Log) -> dict[str, Any] | None:
    """Returns meta.json of a folder of which every file is as it was written, else None.

    Says so where a folder is not.
    """
    if not folder.exists():
        return None
    if what := prepared.damage(folder):
        log(f"{folder} cannot be used ({what}): it is prepared again")
        return None
    return _read_meta(folder)


def _read_meta(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "meta.json").read_text())


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until no other process is between here and the end."""
    try:
        f = open(path, "w")
    except OSError as err:
        if err.errno not in (errno.EROFS, errno.EACCES):
            raise
        # a shared cache that nobody here can write: what is in it can be used, a write raises its
        # own error
        yield
        return
    with f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Gives a folder its name when it is complete.

    What a killed run or a damaged disk left is replaced.
    """
    for stale in target.parent.glob(f"{target.name}*"):
        shutil.rmtree(stale)
    folder = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
