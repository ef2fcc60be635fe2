"""The prices of the layers, derived by hand: what the package counts must be these numbers.

1 multiply-add is 2 FLOPs. Counted are matrix products, convolutions, Fourier transforms and
diagonal recurrences; a gather of rows, a softmax, a norm and other elementwise work are 0. Nothing
here is imported from the package.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

CHUNK = 64  # tokens of the random-feature mixer whose pairs are looked at
STEP = 16  # tokens of a state space layer, or of gated linear attention, that run together


def linear(a: int, b: int) -> int:
    """Returns FLOPs a row of a linear map a -> b."""
    return 2 * a * b


def share(part: float, n: int) -> int:
    """Returns ceil(part · n), at least 1."""
    return max(1, math.ceil(part * n - 1e-9))


# pairs of queries and keys


def causal_pairs(L: int) -> int:
    """Returns how many pairs of L tokens see each other: each one itself and those before it."""
    return sum(i + 1 for i in range(L))


def window_pairs(L: int, back: int, ahead: int) -> int:
    """Returns how many pairs are at most `back` behind or `ahead` of the query."""
    return sum(1 for q in range(L) for k in range(L) if q - back <= k <= q + ahead)


class Windows(NamedTuple):
    """The windows of the compressor: M of them, W places each, and who sees them."""

    count: int
    places: int
    causal_pairs: int


def windows(L: int, r: float) -> Windows:
    """Returns the windows [floor(j L / M), ceil((j + 1) L / M)) of L tokens, M = ceil(r L)."""
    M = share(r, L)
    starts = [math.floor(Fraction(j * L, M)) for j in range(M)]
    ends = [math.ceil(Fraction((j + 1) * L, M)) for j in range(M)]
    longest = max(end - start for start, end in zip(starts, ends, strict=True))
    # a token sees a window that has ended with it or before
    seen = sum(1 for token in range(L) for end in ends if end - 1 <= token)
    return Windows(M, longest, seen)


# layers


def attention(D: int, inner: int, rows: int, keys: int, pairs: int) -> int:
    """Returns FLOPs of attention whose heads are `inner` wide together.

    q and the output are 2 D · inner a row, k and v as much a key, scores and values 4 · inner a
    pair: of plain self-attention 8 D² a token and 4 D a visible pair.
    """
    projections = rows * 2 * linear(D, inner) + keys * 2 * linear(D, inner)
    return projections + 4 * inner * pairs


def feed_forward(D: int, F: int, kind: str = "gelu") -> int:
    """Returns FLOPs a row: 4 D F, of the gated form 6 D F."""
    return {"gelu": 4, "gated": 6}[kind] * D * F


def compressor(kind: str, D: int, channels: int, heads: int, win: Windows) -> int:
    """Returns FLOPs of compressing all windows.

    conv: 2 W D E a window. attention and hybrid: scores of every place, one a head; a sum over W
    places of D features; a projection. The convolution of hybrid is elementwise.
    """
    if kind == "conv":
        return win.count * 2 * win.places * D * channels
    scores = win.places * linear(D, heads)
    return win.count * (scores + 2 * win.places * D + linear(D, channels))


def light_attention(D: int, E: int, channels: int, rows: int, win: Windows, pairs: int) -> int:
    """Returns FLOPs of `rows` tokens that attend to the windows; the null key is elementwise."""
    keys = win.count * linear(channels, 2 * E)
    return rows * 2 * linear(D, E) + keys + 4 * E * pairs


def real_fft(n: int) -> int:
    """Returns FLOPs of a Fourier transform of n real numbers: half of 5 n log2 n."""
    return round(5 * n * math.log2(n)) // 2


def dct(D: int, method: str) -> int:
    """Returns FLOPs of one transform of D features."""
    return real_fft(D) if method == "fft" else 2 * D * D


def dct_filter(D: int, method: str) -> int:
    """Returns FLOPs a token of iDCT(w ⊙ DCT(x)): two transforms, or folded one matrix."""
    return 2 * D * D if method == "folded" else 2 * dct(D, method)


class StateSpace(NamedTuple):
    """FLOPs a token of a layer with a state: of its linear maps, and of the recurrence."""

    maps: int
    scan: int


def state_space(D: int, S: int) -> StateSpace:
    """Returns the prices of the layer, E = 2 D: maps D -> 2 E, E -> R + 2 S, R -> E, E -> D.

    The recurrence: exp(Δ A) and Δ u b are 3, the new state 2, the read-out 2: 7 E S.
    """
    E, R = 2 * D, math.ceil(D / 16)
    maps = linear(D, 2 * E) + linear(E, R + 2 * S) + linear(R, E) + linear(E, D)
    return StateSpace(maps, 7 * E * S)


def lstm(hidden: int, width: int) -> int:
    """Returns FLOPs a token: four gates of h and x, 8 h (h + x)."""
    return 8 * hidden * (hidden + width)


def gated_conv(D: int, taps: int) -> int:
    """Returns FLOPs a token of a convolution D -> 2 D: 2 k · D · 2 D."""
    return 2 * taps * D * 2 * D


def gated_linear_attention(D: int, heads: int) -> StateSpace:
    """Returns the prices of the chunked form: q, k, v, gate, up and output, 12 D² a token.

    A chunk of c tokens has, a head, c² products of keys of C features and of values of C, and
    c · C² to read the state and c · C² to add to it: 4 D (c + C) a token.
    """
    return StateSpace(6 * linear(D, D), 4 * D * (STEP + D // heads))


class Mixer(NamedTuple):
    """The sizes of the random-feature mixer."""

    D: int
    heads: int
    features: int  # frequencies of each head; a cosine and a sine of each

    def projections(self, rows: int) -> int:
        """Returns FLOPs of q, k, v, the output, and the angles of q and of k."""
        return rows * (4 * linear(self.D, self.D) + 2 * linear(self.D, self.features))

    def sums(self, rows: int, before: bool) -> int:
        """Returns FLOPs of the pairs inside chunks, and of adding to and reading the state.

        Without tokens before, the first chunk reads nothing, and what the last adds is not used.
        """
        wide, values = 2 * self.features, self.D // self.heads + 1  # the 1 counts the keys
        chunk = min(rows, CHUNK)
        chunks = math.ceil(rows / chunk)
        inside = 2 * chunk * chunk * wide + 2 * chunk * chunk * values
        across = 2 * (2 * chunk * wide * values)
        return self.heads * (chunks * inside + (chunks - (not before)) * across)

    def program(self, rows: int) -> int:
        """Returns FLOPs of a program of that many rows."""
        return self.projections(rows) + self.sums(rows, before=False)

    def token(self) -> int:
        """Returns FLOPs of one token that is decoded."""
        return self.projections(1) + self.sums(1, before=True)
