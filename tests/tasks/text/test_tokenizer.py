import io
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebra_jax.config import TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.text import scan, tokenizer

WORDS = [
    "the",
    "cat",
    "<unk>",
    "sat",
    "on",
    "a",
    "mat",
    ",",
    "=",
    "naïve",
    "don't",
    "1914",
    "@-@",
    "  ",
    "\t",
]


def some_text(n=3000, seed=0):
    rng = random.Random(seed)
    return "".join(
        " " + rng.choice(WORDS) + ("\n" * rng.choice([0, 0, 0, 1, 1, 2])) for _ in range(n)
    )


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "tokenizer.json").write_text(
        tokenizer.train_bpe([some_text().encode()], 300), encoding="utf-8"
    )
    return tokenizer.load(folder, "bpe")


def gpt2_files(folder, bpe):
    """GPT-2's two files as they would be for our little BPE."""
    model = json.loads(bpe.json)["model"]
    vocab = [t for t in model["vocab"] if t != tokenizer.UNK] + ["<|endoftext|>"]
    (folder / "vocab.json").write_text(
        json.dumps({t: i for i, t in enumerate(vocab)}), encoding="utf-8"
    )
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def all_three(bpe, tmp_path_factory):
    folder = gpt2_files(tmp_path_factory.mktemp("gpt2"), bpe)
    (folder / "tokenizer.json").write_text(tokenizer.gpt2(folder), encoding="utf-8")
    return {"bytes": tokenizer.Bytes(), "bpe": bpe, "gpt2": tokenizer.load(folder, "gpt2")}


NAMES = ["bytes", "bpe", "gpt2"]
odd = [*WORDS, " <unk>", "\n", " \n\n", "<|endoftext|>", "Ġ", "\r\n", "\u2028"]
pieces = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(odd)
)


@pytest.mark.parametrize("name", NAMES)
@given(pieces)
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back(all_three, name, parts):
    tok, text = all_three[name], "".join(parts)
    ids = tok.encode_blocks([text.encode()]).tolist()
    assert tok.decode(ids) == text
    assert all(0 <= i < tok.vocab_size and i != tok.bos for i in ids)
    assert tok.decode([tok.bos, *ids]) == text


@pytest.mark.parametrize("name", NAMES)
@given(pieces, st.integers(8, 40))
@settings(max_examples=200, deadline=None)
def test_blocks_of_lines_have_the_tokens_of_the_whole(all_three, name, parts, size):
    tok, data = all_three[name], "".join(p[:3] + "\n" for p in parts).encode() + b"end"
    blocks = list(scan.blocks(io.BytesIO(data), size))
    if not all(b.endswith(b"\n") for b in blocks[:-1]):  # a line longer than a block: the next test
        return
    assert tok.encode_blocks(blocks).tolist() == tok.encode_blocks([data]).tolist()


def test_a_line_longer_than_a_block_has_the_tokens_of_the_whole(all_three):
    data = some_text().replace("\n", " x").replace("\t", "").encode()
    for tok in all_three.values():
        for size in (61, 64, 97):
            blocks = list(scan.blocks(io.BytesIO(data), size))
            assert len(blocks) > 100
            assert tok.encode_blocks(blocks).tolist() == tok.encode_blocks([data]).tolist()


def test_sizes_and_the_rare_word_mark(all_three):
    assert {name: tok.vocab_size for name, tok in all_three.items()} == {
        "bytes": 257,
        "bpe": 300,
        "gpt2": 299,
    }
    bpe = all_three["bpe"]
    assert len(bpe.encode_blocks([b" <unk>"])) == 1
    assert len(bpe.encode_blocks([b" the <unk> <unk> ,"])) == 4
    assert "unk" not in json.loads(bpe.json)["model"]["vocab"]  # and no merge was spent on it


def test_training_is_deterministic():
    blocks = [some_text(seed=i).encode() for i in range(8)]
    assert tokenizer.train_bpe(blocks, 400) == tokenizer.train_bpe(iter(blocks), 400)


@pytest.mark.parametrize("damage", ["vocab", "merges", "json", "not text", "byte", "end", "number"])
def test_broken_gpt2_files_are_refused(tmp_path, bpe, damage):
    folder = gpt2_files(tmp_path, bpe)
    vocab = json.loads((folder / "vocab.json").read_text())
    if damage in ("vocab", "merges"):
        next(folder.glob(f"{damage}*")).unlink()
    elif damage == "json":
        (folder / "vocab.json").write_text("{")
    elif damage == "not text":
        (folder / "merges.txt").write_bytes(b"\xff\xfe\0")
    else:
        key = {"byte": "a", "end": "<|endoftext|>", "number": "b"}[damage]
        number = vocab.pop(key)
        if damage == "number":
            vocab[key] = number + 10_000
        (folder / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(UserError) as err:
        tokenizer.gpt2(folder)
    assert str(folder) in err.value.what and err.value.hint


def test_settings_hold_all_that_decides_the_tokens(tmp_path, bpe):
    def of(**kw):
        return tokenizer.settings(TaskCfg(**kw), offline=False)

    assert of() != of(vocab_size=5000) != of(tokenizer="bytes")
    assert of(tokenizer="bytes") == of(tokenizer="bytes", vocab_size=5000)
    assert of(seq_len=64) == of()
    with pytest.raises(UserError, match=r"vocab\.json does not exist"):
        of(tokenizer="gpt2", gpt2_dir=str(tmp_path))
    before = of(tokenizer="gpt2", gpt2_dir=str(gpt2_files(tmp_path, bpe)))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert of(tokenizer="gpt2", gpt2_dir=str(tmp_path)) != before
