"""Character n-grams of words, hashed: what a rare or misspelt word has in common with others.

As fastText has them (Bojanowski et al. 2017, arXiv:1607.04606): 3- to 5-grams of the word between <
and >. Nothing is learnt of a text here, so that the words of validation and test texts have their
n-grams too.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

LENGTHS = (3, 4, 5)
MOST = 24  # of a word: all of one of nine letters; the last 5-grams of a longer one are left out
NONE = -1


def grams(word: str) -> list[str]:
    """Returns the n-grams of a word, the short ones first.

    >>> grams("card")
    ['<ca', 'car', 'ard', 'rd>', '<car', 'card', 'ard>', '<card', 'card>']
    """
    marked = f"<{word}>"
    found = [marked[i : i + n] for n in LENGTHS for i in range(len(marked) - n + 1)]
    return found[:MOST]


class Subwords:
    """Rows of n-gram numbers, one per distinct word; row 0: no word.

    Numbers are first + CRC-32 mod buckets.
    """

    def __init__(self, buckets: int, first: int):
        self.buckets = buckets
        self._first = first
        self._rows = [np.full(MOST, NONE, np.int32)]
        self._row_of: dict[str, int] = {}

    def rows(self, words: Sequence[str]) -> list[int]:
        """Returns the row of each word; one that is new gets the next."""
        for word in words:
            if word not in self._row_of:
                numbers_G = np.full(MOST, NONE, np.int32)
                for i, gram in enumerate(grams(word)):
                    numbers_G[i] = self._first + zlib.crc32(gram.encode()) % self.buckets
                self._row_of[word] = len(self._rows)
                self._rows.append(numbers_G)
        return [self._row_of[word] for word in words]

    def table(self) -> np.ndarray:
        """Returns all rows, (W, G) int32, −1 where a word has no further n-gram."""
        return np.stack(self._rows)
