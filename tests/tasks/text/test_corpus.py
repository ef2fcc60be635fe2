"""Where a text comes from: folders, pinned downloads, the offline corpus; and its name."""

import gzip

import pytest

from cerebra_jax.config import TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.task import SPLITS
from cerebra_jax.tasks.text import corpus, library
from cerebra_jax.tasks.text.scan import scan


def write(folder, **texts):
    folder.mkdir(exist_ok=True)
    for name in SPLITS:
        data = texts.get(name, f" {name} words \n \n".encode())
        if data is not None:
            (folder / f"{name}.txt").write_bytes(data)
    return folder


@pytest.mark.parametrize("missing", SPLITS)
def test_a_missing_split_is_named(tmp_path, missing):
    with pytest.raises(UserError, match=f"no {missing} text; add {missing}.txt"):
        corpus.folder(write(tmp_path / "d", **{missing: None}))


def test_folder_that_is_none_or_ambiguous(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        corpus.folder(tmp_path / "none")
    folder = write(tmp_path / "d")
    (folder / "wiki.valid.tokens").write_text("again")
    with pytest.raises(UserError, match="2 valid texts"):
        corpus.folder(folder)


def test_names_and_gzip_do_not_change_the_text(tmp_path):
    plain = write(tmp_path / "plain")
    other = tmp_path / "other"
    other.mkdir()
    for split, name in {
        "train": "wiki.train.tokens",
        "valid": "validation.txt.gz",
        "test": "wiki.test.raw",
    }.items():
        data = (plain / f"{split}.txt").read_bytes()
        (other / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    a, b = corpus.folder(plain), corpus.folder(other)
    assert scan(a) == scan(b)
    assert a.key != b.key


def test_key_follows_the_content_not_the_date(tmp_path):
    folder = write(tmp_path / "d")
    before = corpus.folder(folder).key
    write(folder)
    assert corpus.folder(folder).key == before
    write(folder, test=b"other words\n")
    assert corpus.folder(folder).key != before


def test_a_known_text_is_named_by_its_hash_only(tmp_path, monkeypatch):
    source = corpus.folder(write(tmp_path / "wikitext2"))
    counts = scan(source)
    assert corpus.name_of(source, counts) == "text:wikitext2"
    known = {split: ("0", counts[split].sha1) for split in SPLITS}
    monkeypatch.setitem(corpus.KNOWN, "wikitext103", known)
    assert corpus.name_of(source, counts) == "wikitext103"
    monkeypatch.setitem(corpus.KNOWN, "wikitext103", known | {"test": ("0",)})
    assert corpus.name_of(source, counts) == "text:wikitext2"


def test_offline_corpus_is_the_same_every_time_and_disjoint():
    a, b = corpus.offline("because"), corpus.offline("because")
    counts = scan(a)
    assert a.key == b.key and counts == scan(b)
    assert a.dataset == corpus.OFFLINE and "because" in a.notice and "\n" not in a.notice
    assert 1 << 20 < counts["train"].bytes <= library.TRAIN_BYTES
    assert min(counts["valid"].bytes, counts["test"].bytes) > 50_000


def find(cfg, tmp_path):
    said = []
    return corpus.find(cfg, lambda key: False, tmp_path, said.append), said


def test_without_a_network_the_offline_corpus_says_so_or_is_refused(tmp_path):
    source, said = find(TaskCfg(), tmp_path)
    assert source.dataset == corpus.OFFLINE and "wikitext2 cannot be downloaded" in source.notice
    assert len(said) == 1 and "smerity" in said[0]
    with pytest.raises(UserError, match=r"wikitext103 cannot be downloaded.*data_dir"):
        find(TaskCfg(dataset="wikitext103", offline_fallback=False), tmp_path)
    source, said = find(TaskCfg(dataset="offline", offline_fallback=False), tmp_path)
    assert source.dataset == corpus.OFFLINE and not said
