"""Classes of tokens: what a token begins with, and of which kind the word is that it belongs to.

Both read a token in the text in which it stands.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

CLASSES = ("word start", "continuation", "digit", "punctuation", "space", "other")

# Closed-class words of English. This is a list and no tagger: a word has one kind, its commonest,
# wherever it stands ("that" is a determiner), and all open classes are one.
_WORDS = {
    "determiner": "a an the this that these those each every some any no all both either neither "
    "another such what which whose my your his her its our their",
    "pronoun": "i you he she it we they me him us them mine yours hers ours theirs myself yourself "
    "himself herself itself ourselves yourselves themselves who whom someone anyone everyone "
    "nobody something anything everything nothing none",
    "preposition": "of in to for with on at from by about as into through after over between out "
    "against during without before under around among above below along across behind beyond near "
    "since until upon toward towards within off up down despite per via like",
    "conjunction": "and or but nor so yet if because although though while whereas unless whether "
    "than when where",
    "auxiliary": "be am is are was were been being have has had having do does did will would "
    "shall should can could may might must ought cannot",
}
_KIND = {word: kind for kind, words in _WORDS.items() for word in words.split()}
CLOSED_CLASSES = tuple(_WORDS)
WORD_KINDS = (*CLOSED_CLASSES, "other word")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def classes(pieces: Sequence[bytes]) -> list[str]:
    """Returns the class of each token of a text, of which the pieces are the bytes.

    The first character that is no white space decides. word start: a letter after white space, a
    sign or nothing. continuation: a letter or a mark after a letter or a digit, or a later byte of
    any character. space: nothing but white space. other: controls, and a token without bytes.
    """
    text = b"".join(pieces)
    found = []
    start = 0
    for piece in pieces:
        end = start + len(piece)
        found.append(_class(text, start, end))
        start = end
    return found


def word_kinds(pieces: Sequence[bytes]) -> list[str]:
    """Returns the kind of the word that each token of a text belongs to; "" where it is no letter.

    A token belongs to the word of its first character, white space apart. A contraction goes with
    what it begins with (it's, dog's), one of not with the auxiliary (don't).
    """
    # the kind of each byte of the text
    text = b"".join(pieces).decode(errors="surrogateescape")
    sizes = [len(character.encode(errors="surrogateescape")) for character in text]
    kind_of_byte: list[str] = []
    end = 0
    for word in _WORD.finditer(text):
        kind_of_byte += [""] * sum(sizes[end : word.start()])
        kind_of_byte += [_word_kind(word[0])] * sum(sizes[word.start() : word.end()])
        end = word.end()
    kind_of_byte += [""] * sum(sizes[end:])

    # the kind of each token: that of its first byte which is no white space
    found = []
    start = 0
    for piece in pieces:
        first = start + len(piece) - len(piece.lstrip())
        start += len(piece)
        found.append(kind_of_byte[first] if first < start else "")
    return found


def _word_kind(word: str) -> str:
    word = word.lower().replace("’", "'")
    if word.endswith("n't"):
        return "auxiliary"
    return _KIND.get(word.partition("'")[0], "other word")


def _class(text: bytes, start: int, end: int) -> str:
    """Returns the class of the token [start, end) of a text."""
    if start == end:
        return "other"
    if _is_later_byte(text[start]):
        return "continuation"

    # the first character that is no white space
    at = start
    while at < end and _character(text, at).isspace():
        at += len(_character(text, at).encode())
    if at >= end:
        return "space"
    character = _character(text, at)
    category = unicodedata.category(character)

    if character.isdigit():
        return "digit"
    if character.isalpha() or category.startswith("M"):
        before = _character_before(text, at)
        continues = before.isalnum() or unicodedata.category(before).startswith("M")
        return "continuation" if continues else "word start"
    return "punctuation" if category[0] in "PS" else "other"


def _is_later_byte(byte: int) -> bool:
    """Tells whether a byte of UTF-8 is not the first of its character."""
    return byte & 0xC0 == 0x80


def _character(text: bytes, at: int) -> str:
    """Returns the character that begins there; U+FFFD where it is cut off."""
    byte = text[at]
    if byte < 0x80:
        size = 1
    elif byte < 0xE0:
        size = 2
    elif byte < 0xF0:
        size = 3
    else:
        size = 4
    return text[at : at + size].decode(errors="replace")[0]


def _character_before(text: bytes, at: int) -> str:
    """Returns the character that ends there; a space before the first."""
    if at == 0:
        return " "
    start = at - 1
    while start > 0 and _is_later_byte(text[start]):
        start -= 1
    return _character(text, start)
