"""A text as a model reads it: every token with the characters that it covers."""

import random

import numpy as np
import pytest

from cerebra_jax.errors import UserError
from cerebra_jax.tasks.intent.words import Words
from cerebra_jax.tasks.text import reading, tokenizer

TEXT = "The <unk> cat, naïve 😀 — 12\n漢字 e\u0301\x01\t<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizers():
    learnt = tokenizer.train_bpe([b"the cat sat <unk> na\xc3\xafve\n" * 50], 300)
    return [tokenizer.Bytes(), tokenizer.Bpe(learnt, "bpe")]


def test_pieces_of_any_bytes_are_the_bytes(tokenizers):
    rng = random.Random(0)
    every = "".join(chr(i) for i in range(0x3000) if not 0xD800 <= i < 0xE000) + TEXT
    for tok in tokenizers:
        for text in (every, TEXT, *("".join(rng.choices(every, k=9)) for _ in range(100))):
            ids = tok.encode_each([text])[0]
            assert b"".join(tok.pieces([tok.bos, *ids])) == text.encode()
            assert tok.pieces([tok.bos]) == [b""]


def test_a_span_is_what_a_token_covers_in_whole_or_in_part(tokenizers):
    for tok in tokenizers:
        pieces = tok.pieces(tok.encode_each([TEXT])[0])
        spans, at = reading.spans_of(TEXT, pieces), 0
        for piece, (a, b) in zip(pieces, spans, strict=True):
            before, covered = TEXT[:a].encode(), TEXT[a:b].encode()
            inside = at - len(before)
            assert covered[inside : inside + len(piece)] == piece
            assert (
                b - a == 1
                or len(TEXT[a : b - 1].encode()) < inside + len(piece)
                and inside < len(TEXT[a].encode())
            )
            at += len(piece)
    with pytest.raises(ValueError, match="not its bytes"):
        reading.spans_of("ab", [b"a"])


def test_words_cover_their_letters_though_lower_case_may_be_longer():
    words = Words(["a"])
    text = "İzmir'de ΑΣ, don't"
    assert [text[a:b] for a, b in words.spans(text)] == ["İzmir'de", "ΑΣ", ",", "don't"]
    assert len(words.encode_each([text])[0]) == len(words.spans(text))


def test_windows_hold_every_token_once():
    batch = reading.windows(list(range(1, 12)), 4)
    np.testing.assert_array_equal(batch["inputs_BxL"], [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 0]])
    np.testing.assert_array_equal(batch["ex_B"], [0, 1, 2])


@pytest.mark.parametrize(
    ("text", "what"), [("", "empty"), ("a\0b", "character 2"), ("ab\udcff", "UTF-8 .character 3")]
)
def test_what_is_no_text_is_refused(text, what):
    with pytest.raises(UserError, match=what):
        reading.readable(text)
