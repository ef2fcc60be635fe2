"""What kind of characters a token begins with, read in the text in which it stands."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

CLASSES = ("word start", "continuation", "digit", "punctuation", "space", "other")


def classes(pieces: Sequence[bytes]) -> list[str]:
    """The class of each token of a text, of which these are the bytes.

    By the first character that is no white space. word start: a letter after white space, a sign or nothing;
    continuation: a letter or a mark after a letter or a digit, or a later byte of any character; space: nothing but
    white space; other: controls, and a token without bytes.
    """
    data, at, found = b"".join(pieces), 0, []
    for piece in pieces:
        found.append(_class(data, at, at + len(piece)))
        at += len(piece)
    return found


def _class(data: bytes, start: int, end: int) -> str:
    if start == end:
        return "other"
    if data[start] & 0xC0 == 0x80:
        return "continuation"
    at, c = start, ""
    while at < end and (c := _char(data, at)).isspace():
        at += len(c.encode())
    if at >= end:
        return "space"
    before = _char_before(data, at)
    kind = unicodedata.category(c)
    if c.isdigit():
        return "digit"
    if c.isalpha() or kind[0] == "M":
        return (
            "continuation"
            if before.isalnum() or unicodedata.category(before)[0] == "M"
            else "word start"
        )
    return "punctuation" if kind[0] in "PS" else "other"


def _char(data: bytes, at: int) -> str:
    """The character that begins there; U+FFFD where it is cut off."""
    size = 1 if data[at] < 0x80 else 2 if data[at] < 0xE0 else 3 if data[at] < 0xF0 else 4
    return data[at : at + size].decode(errors="replace")[0]


def _char_before(data: bytes, at: int) -> str:
    """The character that ends there; a space before the first."""
    start = at - 1
    while start > 0 and data[start] & 0xC0 == 0x80:
        start -= 1
    return _char(data, start) if at > 0 else " "
