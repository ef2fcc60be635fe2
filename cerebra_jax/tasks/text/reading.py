"""A user's text as a model reads it: its tokens, the characters that each covers, and batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from cerebra_jax.errors import UserError
from cerebra_jax.types import Batch

Span = tuple[int, int]


class Reading(NamedTuple):
    """A text as tokens. Token i stands at position i % L of row i // L of the batch.

    It covers characters [start, end) of the text, some of them in part only: a byte of a character.
    The model does not see what no token covers.
    """

    ids: list[int]
    spans: list[Span]
    batch: Batch


def covered(units: Iterable[int], tokens: Iterable[Span]) -> list[Span]:
    """Returns tokens as ranges of characters, whole or in part, from ranges of units (bytes, say).

    `units` has the number of units of each character.

    >>> covered([1, 2, 1], [(0, 2), (2, 4)])  # the second character is shared
    [(0, 2), (1, 3)]
    """
    units = list(units)
    character = np.repeat(np.arange(len(units)), units).tolist()  # unit -> character
    spans = []
    for first, end in tokens:
        if first < end:
            spans.append((character[first], character[end - 1] + 1))
        else:  # it covers nothing, before the character of this unit
            place = character[first] if first < len(character) else len(units)
            spans.append((place, place))
    return spans


def spans_of(text: str, pieces: Sequence[bytes]) -> list[Span]:
    """Returns the characters that tokens of these bytes cover.

    Raises ValueError where they are not the text.
    """
    if b"".join(pieces) != text.encode():
        raise ValueError("the tokens of a text are not its bytes")
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    bytes_per_character = [len(character.encode()) for character in text]
    return covered(bytes_per_character, zip([0, *ends[:-1]], ends, strict=True))


def windows(ids: Sequence[int], L: int) -> Batch:
    """Returns tokens in rows of L, the last one filled up with token 0: `inputs_BxL` and `ex_B`."""
    rows = -(-len(ids) // L)
    inputs = np.zeros(rows * L, np.int32)
    inputs[: len(ids)] = ids
    return {"inputs_BxL": inputs.reshape(rows, L), "ex_B": np.arange(rows, dtype=np.int32)}


def readable(text: str) -> str:
    """Returns the text; UserError for what is no text."""
    if not text:
        raise UserError("the text is empty", "give some words")
    if "\0" in text:
        where = text.find("\0") + 1
        raise UserError(f"the text holds a NUL byte (character {where})", "remove it")
    for i, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":  # half of a pair, which stands for no character
            hint = "convert it: iconv -f LATIN1 -t UTF-8"
            raise UserError(f"the text is not UTF-8 (character {i + 1})", hint)
    return text
