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
    """Lower-case words, numbers and signs.

    Id 0 is every word that is rare or was never seen in training.
    """

    name = "words"

    def __init__(self, texts: Sequence[str], min_count: int, limit: int):
        """Takes the `limit` - 2 most frequent words, each at least min_count times in the texts.

        Of equally frequent words the first by the alphabet are taken.
        """
        counts = Counter(word for text in texts for word in split(text))
        by_count = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        often = [word for _, word in by_count[: limit - 2]]
        self._ids = {word: i for i, word in enumerate(often, start=1)}
        self.bos = 1 + len(often)
        self.vocab_size = self.bos + 1
        self.json = json.dumps(often, ensure_ascii=False)  # in the order of their ids, from 1 on
        self.sha256 = hashlib.sha256(json.dumps(sorted(often)).encode()).hexdigest()

    def encode_each(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the tokens of each text."""
        found = []
        for text in texts:
            ids = [self._ids.get(word, UNKNOWN) for word in split(text)]
            found.append(np.asarray(ids, np.int64))
        return found

    def spans(self, text: str) -> list[Span]:
        """Returns the characters that each token covers; one of them may be two in lower case."""
        units = [len(character.lower()) for character in text]
        return covered(units, (match.span() for match in WORD.finditer(text.lower())))


def split(text: str) -> list[str]:
    """Returns the words, numbers and signs of a text, in lower case."""
    return WORD.findall(text.lower())
