import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.errors import DiskError, UserError
from cerebra_jax.tasks.task import SPLITS
from cerebra_jax.tasks.text import corpus, prepare, scan, tokenizer, wikitext


def text(n, seed):
    rng = random.Random(seed)
    words = ["alpha", "beta", "<unk>", "gämma", "Δ", "=", ",", "delta" * 3]
    return "".join(
        f" {rng.choice(words)}" + " \n" * (rng.random() < 0.1) for _ in range(n)
    ).encode()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "corpus"
    path.mkdir()
    for i, split in enumerate(SPLITS):
        (path / f"{split}.txt").write_bytes(text((40_000, 900, 1_000)[i], i))
    return path


@pytest.fixture
def cfg(folder, tmp_path):
    return config.TaskCfg(data_dir=str(folder), cache_dir=str(tmp_path / "cache"), vocab_size=300)


def run(cfg):
    said = []
    return prepare.prepare(cfg, said.append), said


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_tokens_give_the_text_back_byte_for_byte(cfg, folder, name):
    cfg = config.TaskCfg(**(vars(cfg) | {"tokenizer": name}))
    ready, said = run(cfg)
    for split in SPLITS:
        data = (folder / f"{split}.txt").read_bytes()
        ids = ready.memmap(split)
        assert isinstance(ids, np.memmap) and ids.dtype == np.uint16
        assert ready.tokenizer.decode(ids.tolist()).encode() == data
        assert ready.tokens[split] == len(ids) and ready.counts[split].bytes == len(data)
    assert len(said) == 1 and ready.dataset == "text:corpus"


def test_records_joined_are_the_text_in_order_also_in_parts(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(wikitext, "PART", 2)
    source = corpus.folder(folder)
    counts = scan.scan(source)
    assert counts["train"].blocks == 4
    data = wikitext.write(source, {s: c.blocks for s, c in counts.items()}, tmp_path / "out")
    for split in SPLITS:
        records = list(wikitext.read(data, split))
        assert b"".join(records) == (folder / f"{split}.txt").read_bytes()
        assert all(len(r) <= scan.BLOCK for r in records) and len(records) == counts[split].blocks
    assert len(list(data.glob("*train*array_record*"))) == 2


def test_second_time_nothing_is_made_again_and_a_new_tokenizer_keeps_the_text(cfg, monkeypatch):
    first, _ = run(cfg)
    monkeypatch.setattr(wikitext, "write", lambda *a: pytest.fail("the text was prepared twice"))
    again, said = run(cfg)
    assert again.folder == first.folder and not said
    other, said = run(config.TaskCfg(**(vars(cfg) | {"vocab_size": 310})))
    assert other.folder != first.folder and len(said) == 1
    monkeypatch.setattr(wikitext, "read", lambda *a: pytest.fail("the tokens were made twice"))
    run(cfg)


def test_same_inputs_give_the_same_bytes_in_another_cache(cfg, tmp_path):
    a, _ = run(cfg)
    b, _ = run(config.TaskCfg(**(vars(cfg) | {"cache_dir": str(tmp_path / "cache2")})))
    assert a.folder.name == b.folder.name
    for name in ("train.bin", "test.bin", "tokenizer.json", "meta.json"):
        assert (a.folder / name).read_bytes() == (b.folder / name).read_bytes()


@pytest.mark.parametrize("damage", ["short", "gone", "meta", "stale"])
def test_damaged_or_half_made_tokens_are_made_again(cfg, damage):
    ready, _ = run(cfg)
    good = (ready.folder / "train.bin").read_bytes()
    path = ready.folder / ("meta.json" if damage == "meta" else "train.bin")
    if damage == "stale":  # what kill -9 leaves: a folder under a temporary name only
        ready.folder.rename(ready.folder.with_name(ready.folder.name + ".abc123"))
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    ready, said = run(cfg)
    assert said and (ready.folder / "train.bin").read_bytes() == good
    assert os.listdir(ready.folder.parent) == [ready.folder.name]


def test_records_that_the_disk_changed_are_noticed(cfg, monkeypatch):
    run(cfg)
    read = wikitext.read
    monkeypatch.setattr(
        wikitext, "read", lambda *a: (r.replace(b"beta", b"bete") for r in read(*a))
    )
    with pytest.raises(DiskError, match="differs"):
        run(config.TaskCfg(**(vars(cfg) | {"vocab_size": 320})))


def test_broken_text_leaves_nothing_behind(cfg, folder):
    (folder / "test.txt").write_bytes(b"x\n\xff")
    with pytest.raises(UserError, match=r"test\.txt:2:1"):
        run(cfg)
    cache = folder.parent / "cache"
    assert not list((cache / "text").iterdir()) and not list((cache / "tokens").iterdir())


def test_a_cache_that_cannot_be_is_the_users_error(cfg, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache_dir"):
        run(config.TaskCfg(**(vars(cfg) | {"cache_dir": str(tmp_path / "file" / "cache")})))


def test_a_full_disk_is_told_as_one(cfg, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device", "train.bin")

    monkeypatch.setattr(tokenizer.Bpe, "encode_blocks", full)
    with pytest.raises(DiskError, match=r"no space left.*cache_dir"):
        run(cfg)


def test_large_vocabulary_uses_32_bits(cfg, monkeypatch):
    monkeypatch.setattr(tokenizer.Bytes, "vocab_size", 70_000)
    ready, _ = run(config.TaskCfg(**(vars(cfg) | {"tokenizer": "bytes"})))
    assert ready.memmap("test").dtype == np.uint32


SCRIPT = """
import json, sys
from cerebra_jax import config
from cerebra_jax.tasks import registry
task = registry.build(config.parse({"task": json.loads(sys.argv[1])}), lambda line: None)
task.train_batch(0, 0, 2)
heavy = ("jax", "tensorflow", "tensorflow_datasets", "tokenizers", "torch")
loaded = [m for m in heavy if m in sys.modules]
print(json.dumps([loaded, task.info()]))
"""


def test_jax_and_tensorflow_stay_out_and_tfds_after_the_first_time(cfg, clean_env):
    def start():
        command = [sys.executable, "-c", SCRIPT, json.dumps(vars(cfg))]
        out = subprocess.run(command, env=clean_env, capture_output=True, text=True, timeout=120)
        assert out.returncode == 0, out.stderr
        assert out.stderr == ""
        return json.loads(out.stdout)  # one line: preparing prints nothing of its own

    (first, info), (second, again) = start(), start()
    assert first == ["tensorflow_datasets", "tokenizers"]
    assert second == []
    assert info == again


REFUSED = """
import json, sys
from cerebra_jax import config, errors
from cerebra_jax.tasks import registry
try:
    registry.build(config.parse({"task": json.loads(sys.argv[1])}), lambda line: None)
except errors.UserError as err:
    print([m for m in ("jax", "tensorflow_datasets") if m in sys.modules], err)
"""


def test_broken_data_is_refused_before_the_slow_imports(cfg, folder, clean_env):
    (folder / "train.txt").write_bytes(b"a\0b")
    command = [sys.executable, "-c", REFUSED, json.dumps(vars(cfg))]
    out = subprocess.run(command, env=clean_env, capture_output=True, text=True, timeout=60)
    assert out.stdout.startswith("[] ") and "train.txt:1:2 holds a NUL" in out.stdout, out.stderr
