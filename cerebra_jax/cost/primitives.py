"""Prices single operations of JAX: tables of what counts as what, and FLOPs from shapes.

`cost/count.py` walks a program and asks here. An operation that stands in no table raises there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

from cerebra_jax.cost import prices

ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt
    igamma igammac imag integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min
    mul mulhi ne neg nextafter not or polygamma population_count pow real reduce_precision rem round
    rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square
    sub tan tanh xor zeta psum psum2 psum_invariant pmax pmin random_bits random_gamma
    rng_bit_generator rng_uniform threefry2x32""".split()
)
"""One operation per element of the result."""

REDUCTIONS = frozenset(
    """argmax argmin cumlogsumexp cummax cummin cumprod cumsum reduce reduce_and reduce_max
    reduce_min reduce_or reduce_prod reduce_sum reduce_xor""".split()
)
"""One operation per element of the (first) operand."""

MOVES = frozenset(
    """all_gather all_gather_invariant all_to_all axis_index bitcast_convert_type broadcast_in_dim
    concatenate convert_element_type copy copy_p create_token debug_callback debug_print device_put
    dynamic_slice dynamic_update_slice empty empty2 expand_dims gather iota layout_constraint
    mesh_cast name optimization_barrier pad pbroadcast pcast platform_index ppermute pvary
    random_clone random_fold_in random_seed random_split random_unwrap random_wrap reshape reshard
    rev scatter sharding_constraint slice split squeeze stack stop_gradient tile transpose
    unstack""".split()
)
"""Data movement, bookkeeping and key arithmetic: 0 FLOPs."""

RELABELS = frozenset(
    """bitcast_convert_type broadcast_in_dim concatenate convert_element_type copy copy_p
    dynamic_slice expand_dims layout_constraint mesh_cast name pad pbroadcast pcast pvary reshape
    reshard rev sharding_constraint slice split squeeze stack stop_gradient tile transpose
    unstack""".split()
)
"""Moves after which a weight is still that weight; they are fused into what uses it."""

CUDNN_CAUSAL = (2, 3)  # values of MaskType.CAUSAL and PADDING_CAUSAL in JAX's cuDNN binding

_COMPLEX_PRODUCTS = frozenset("cumprod div integer_pow mul reduce_prod square".split())
"""Elementwise operations on complex numbers with 6 real ones an element; the others have 2."""


def _dot(params: dict, ins: list, outs: list) -> int:
    (contract, _), _ = params["dimension_numbers"]
    depth = math.prod(ins[0].shape[i] for i in contract)
    return _real_products(ins) * prices.matmul_flops(size_of(outs[0]), depth, 1)


def _conv(params: dict, ins: list, outs: list) -> int:
    """Returns FLOPs of a convolution.

    Taps in the padding are counted, the zeros that `lhs_dilation` inserts (transposed
    convolutions) are not.
    """
    kernel = ins[1].shape
    taps = size_of(ins[1]) // max(1, kernel[params["dimension_numbers"].rhs_spec[0]])
    flops = prices.conv_flops(size_of(outs[0]), taps, 1, 1) // math.prod(params["lhs_dilation"])
    return _real_products(ins) * flops


def _real_products(ins: list) -> int:
    """Returns how many real multiply-adds one of these two operands is: 4 if both are complex."""
    return math.prod(2 if is_complex(aval) else 1 for aval in ins[:2])


def complex_work(name: str, ins: list) -> int:
    """Returns how many real operations one elementwise operation is."""
    if not any(map(is_complex, ins)):
        return 1
    return 6 if name in _COMPLEX_PRODUCTS else 2


def _fft(params: dict, ins: list, outs: list) -> int:
    points = math.prod(params["fft_lengths"])
    kind = getattr(params["fft_type"], "name", str(params["fft_type"])).upper()
    price = prices.rfft_flops(points) if "RFFT" in kind else prices.fft_flops(points)
    # the side with `points` entries a transform; IRFFT has its half spectrum on the other
    full = outs[0] if kind.endswith("IRFFT") else ins[0]
    return size_of(full) // max(1, points) * price


def _fused_attention(params: dict, ins: list, _: list) -> int:
    """Returns FLOPs of cuDNN attention, whose causal kernel skips the upper half of the square.

    Queries are (B, L, H, C), or with layout 1 (B, H, L, C).
    """
    (B, a, b, C), key = ins[0].shape, ins[1].shape
    q, H, k = (b, a, key[2]) if params["layout"] == 1 else (a, b, key[1])
    causal = getattr(params["mask_type"], "value", params["mask_type"]) in CUDNN_CAUSAL
    pairs = prices.causal_pairs(min(q, k)) + max(0, q - k) * k if causal else q * k
    return B * prices.attention_pairs_flops(pairs, H * C)


def _fused_attention_bwd(params: dict, ins: list, outs: list) -> int:
    """Returns FLOPs of five matmuls, of two in the forward pass: scores are computed again."""
    return _fused_attention(params, ins, outs) * 5 // 2


PRICES: dict[str, tuple[str, Callable[[dict, list, list], int]]] = {
    "dot_general": ("dot", _dot),
    "conv_general_dilated": ("conv", _conv),
    "fft": ("fft", _fft),
    "dot_product_attention_fwd": ("attention", _fused_attention),
    "dot_product_attention_fwd_wrapper": ("attention", _fused_attention),
    "dot_product_attention_bwd": ("attention", _fused_attention_bwd),
    "dot_product_attention_bwd_wrapper": ("attention", _fused_attention_bwd),
}


# sizes


def is_complex(aval: Any) -> bool:
    """Returns whether an array is of complex numbers."""
    return jax.numpy.issubdtype(getattr(aval, "dtype", bool), jax.numpy.complexfloating)


def size_of(aval: Any) -> int:
    """Returns how many elements an array has; 1 of what has no shape."""
    return math.prod(getattr(aval, "shape", ()))


def itemsize_of(aval: Any) -> int:
    """Returns the bytes of one element; 0 of what has no type."""
    return getattr(getattr(aval, "dtype", None), "itemsize", 0)


def bytes_of(avals: list) -> int:
    """Returns the bytes of some arrays together."""
    return sum(size_of(a) * itemsize_of(a) for a in avals)
