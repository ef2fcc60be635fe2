"""Texts as tokens of a fixed length: a summary token, the text's own tokens, padding.

And n-grams of its words.
"""

from __future__ import annotations

from collections.abc import Sequence
from json import loads
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cerebra_jax.config import TaskCfg
from cerebra_jax.tasks.examples import Arrays
from cerebra_jax.tasks.intent.subwords import Subwords
from cerebra_jax.tasks.intent.words import Words
from cerebra_jax.tasks.text import reading, tokenizer

Tokenizer = tokenizer.Bytes | tokenizer.Bpe | Words


def learn(task: TaskCfg, train: list[str], before: bool = False) -> Tokenizer:
    """Returns the tokenizer of a configuration, learnt from the training texts if need be.

    before: words are those of version 0.1.
    """
    if task.tokenizer == "bytes":
        return tokenizer.Bytes()
    if task.tokenizer_from:
        return of_json(**tokenizer.of_run(task))
    if task.tokenizer == "words":
        return Words.learnt(train, task.min_count, task.vocab_size, before)
    if task.tokenizer == "gpt2":
        return tokenizer.Bpe(tokenizer.gpt2(Path(task.gpt2_dir).expanduser()), "gpt2")
    blocks = (_spaced(text).encode() for text in train)
    return tokenizer.Bpe(tokenizer.train_bpe(blocks, task.vocab_size), "bpe")


def of_json(name: str, json: str, before: bool) -> Tokenizer:
    """Returns the tokenizer of this name and JSON; before: words are those of version 0.1."""
    return Words(loads(json), before) if name == "words" else tokenizer.named(name, json)


def encode(tok: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the tokens of each text, without the summary token."""
    return tok.encode_each([_spaced(text) for text in texts])


def _spaced(text: str) -> str:
    """Returns the text with a space before it, so that its first word is one like any other."""
    return f" {text}"


class Encoder(NamedTuple):
    """How a text becomes L tokens. Ids: those of the tokenizer, then padding, then the n-grams."""

    tok: Tokenizer
    subwords: Subwords | None
    L: int

    @property
    def padding(self) -> int:
        """Returns the id of padding."""
        return self.tok.vocab_size

    @property
    def vocab_size(self) -> int:
        """Returns the number of all ids."""
        return self.padding + 1 + (self.subwords.buckets if self.subwords else 0)

    def arrays(self, texts: Sequence[str], ids: list[np.ndarray]) -> Arrays:
        """Returns batch keys of texts: the summary token and their tokens, cut and padded to L."""
        inputs = np.full((len(texts), self.L), self.padding, np.int32)
        inputs[:, 0] = self.tok.bos
        for row, text_ids in zip(inputs, ids, strict=True):
            row[1 : 1 + len(text_ids)] = text_ids[: self.L - 1]
        found = {"inputs_BxL": inputs, "mask_BxL": inputs != self.padding}
        if self.subwords:
            found["words_BxL"] = np.stack([self._word_rows(text) for text in texts])
        return found

    def _word_rows(self, text: str) -> np.ndarray:
        """Returns the rows of `subwords` for the words of a text, at their places.

        0 elsewhere, (L,) int32.
        """
        rows_L = np.zeros(self.L, np.int32)
        words = self.tok.split(text) if isinstance(self.tok, Words) else []
        rows = self.subwords.rows(words[: self.L - 1])
        rows_L[1 : 1 + len(rows)] = rows
        return rows_L

    def read(self, text: str) -> reading.Reading:
        """Returns a text as one input, cut at L; what is cut has no tokens."""
        # tokens, and the characters that they cover; the space is ours
        spaced = _spaced(reading.readable(text))
        ids = self.tok.encode_each([spaced])[0].tolist()
        if self.tok.name == "words":
            spans = self.tok.spans(spaced)
        else:
            spans = reading.spans_of(spaced, self.tok.pieces(ids))
        spans = [(max(0, start - 1), end - 1) for start, end in spans]
        ids = [self.tok.bos, *ids][: self.L]
        spans = [(0, 0), *spans][: self.L]

        # the batch of one row
        batch = reading.windows(ids, self.L)
        mask_1xL = np.arange(self.L)[None] < len(ids)
        batch["mask_BxL"] = mask_1xL
        batch["inputs_BxL"] = np.where(mask_1xL, batch["inputs_BxL"], np.int32(self.padding))
        if self.subwords:
            rows_1xL = self._word_rows(text)[None]
            batch["subwords_BxLxG"] = self.subwords.table()[rows_1xL]
        return reading.Reading(ids, spans, batch)
