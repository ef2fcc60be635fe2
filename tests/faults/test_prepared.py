"""Prepared data that a disk or a hand has changed are prepared again, and never reach a result."""

from __future__ import annotations

import os
import random
import shutil

import pytest

from cerebra_jax import config
from cerebra_jax.tasks import prepared, registry
from cerebra_jax.tasks.task import SPLITS
from cerebra_jax.training import preprocessing


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    """A run on a small text, prepared once."""
    root = tmp_path_factory.mktemp("prepared")
    rng = random.Random(0)
    for split, n in zip(SPLITS, (4_000, 300, 300), strict=True):
        words = (rng.choice(["alpha", "beta", "gämma", "delta", "\n"]) for _ in range(n))
        (root / f"{split}.txt").write_text(" ".join(words), encoding="utf-8")
    task = {"data_dir": str(root), "cache_dir": str(root / "cache")}
    task |= {"vocab_size": 270, "seq_len": 16}
    cfg = config.parse({"task": task})
    registry.build(cfg, print)
    return cfg


def tokens_folder(cfg):
    """Returns the folder of the tokens of the BPE."""
    [file] = (prepared.cache_folder(cfg.task) / "tokens").rglob("tokenizer.json")
    return file.parent


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit in the tokens": lambda folder: flip(folder / "train.bin"),
    "another test split": lambda folder: shutil.copy(folder / "valid.bin", folder / "test.bin"),
    "another tokenizer": lambda folder: flip(folder / "tokenizer.json"),
    "meta.json is a list": lambda folder: (folder / "meta.json").write_text("[]"),
    "meta.json lacks keys": lambda folder: (folder / "meta.json").write_text('{"counts": {}}'),
    "the digests are damaged": lambda folder: flip(folder / prepared.SEAL),
    "the digests are a list": lambda folder: (folder / prepared.SEAL).write_text("[1]"),
    "the digests are gone": lambda folder: (folder / prepared.SEAL).unlink(),
    "a file too many": lambda folder: (folder / "more.bin").write_bytes(b"x"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tokens_are_prepared_again_with_a_line(cfg, damage):
    folder = tokens_folder(cfg)
    good = contents(folder)
    DAMAGES[damage](folder)
    assert contents(folder) != good
    said: list[str] = []
    registry.build(cfg, said.append)
    assert contents(folder) == good
    assert sum("prepared again" in line for line in said) == 1


def test_a_damaged_text_is_not_tokenised(cfg):
    """Its tokens are made anew with another vocabulary, from records that are made anew too."""
    root = prepared.cache_folder(cfg.task) / "text"
    records = max(root.rglob("*train*array_record*"), key=lambda path: path.stat().st_size)
    before = records.read_bytes()
    flip(records)
    said: list[str] = []
    task = config.to_dict(cfg)["task"] | {"tokenizer": "bytes"}
    registry.build(config.parse({"task": task}), said.append)
    assert records.read_bytes() == before
    assert any("prepared again" in line for line in said)


def test_a_large_file_is_hashed_once_and_again_where_it_was_touched(cfg, monkeypatch):
    monkeypatch.setattr(prepared, "LARGE", 0)
    folder = tokens_folder(cfg)
    hashed: list[str] = []
    digest = prepared.download.digest
    monkeypatch.setattr(
        prepared.download, "digest", lambda path: hashed.append(path.name) or digest(path)
    )
    assert prepared.damage(folder) == "" and "train.bin" in hashed
    hashed.clear()
    assert prepared.damage(folder) == "" and hashed == []
    prepared.forget(cfg.task)  # --verify
    assert prepared.damage(folder) == "" and "train.bin" in hashed

    # a bit and the times of before: the inode's own time tells
    good, at = (folder / "train.bin").read_bytes(), (folder / "train.bin").stat()
    flip(folder / "train.bin")
    os.utime(folder / "train.bin", ns=(at.st_atime_ns, at.st_mtime_ns))
    assert "train.bin" in prepared.damage(folder)
    (folder / "train.bin").write_bytes(good)
    (folder / prepared.VERIFIED).unlink()


def test_other_tokens_of_the_same_text_are_not_those_of_a_run(cfg):
    """A whole folder of a cache was replaced, its digests too."""
    task = registry.build(cfg, print)
    info = task.info()
    kept = {"info": info, "learnt": registry.learnt(task)}
    assert preprocessing.changes(kept, task) == ""
    kept["info"] = info | {"tokens_sha256": "0" * 64}
    assert "tokens are not" in preprocessing.changes(kept, task)
    del kept["info"]["tokens_sha256"]  # of an earlier version
    assert preprocessing.changes(kept, task) == ""
