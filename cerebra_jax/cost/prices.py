"""Lists the prices: forward FLOPs as exact Python integers, by the conventions every report prints.

1 MAC = 2 FLOPs. Counted are matmuls, convolutions, FFTs, diagonal recurrences, and whatever a scan
repeats of them. Not counted here are other elementwise work, reductions, softmax, norms and gathers
(`cost/count.py` reports them apart). The gather of the embedding costs 0, the LM head is in (2 D V
per token). Causal attention is half the square (`causal_pairs`) in model FLOPs, and what a kernel
really visits in executed FLOPs. The backward pass is twice the forward pass, so that a training
step is 3 of them; recomputation (remat) comes on top.

`cost/count.py` counts programs with these functions. Sources: Kaplan et al. 2020 (arXiv:2001.08361)
for linear layers, attention and FFN; Makhoul 1980 (IEEE TASSP 28-1) for the DCT by one FFT of the
same length; Van Loan 1992, "Computational Frameworks for the FFT", for 5 n log2 n. This module
imports no JAX.
"""

from __future__ import annotations

import math

CONVENTIONS = (
    "1 MAC = 2 FLOPs; matmul, convolution, FFT and diagonal recurrences counted, "
    "elementwise work apart; head in, embedding gather 0; "
    "causal attention half the square in model FLOPs, "
    "the key blocks really visited in executed FLOPs; "
    "complex FFT 5 n log2 n, real half; backward 2x forward; "
    "products of int8 are operations, no FLOPs"
)
TRAIN_FACTOR = 3
"""FLOPs of a training step per FLOP of its forward pass, without remat: dX and dW cost one each."""


def matmul_flops(m: int, k: int, n: int) -> int:
    """Returns FLOPs of (m, k) @ (k, n): 2 m k n."""
    return 2 * m * k * n


def attention_pairs_flops(pairs: int, width: int) -> int:
    """Returns FLOPs of scores and values of that many (query, key) pairs: 4 pairs width.

    Of `causal_pairs(L)` it is the causal cost.
    """
    return 4 * pairs * width


def causal_pairs(L: int) -> int:
    """Returns how many (query, key) pairs of L positions have key <= query: L (L + 1) / 2."""
    return L * (L + 1) // 2


def fft_flops(n: int) -> int:
    """Returns FLOPs of a complex FFT of n points: 5 n log2 n, rounded to the nearest integer.

    Raises ValueError for less than one point.
    """
    if n < 1:
        raise ValueError(f"an FFT of {n} points")
    if n & (n - 1) == 0:
        return 5 * n * (n.bit_length() - 1)
    return round(5 * n * math.log2(n))


def rfft_flops(n: int) -> int:
    """Returns FLOPs of a real FFT of n points, or its inverse: half the complex, rounded down."""
    return fft_flops(n) // 2


def conv_flops(out: int, kernel: int, c_in: int, c_out: int, groups: int = 1) -> int:
    """Returns FLOPs of a convolution with `out` results: 2 kernel c_in c_out / groups each.

    Kernel taps in the padding are counted.
    """
    return 2 * out * kernel * (c_in // groups) * c_out
