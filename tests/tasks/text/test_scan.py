"""A text as blocks of whole lines: what is counted, and where what is no text is said to be."""

import gzip
import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebra_jax.errors import UserError
from cerebra_jax.tasks.task import SPLITS
from cerebra_jax.tasks.text import corpus, scan


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
    found = list(scan.blocks(io.BytesIO(data), size))
    assert b"".join(found) == data
    assert all(0 < len(b) <= size for b in found)
    for block in found:
        block.decode()  # raises where a character was cut


@given(lines)
@settings(max_examples=100, deadline=None)
def test_blocks_end_at_line_ends_where_lines_are_short_enough(texts):
    data = "".join(t[:4] + "\n" for t in texts).encode()
    assert all(b.endswith(b"\n") for b in scan.blocks(io.BytesIO(data), 64))


def test_blocks_do_not_depend_on_how_much_a_read_returns():
    data = bytes(random.Random(0).choices(b"ab \n", k=1000))

    class Dribble(io.BytesIO):
        def read(self, n=-1):
            return super().read(min(n, 7))

    assert list(scan.blocks(Dribble(data), 50)) == list(scan.blocks(io.BytesIO(data), 50))


@given(lines, st.booleans())
@settings(max_examples=100, deadline=None)
def test_scan_counts_as_python_does_across_block_borders(texts, end):
    text = "\n".join(texts) + " x" + "\n" * end
    source = corpus.Source(
        "", "", "", lambda split: io.BytesIO(text.encode()), dict.fromkeys(SPLITS, "t")
    )
    blocks = scan.blocks
    with pytest.MonkeyPatch.context() as m:
        m.setattr(scan, "blocks", lambda stream: blocks(stream, 9))
        count = scan.scan(source)["train"]
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
        scan.scan(corpus.folder(folder))
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
        scan.scan(corpus.folder(folder))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_counted_or_refused_never_a_traceback(tmp_path_factory, data, packed):
    folder = write(tmp_path_factory.mktemp("fuzz"), valid=None)
    (folder / f"valid.txt{'.gz' * packed}").write_bytes(data)
    try:
        assert scan.scan(corpus.folder(folder))["valid"].words > 0
    except UserError as err:
        assert str(folder) in err.what
