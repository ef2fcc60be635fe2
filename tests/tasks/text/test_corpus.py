import gzip
import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebra_jax.config import TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.text import corpus

SPLITS = corpus.SPLITS


def write(folder, **texts):
    folder.mkdir(exist_ok=True)
    for name in SPLITS:
        data = texts.get(name, f" {name} words \n \n".encode())
        if data is not None:
            (folder / f"{name}.txt").write_bytes(data)
    return folder


lines = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    min_size=1,
)


@given(lines, st.integers(8, 64))
@settings(max_examples=150, deadline=None)
def test_blocks_join_to_the_text_and_cut_no_character(texts, size):
    data = "\n".join(texts).encode()
    found = list(corpus.blocks(io.BytesIO(data), size))
    assert b"".join(found) == data
    assert all(0 < len(b) <= size for b in found)
    for block in found:
        block.decode()  # raises where a character was cut


@given(lines)
@settings(max_examples=100, deadline=None)
def test_blocks_end_at_line_ends_where_lines_are_short_enough(texts):
    data = "".join(t[:4] + "\n" for t in texts).encode()
    assert all(b.endswith(b"\n") for b in corpus.blocks(io.BytesIO(data), 64))


def test_blocks_do_not_depend_on_how_much_a_read_returns():
    data = bytes(random.Random(0).choices(b"ab \n", k=1000))

    class Dribble(io.BytesIO):
        def read(self, n=-1):
            return super().read(min(n, 7))

    assert list(corpus.blocks(Dribble(data), 50)) == list(corpus.blocks(io.BytesIO(data), 50))


@given(lines, st.booleans())
@settings(max_examples=100, deadline=None)
def test_scan_counts_as_python_does_across_block_borders(texts, end):
    text = "\n".join(texts) + " x" + "\n" * end
    source = corpus.Source(
        "", "", "", lambda split: io.BytesIO(text.encode()), dict.fromkeys(SPLITS, "t")
    )
    blocks = corpus.blocks
    with pytest.MonkeyPatch.context() as m:
        m.setattr(corpus, "blocks", lambda stream: blocks(stream, 9))
        count = corpus.scan(source)["train"]
    assert (count.bytes, count.words) == (len(text.encode()), len(text.split()))
    assert count.lines == text.count("\n") + (not end)


BROKEN = {  # what is wrong with a file -> (its bytes, place, a word of the message)
    "empty": (b"", ":1", "empty"),
    "blank": (b" \n \n\n", ":1", "no words"),
    "latin-1": ("ein Wort\nsch\u00f6n\n".encode("latin-1"), ":2:4", "not UTF-8"),
    "utf-16": ("some words\n".encode("utf-16"), ":1:1", "not UTF-8"),
    "half a character": ("a\nb\nwörd ö".encode()[:-1], ":3:7", "not UTF-8"),
    "NUL": (b"one\ntwo\nth\0ree\n", ":3:3", "NUL"),
    "NUL far in": (b"line\n" * 50_000 + b"x\0\n", ":50001:2", "NUL"),
    "far in a long line": (b"a\n" + b"w " * 100_000 + b"\xff", ":2:200001", "not UTF-8"),
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_text_is_refused_with_file_line_and_column(tmp_path, case, split):
    data, place, word = BROKEN[case]
    folder = write(tmp_path / "d", **{split: data})
    with pytest.raises(UserError) as err:
        corpus.scan(corpus.folder(folder))
    assert f"{folder / split}.txt{place} " in str(err.value)
    assert word in err.value.what and err.value.hint


@pytest.mark.parametrize(
    "damage",
    [lambda z: z[:-20], lambda z: z[:30] + b"\xff\xff\xff" + z[33:], lambda z: b"plain text"],
)
def test_damaged_gzip_is_refused(tmp_path, damage):
    folder = write(tmp_path / "d", train=None)
    (folder / "train.txt.gz").write_bytes(
        damage(gzip.compress(b"".join(b"%d\n" % i for i in range(9999))))
    )
    with pytest.raises(UserError, match=r"train\.txt\.gz"):
        corpus.scan(corpus.folder(folder))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_counted_or_refused_never_a_traceback(tmp_path_factory, data, packed):
    folder = write(tmp_path_factory.mktemp("fuzz"), valid=None)
    (folder / f"valid.txt{'.gz' * packed}").write_bytes(data)
    try:
        assert corpus.scan(corpus.folder(folder))["valid"].words > 0
    except UserError as err:
        assert str(folder) in err.what


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
    assert corpus.scan(a) == corpus.scan(b)
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
    counts = corpus.scan(source)
    assert corpus.name_of(source, counts) == "text:wikitext2"
    known = {split: ("0", counts[split].sha1) for split in SPLITS}
    monkeypatch.setitem(corpus.KNOWN, "wikitext103", known)
    assert corpus.name_of(source, counts) == "wikitext103"
    monkeypatch.setitem(corpus.KNOWN, "wikitext103", known | {"test": ("0",)})
    assert corpus.name_of(source, counts) == "text:wikitext2"


def test_offline_corpus_is_the_same_every_time_and_disjoint():
    a, b = corpus.offline("because"), corpus.offline("because")
    counts = corpus.scan(a)
    assert a.key == b.key and counts == corpus.scan(b)
    assert a.dataset == corpus.OFFLINE and "because" in a.notice and "\n" not in a.notice
    assert 1 << 20 < counts["train"].bytes <= corpus.OFFLINE_TRAIN_BYTES
    assert min(counts["valid"].bytes, counts["test"].bytes) > 50_000


def test_offline_corpus_splits_by_file_and_leaves_out_what_is_not_the_library(
    tmp_path, monkeypatch
):
    names = [f"m{i:03d}.py" for i in range(200)]
    for name in [
        *names,
        "test/a.py",
        "lib2to3/tests/b.py",
        "site-packages/c.py",
        "pkg/__pycache__/d.py",
        "pkg/e.txt",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    (tmp_path / "latin.py").write_bytes(b"# \xe4")
    (tmp_path / "pkg" / "copy.py").write_text("# m000.py")
    splits = corpus._library(tmp_path)
    where = {name: split for split, texts in splits.items() for name in texts}
    assert sorted(where) == [*names, "pkg/copy.py"]
    assert where["pkg/copy.py"] == where["m000.py"]
    assert all(list(texts) == sorted(texts) and texts for texts in splits.values())
    assert len(splits["train"]) > 150
    monkeypatch.setattr(corpus, "OFFLINE_TRAIN_BYTES", 500)
    small = corpus._library(tmp_path)
    assert 400 < sum(map(len, small["train"].values())) <= 500
    assert small["test"] == splits["test"]


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
