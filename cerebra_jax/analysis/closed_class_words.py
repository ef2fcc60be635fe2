"""Closed-class words of English: of which kind the word is that a token belongs to. A list, no tagger: a word has one
kind, its commonest, wherever it stands ("that" is a determiner), and all open classes are one."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LISTS = {
    "determiner": "a an the this that these those each every some any no all both either neither another such what "
    "which whose my your his her its our their",
    "pronoun": "i you he she it we they me him us them mine yours hers ours theirs myself yourself himself herself "
    "itself ourselves yourselves themselves who whom someone anyone everyone nobody something anything "
    "everything nothing none",
    "preposition": "of in to for with on at from by about as into through after over between out against during "
    "without before under around among above below along across behind beyond near since until upon toward "
    "towards within off up down despite per via like",
    "conjunction": "and or but nor so yet if because although though while whereas unless whether than when where",
    "auxiliary": "be am is are was were been being have has had having do does did will would shall should can could "
    "may might must ought cannot",
}
_KIND = {word: kind for kind, words in _LISTS.items() for word in words.split()}
CLOSED = tuple(_LISTS)
KINDS = (*CLOSED, "other word")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def kinds(pieces: Sequence[bytes]) -> list[str]:
    """The kind of the word that the first character of each token, white space apart, is part of, in the text of which
    these are the bytes; "" where it is no letter. A contraction goes with what it begins with (it's, dog's), one of not
    with the auxiliary (don't)."""
    data = b"".join(pieces)
    text = data.decode(errors="surrogateescape")
    size = [len(c.encode(errors="surrogateescape")) for c in text]
    of_byte: list[str] = []
    at = 0
    for found in _WORD.finditer(text):
        of_byte += [""] * sum(size[at : found.start()]) + [_kind(found[0])] * sum(
            size[found.start() : found.end()]
        )
        at = found.end()
    of_byte += [""] * sum(size[at:])
    told, start = [], 0
    for piece in pieces:
        first = start + len(piece) - len(piece.lstrip())
        told.append(of_byte[first] if first < start + len(piece) else "")
        start += len(piece)
    return told


def _kind(word: str) -> str:
    word = word.lower().replace("’", "'")
    return "auxiliary" if word.endswith("n't") else _KIND.get(word.partition("'")[0], "other word")
