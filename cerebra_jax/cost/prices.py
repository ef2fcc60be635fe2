"""The price list: forward FLOPs as exact Python integers, with the conventions every report prints.

1 MAC = 2 FLOPs. Counted: matmul, convolution, FFT, diagonal recurrences, and whatever a scan repeats of them. Not
counted here: other elementwise work, reductions, softmax, norms, gathers (the jaxpr counter reports them apart).
Embedding gather 0, LM head in (2 D V per token). Causal attention is half the square (`causal_pairs`) in model FLOPs;
what a kernel really visits in executed FLOPs. Backward 2x forward: a training step is 3x; recomputation (remat) comes
on top.

The jaxpr counter (`cost/count.py`) prices with these same functions, so analytic == counted holds as integers.
Sources: Kaplan et al. 2020 (arXiv:2001.08361) for linear, attention and FFN; Makhoul 1980 (IEEE TASSP 28-1) for the DCT
by one FFT of the same length; Van Loan 1992, "Computational Frameworks for the FFT", for 5 n log2 n.
This module imports no JAX.
"""

from __future__ import annotations

import math

CONVENTIONS = (
    "1 MAC = 2 FLOPs; matmul, convolution, FFT and diagonal recurrences counted, elementwise work apart; head in, "
    "embedding gather 0; "
    "causal attention half the square in model FLOPs, the key blocks really visited in executed FLOPs; "
    "complex FFT 5 n log2 n, real half; backward 2x forward; products of int8 are operations, no FLOPs"
)
TRAIN_FACTOR = 3  # forward + backward (dX and dW) of a training step without remat
"""FLOPs of a training step / FLOPs of its forward pass, without remat (dX and dW cost one forward each)."""


def matmul_flops(m: int, k: int, n: int) -> int:
    """(m, k) @ (k, n): 2 m k n."""
    return 2 * m * k * n


def linear_flops(a: int, b: int) -> int:
    """Linear layer a -> b, per token: 2 a b. The bias is elementwise."""
    return matmul_flops(1, a, b)


def ffn_flops(D: int, F: int, kind: str) -> int:
    """Feed-forward layer, per token: "gelu" 4 D F (up, down), "gated" 6 D F (gate, up, down)."""
    matrices = {"gelu": 2, "gated": 3}[kind]
    return matrices * linear_flops(D, F)


def attention_scores_flops(q: int, k: int, width: int) -> int:
    """Scores and values of q queries against k keys, over all heads: 4 q k width, width = heads x head width."""
    return attention_pairs_flops(q * k, width)


def attention_pairs_flops(pairs: int, width: int) -> int:
    """Scores and values of that many (query, key) pairs: 4 pairs width; with `causal_pairs(L)` the causal cost."""
    return 4 * pairs * width


def causal_pairs(L: int) -> int:
    """(query, key) pairs with key <= query among L positions: L (L + 1) / 2."""
    return L * (L + 1) // 2


def fft_flops(n: int) -> int:
    """Complex FFT of n points: 5 n log2 n, rounded to the nearest integer (exact for powers of two)."""
    if n < 1:
        raise ValueError(f"an FFT of {n} points")
    if n & (n - 1) == 0:
        return 5 * n * (n.bit_length() - 1)
    return round(5 * n * math.log2(n))


def rfft_flops(n: int) -> int:
    """Real FFT of n points, or its inverse: half the complex one, rounded down."""
    return fft_flops(n) // 2


def dct_flops(n: int, method: str) -> int:
    """DCT-II of n points or its inverse: "fft" one real FFT of n points (Makhoul), "matmul" 2 n^2."""
    if method == "fft":
        return rfft_flops(n)
    if method == "matmul":
        return linear_flops(n, n)
    raise ValueError(f"no DCT method {method!r}; there are fft and matmul")


def filter_flops(n: int, method: str) -> int:
    """iDCT(w * DCT(x)) of n points: two transforms, or "folded" one n x n matrix, 2 n^2; made of n + 1 numbers once a
    call by elementwise work."""
    return linear_flops(n, n) if method == "folded" else 2 * dct_flops(n, method)


def ssm_flops(E: int, S: int) -> int:
    """Diagonal selective state space of S states per feature, per token: 7 E S.

    exp(Δ A) and Δ u b 1 + 1 + 1, the recurrence 2, the read-out 2 (Gu & Dao 2023, arXiv:2312.00752, with A real).
    """
    return 7 * E * S


def conv_flops(out: int, kernel: int, c_in: int, c_out: int, groups: int = 1) -> int:
    """Convolution: 2 kernel c_in c_out / groups per output position; kernel taps in the padding are counted."""
    return 2 * out * kernel * (c_in // groups) * c_out
