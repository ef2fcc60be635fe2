"""Words as tokens: those that the training texts hold often enough; the others are one token.

A word is what stands between two word boundaries of Unicode (UAX 29, by the `regex` library): marks
stay with their letters, "don’t" and an emoji of several characters are one. Texts are composed
(NFC), so that é is one word's é however it was typed. Scripts without spaces are cut at characters.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import regex

from cerebra_jax.tasks.text.reading import Span, covered

BOUNDARY = regex.compile(r"(?w)\b")
WORD_BEFORE = re.compile(r"[^\W_]+(?:'[^\W_]+)?|[^\w\s]|_")  # of version 0.1
UNKNOWN = 0


class Words:
    """Lower-case words, numbers and signs.

    Id 0 is every word that is rare or was never seen in training.
    """

    name = "words"

    def __init__(self, often: Sequence[str], before: bool = False):
        """Takes the words in the order of their ids, from 1 on.

        before: texts are cut into words as version 0.1 did.
        """
        self.before = before
        self._ids = {word: i for i, word in enumerate(often, start=1)}
        self.bos = 1 + len(often)
        self.vocab_size = self.bos + 1
        self.json = json.dumps(list(often), ensure_ascii=False)
        self.sha256 = hashlib.sha256(json.dumps(sorted(often)).encode()).hexdigest()

    @classmethod
    def learnt(
        cls, texts: Iterable[str], min_count: int, limit: int, before: bool = False
    ) -> Words:
        """Returns the `limit` - 2 most frequent words, each at least min_count times in the texts.

        Of equally frequent words the first by the alphabet are taken.
        """
        counts = Counter(word for text in texts for word in split(text, before))
        by_count = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls([word for _, word in by_count[: limit - 2]], before)

    def split(self, text: str) -> list[str]:
        """Returns the words, numbers and signs of a text."""
        return split(text, self.before)

    def encode_each(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the tokens of each text."""
        found = []
        for text in texts:
            ids = [self._ids.get(word, UNKNOWN) for word in self.split(text)]
            found.append(np.asarray(ids, np.int64))
        return found

    def spans(self, text: str) -> list[Span]:
        """Returns the characters that each token covers; one of them may be two in lower case."""
        units = [len(character.lower()) for character in text]
        return covered(units, _places(text.lower(), self.before))


def split(text: str, before: bool = False) -> list[str]:
    """Returns the words, numbers and signs of a text, in lower case and composed.

    >>> split("Don’t, हिन्दी!")
    ['don’t', ',', 'हिन्दी', '!']
    """
    text = text.lower() if before else unicodedata.normalize("NFC", text.lower())
    return [text[start:end] for start, end in _places(text, before)]


def _places(text: str, before: bool) -> Iterator[Span]:
    """Yields where the words of a text begin and end."""
    if before:
        yield from (match.span() for match in WORD_BEFORE.finditer(text))
        return
    cuts = [0, *(match.start() for match in BOUNDARY.finditer(text)), len(text)]
    yield from ((a, b) for a, b in pairwise(cuts) if not text[a:b].isspace() and a < b)
