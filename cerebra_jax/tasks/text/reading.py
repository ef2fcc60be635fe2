"""A text of the user's as a model reads it: its tokens, the characters that each covers, and batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from cerebra_jax.checks import need
from cerebra_jax.types import Batch

Span = tuple[int, int]


class Reading(NamedTuple):
    """Token i stands at position i % L of row i // L of the batch, and covers characters [start, end) of the text,
    some of them in part only: a byte of a character. What no token covers is not seen by the model."""

    ids: list[int]
    spans: list[Span]
    batch: Batch


def covered(units: Iterable[int], tokens: Iterable[Span]) -> list[Span]:
    """Tokens as ranges of characters, whole or in part, from ranges of units (bytes, say); `units` of each character.

    >>> covered([1, 2, 1], [(0, 2), (2, 4)])  # the second character is shared
    [(0, 2), (1, 3)]
    """
    at = np.repeat(np.arange(len(units := list(units))), units)  # unit -> character
    end = len(units)
    return [(int(at[a]), int(at[b - 1]) + 1) if a < b else (s := int(at[a]) if a < len(at) else end, s)
            for a, b in tokens]  # fmt: skip


def spans_of(text: str, pieces: Sequence[bytes]) -> list[Span]:
    """The characters that tokens of these bytes cover; ValueError where they are not the text."""
    if b"".join(pieces) != text.encode():
        raise ValueError("the tokens of a text are not its bytes")
    ends = np.cumsum([len(p) for p in pieces]).tolist()
    return covered([len(c.encode()) for c in text], zip([0, *ends[:-1]], ends, strict=True))


def windows(ids: Sequence[int], L: int) -> Batch:
    """Tokens in rows of L, the last one filled up with token 0: `inputs_BxL` and `ex_B`."""
    rows = -(-len(ids) // L)
    inputs = np.zeros(rows * L, np.int32)
    inputs[: len(ids)] = ids
    return {"inputs_BxL": inputs.reshape(rows, L), "ex_B": np.arange(rows, dtype=np.int32)}


def readable(text: str) -> str:
    """The text; UserError for what is no text."""
    need(bool(text), "the text is empty", "give some words")
    need(
        "\0" not in text,
        f"the text holds a NUL byte (character {text.find(chr(0)) + 1})",
        "remove it",
    )
    lone = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
    need(
        lone is None,
        f"the text is not UTF-8 (character {(lone or 0) + 1})",
        "convert it: iconv -f LATIN1 -t UTF-8",
    )
    return text
