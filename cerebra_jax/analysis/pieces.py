"""A text cut where its tokens begin and end, and never inside what a reader sees as one character."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

JOINER = "\u200d"
SHOWN = {"\n": "⏎", "\t": "⇥", " ": "␣", "\x7f": "␡"}


class Piece(NamedTuple):
    """Characters, and the numbers of the tokens that cover them: several where tokens share a character, none where
    the model does not see them. A token without characters has a piece without text."""

    text: str
    tokens: tuple[int, ...]


def pieces(text: str, spans: Sequence[Sequence[int]]) -> list[Piece]:
    """The text in pieces, in order; their texts joined are the text. `spans`: [start, end) of each token, ascending."""
    joined = _joined(text)
    for a, b in spans:
        joined.update(range(a + 1, b))
    ends = {0, len(text), *(a for span in spans for a in span)}
    cuts = sorted(ends - joined)
    found, i = [], 0
    for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True):
        while i < len(spans) and spans[i][1] == a:  # a token without characters
            found.append(Piece("", (i,)))
            i += 1
        first = i
        while i < len(spans) and spans[i][0] < b:
            i += 1
        if a < b:
            found.append(Piece(text[a:b], tuple(range(first, i))))
    return found


def _joined(text: str) -> set[int]:
    """Characters that belong to the one before them: marks, what a joiner binds, skin tones, the second half of a flag,
    vowels and finals of a Hangul syllable, the feed of a "\\r\\n" (most of Unicode's UAX 29)."""
    found, flags = set(), 0
    for i, c in enumerate(text):
        before = text[i - 1] if i else "\n"
        flag = "\U0001f1e6" <= c <= "\U0001f1ff"
        mark = (
            unicodedata.category(c) in ("Mn", "Mc", "Me")
            or c == JOINER
            or "\U0001f3fb" <= c <= "\U0001f3ff"
        )
        hangul = "\u1160" <= c <= "\u11ff" and (
            "\u1100" <= before <= "\u11ff" or "\uac00" <= before <= "\ud7a3"
        )
        bound = (
            mark
            or hangul
            or (before == JOINER and unicodedata.category(c) == "So")
            or (flag and flags % 2 == 1)
        )
        if (
            bound and unicodedata.category(before) not in ("Cc", "Zl", "Zp")
        ) or before + c == "\r\n":
            found.add(i)
        flags = flags + 1 if flag else 0
    return found


def invisible(c: str) -> bool:
    """Whether nothing of a character is seen, or it moves what stands around it (the bidirectional controls)."""
    return unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cn", "Co", "Cs")


def visible(text: str, keep: str = "") -> str:
    """The text on one line with a sign for each space and for each character that cannot be seen, but those to keep."""
    return "".join(c if c in keep else _sign(c) for c in text)


def _sign(c: str) -> str:
    if c in SHOWN:
        return SHOWN[c]
    if c < " ":
        return chr(0x2400 + ord(c))
    unseen = invisible(c) or (c.isspace() and c != " ")
    return f"⟨{ord(c):04X}⟩" if unseen else c
