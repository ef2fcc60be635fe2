"""Cuts a text where its tokens begin and end, but never inside a character that a reader sees."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

JOINER = "\u200d"
SIGNS = {"\n": "⏎", "\t": "⇥", " ": "␣", "\x7f": "␡"}


class Piece(NamedTuple):
    """Characters, and the numbers of the tokens that cover them.

    Several tokens may share a character; no token covers what the model does not see; and a token
    without characters has a piece without text.
    """

    text: str
    tokens: tuple[int, ...]


def pieces(text: str, spans: Sequence[Sequence[int]]) -> list[Piece]:
    """Returns the text in pieces, in order; their texts joined are the text.

    spans: [start, end) of each token, ascending.
    """
    # cut where a token begins, but not inside of a token or of a visible character
    uncut = _joined(text)
    for start, end in spans:
        uncut.update(range(start + 1, end))
    borders = {0, len(text), *(border for span in spans for border in span)}
    cuts = sorted(borders - uncut)

    found = []
    i = 0
    for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
        while i < len(spans) and spans[i][1] == start:  # a token without characters
            found.append(Piece("", (i,)))
            i += 1
        first = i
        while i < len(spans) and spans[i][0] < end:
            i += 1
        if start < end:
            found.append(Piece(text[start:end], tuple(range(first, i))))
    return found


def _joined(text: str) -> set[int]:
    """Returns the places of the characters that belong to the one before them.

    These are marks, what a joiner binds, skin tones, the second half of a flag, vowels and finals
    of a Hangul syllable, and the feed of a "\\r\\n" (most of Unicode's UAX 29).
    """
    found = set()
    flags = 0  # halves of flags in a row
    before = "\n"
    for i, character in enumerate(text):
        is_flag = "\U0001f1e6" <= character <= "\U0001f1ff"
        joins = (
            _is_mark(character)
            or _continues_hangul(before, character)
            or (before == JOINER and unicodedata.category(character) == "So")
            or (is_flag and flags % 2 == 1)
        )
        can_be_joined = unicodedata.category(before) not in ("Cc", "Zl", "Zp")
        if (joins and can_be_joined) or before + character == "\r\n":
            found.add(i)
        flags = flags + 1 if is_flag else 0
        before = character
    return found


def _is_mark(character: str) -> bool:
    is_skin_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    is_combining = unicodedata.category(character) in ("Mn", "Mc", "Me")
    return is_combining or is_skin_tone or character == JOINER


def _continues_hangul(before: str, character: str) -> bool:
    is_syllable_part = "\u1100" <= before <= "\u11ff" or "\uac00" <= before <= "\ud7a3"
    return is_syllable_part and "\u1160" <= character <= "\u11ff"


def invisible(character: str) -> bool:
    """Tells whether nothing of a character is seen, or it moves what stands around it."""
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cn", "Co", "Cs")


def visible(text: str, keep: str = "") -> str:
    """Returns the text on one line, with a sign for each space and each character that is not seen.

    keep: characters that stay as they are.
    """
    return "".join(character if character in keep else _sign(character) for character in text)


def _sign(character: str) -> str:
    if character in SIGNS:
        return SIGNS[character]
    if character < " ":
        return chr(0x2400 + ord(character))
    if invisible(character) or character.isspace():
        return f"⟨{ord(character):04X}⟩"
    return character
