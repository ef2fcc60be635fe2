"""Pieces cover the text and every token once, and never cut what a reader sees as one character."""

import random
import unicodedata

import pytest

from cerebra_jax.analysis.pieces import pieces, visible


@pytest.mark.parametrize("seed", range(200))
def test_any_tokens_of_any_text_are_kept_whole(seed):
    rng = random.Random(seed)
    text = "".join(rng.choices("ab é\u0301😀\u200d🚀🇩🇪한\u1161\r\n\u202e", k=rng.randint(0, 12)))
    at = 0
    spans = []
    while at < len(text) or rng.random() < 0.5:
        start = min(len(text), max(0, at + rng.choice([-1, 0, 0, 0, 1])))
        if spans and start < spans[-1][0]:
            start = spans[-1][0]
        end = min(len(text), start + rng.choice([0, 1, 1, 2, 3]))
        at = max(at, end)
        start = max(start, spans[-1][1] - 1) if spans else start
        spans.append((min(start, end), end))
    spans = sorted(spans)
    found = pieces(text, spans)
    assert "".join(p.text for p in found) == text
    assert [t for p in found for t in p.tokens] == list(range(len(spans)))
    at = 0
    for piece in found:
        for t in piece.tokens:
            assert at <= spans[t][0]
            assert spans[t][1] <= at + len(piece.text)
        at += len(piece.text)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("e\u0301a", ["e\u0301", "a"]),
        ("🇩🇪🇫🇷!", ["🇩🇪", "🇫🇷", "!"]),
        ("👩‍🚀👍🏽x", ["👩‍🚀", "👍🏽", "x"]),
        ("\u1112\u1161\u11ab한", ["\u1112\u1161\u11ab", "한"]),
        ("a\r\n\nb", ["a", "\r\n", "\n", "b"]),
        ("\n\u0301", ["\n", "\u0301"]),
        ("नि", ["नि"]),
        ("ab", ["a", "b"]),
    ],
)
def test_a_character_that_a_reader_sees_is_one_piece(text, want):
    assert [p.text for p in pieces(text, [(i, i + 1) for i in range(len(text))])] == want


def test_tokens_that_share_a_character_are_joined_and_others_are_not():
    found = pieces("a😀b c", [(0, 0), (0, 1), (1, 2), (1, 2), (1, 3), (4, 5)])
    assert [(p.text, p.tokens) for p in found] == [
        ("", (0,)),
        ("a", (1,)),
        ("😀b", (2, 3, 4)),
        (" ", ()),
        ("c", (5,)),
    ]


def test_no_sign_for_the_reader_can_steer_a_screen():
    every = "".join(chr(i) for i in range(0x11000) if not 0xD800 <= i < 0xE000)
    shown = visible(every)
    bad = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Zs")}
    assert not bad
    assert visible("a b\n\x1b\u202e") == "a␣b⏎␛⟨202E⟩"
