"""Words as tokens: those that the training texts hold often enough; the others are one token."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cerebra_jax.tasks.text.reading import Span, covered

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?|[^\w\s]|_")
UNKNOWN = 0


class Words:
    """Lower-case words, numbers and signs; id 0 is every word that is rare or was never seen in training."""

    name = "words"

    def __init__(self, texts: Sequence[str], min_count: int, limit: int):
        """The `limit` - 2 most frequent words, each at least min_count times in the texts; equals by the alphabet."""
        counts = Counter(word for text in texts for word in split(text))
        often = sorted(
            (w for w, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w)
        )
        self._ids = {word: 1 + i for i, word in enumerate(often[: limit - 2])}
        self.bos = 1 + len(self._ids)
        self.vocab_size = self.bos + 1
        self.json = json.dumps(
            list(self._ids), ensure_ascii=False
        )  # in the order of their ids, from 1 on
        self.sha256 = hashlib.sha256(json.dumps(sorted(self._ids)).encode()).hexdigest()

    def encode_each(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text."""
        return [
            np.asarray([self._ids.get(word, UNKNOWN) for word in split(text)], np.int64)
            for text in texts
        ]

    def spans(self, text: str) -> list[Span]:
        """The characters that each token covers; one of them may be two in lower case."""
        return covered(
            [len(c.lower()) for c in text], (m.span() for m in WORD.finditer(text.lower()))
        )


def split(text: str) -> list[str]:
    """The words, numbers and signs of a text, in lower case."""
    return WORD.findall(text.lower())
