"""Counts a program: walks its jaxpr and prices every operation with `cost/prices.py`, in Python integers.

Scan bodies are multiplied by their length, `cond` costs its dearest branch (or the mean under given weights), jit,
remat and custom derivatives are entered once, code whose results nobody uses is left out (XLA removes it too), and an
operation with no price raises. What is counted is what the program runs: a masked full square of attention is a full
square. The elementwise work of a diagonal recurrence is its FLOPs: where it stands under the name RECURRENCE
(`jax.named_scope`) it is counted, as kind scan. Nothing is allocated or compiled, arguments may be
`jax.ShapeDtypeStruct`.

Not XLA's `cost_analysis`, which counts a scan body once, charges FFTs 1.6 to 4.8 times too much and reports -1 for
custom calls; `xla_flops` is here to cross-check small, unrolled, single-device programs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from cerebra_jax.cost import prices
from cerebra_jax.errors import RunError

ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz complex conj
    cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite
    le le_to lgamma log log1p logistic lt lt_to max min mul mulhi ne neg nextafter not or polygamma population_count pow
    real reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh
    sqrt square sub tan tanh xor zeta psum psum2 psum_invariant pmax pmin random_bits random_gamma rng_bit_generator
    rng_uniform threefry2x32""".split()
)
"""One operation per element of the result."""

REDUCTIONS = frozenset(
    """argmax argmin cumlogsumexp cummax cummin cumprod cumsum reduce reduce_and reduce_max reduce_min reduce_or
    reduce_prod reduce_sum reduce_xor""".split()
)
"""One operation per element of the (first) operand."""

MOVES = frozenset(
    """all_gather all_gather_invariant all_to_all axis_index bitcast_convert_type broadcast_in_dim concatenate
    convert_element_type copy copy_p create_token debug_callback debug_print device_put dynamic_slice
    dynamic_update_slice empty empty2 expand_dims gather iota layout_constraint mesh_cast name
    optimization_barrier pad pbroadcast pcast platform_index ppermute pvary random_clone random_fold_in
    random_seed random_split random_unwrap random_wrap reshape reshard rev scatter sharding_constraint slice
    split squeeze stack stop_gradient tile transpose unstack""".split()
)
"""Data movement, bookkeeping and key arithmetic: 0 FLOPs."""

RECURRENCE = "diagonal_recurrence"
"""The name scope under which elementwise operations and reductions are FLOPs."""

CUDNN_CAUSAL = (2, 3)  # values of MaskType.CAUSAL and PADDING_CAUSAL in JAX's cuDNN binding


class Counts(NamedTuple):
    """What a program costs, per call. `flops` = sum of `by`, whose kinds are dot, conv, fft, attention, scan. Products
    and convolutions of integers are no FLOPs: `int8`, by the same prices."""

    flops: int
    by: dict[str, int]
    elementwise: (
        int  # one per element of a result (arithmetic) or operand (reductions); sort n log2 n
    )
    bytes: int  # operands and results of operations that are not fused away: matmuls, convolutions, FFTs, gathers, sorts
    int8: int = 0


class UnpricedOp(RunError):
    """An operation of the program has no price, so its cost is unknown."""


class _Rules(NamedTuple):
    trips: int | None
    weights: tuple[float, ...] | None
    elementwise: str = "elementwise"  # the kind that elementwise work is here


def count(fn: Callable, *args: Any, **kwargs: Any) -> Counts:
    """Counts of one call of fn(*args, **kwargs); arrays may be `jax.ShapeDtypeStruct`. Raises UnpricedOp."""
    return count_jaxpr(jax.make_jaxpr(lambda a, k: fn(*a, **k))(args, kwargs))


def count_jaxpr(
    closed: Any, *, trips: int | None = None, weights: Sequence[float] | None = None
) -> Counts:
    """Counts of a (closed) jaxpr.

    trips: how often each data-dependent `while` runs; without it such a loop raises UnpricedOp.
    weights: how often each branch of a `cond` with that many branches is taken; without it the dearest branch counts.
    """
    jaxpr = _jaxpr(closed)
    tally = _walk(
        jaxpr,
        [True] * len(jaxpr.outvars),
        _Rules(trips, None if weights is None else tuple(weights)),
    )
    elementwise, size, integer = (tally.pop(kind, 0) for kind in ("elementwise", "bytes", "int8"))
    return Counts(sum(tally.values()), dict(tally), elementwise, size, integer)


def xla_flops(fn: Callable, *args: Any) -> float:
    """FLOPs as XLA's `cost_analysis` gives them for the compiled fn(*args), elementwise work included.

    Trust it for small unrolled single-device programs of matmuls: loops are counted once, FFTs too dearly, custom calls
    (cuBLAS, cuDNN, TopK) as -1, sharded programs per device. A program without arithmetic has 0. Raises ValueError
    where XLA gives no figure.
    """
    return compiled_flops(jax.jit(fn).lower(*args).compile())


def compiled_flops(compiled: Any) -> float:
    """`xla_flops` of a program that is compiled already."""
    found = compiled.cost_analysis()
    found = found[0] if isinstance(found, list | tuple) and found else found
    if not isinstance(found, dict):
        raise ValueError(f"XLA gives no cost analysis on {jax.default_backend()}")
    flops = found.get("flops", 0.0)
    if flops < 0:
        raise ValueError("XLA gives no FLOPs for this program: it is a custom call")
    return flops


def loops(fn: Callable, *args: Any) -> int:
    """How many loops of more than one turn fn(*args) has: XLA's count misses all their turns but the first."""

    def inside(jaxpr: Any) -> int:
        found = 0
        for eqn in jaxpr.eqns:
            found += eqn.primitive.name == "while" or (
                eqn.primitive.name == "scan" and eqn.params["length"] > 1
            )
            bodies = (
                b for v in eqn.params.values() for b in (v if isinstance(v, tuple | list) else (v,))
            )
            found += sum(inside(_jaxpr(b)) for b in bodies if _jaxpr(b) is not None)
        return found

    return inside(jax.make_jaxpr(fn)(*args).jaxpr)


def _walk(jaxpr: Any, wanted: list[bool], rules: _Rules) -> Counter:
    """Price of the equations that the wanted results need; from the last to the first, so the unused are skipped."""
    tally: Counter = Counter()
    live = {v for v, want in zip(jaxpr.outvars, wanted, strict=True) if want and _is_var(v)}
    for eqn in reversed(jaxpr.eqns):
        used = [v in live for v in eqn.outvars]
        if any(used) or eqn.effects:
            recurs = RECURRENCE in str(eqn.source_info.name_stack)
            tally.update(_price(eqn, used, rules._replace(elementwise="scan") if recurs else rules))
            live.update(v for v in eqn.invars if _is_var(v))
    return tally


def _price(eqn: Any, used: list[bool], rules: _Rules) -> dict[str, int]:
    name = eqn.primitive.name
    outs, ins = [v.aval for v in eqn.outvars], [v.aval for v in eqn.invars]
    if name in ELEMENTWISE:
        return {rules.elementwise: sum(map(_size, outs))}
    if name in REDUCTIONS:
        return {rules.elementwise: _size(ins[0]), "bytes": _bytes(ins + outs)}
    if name in MOVES:
        moved = {
            "gather": outs,
            "dynamic_slice": outs,
            "dynamic_update_slice": ins[1:2],
            "scatter": ins[2:],
        }
        return {"bytes": 2 * _bytes(moved.get(name, []))}
    if name.startswith(
        "scatter"
    ):  # scatter-add, scatter_mul, ...: one operation per update, old values read too
        return {"elementwise": _size(ins[2]), "bytes": 3 * _bytes(ins[2:])}
    if name in ("sort", "top_k", "approx_top_k"):
        steps = max(1, (max(ins[0].shape[eqn.params.get("dimension", -1)], 1) - 1).bit_length())
        return {"elementwise": steps * _size(ins[0]), "bytes": _bytes(ins + outs)}
    if name in _PRICES:
        kind, price = _PRICES[name]
        if kind in ("dot", "conv") and jax.numpy.issubdtype(ins[0].dtype, jax.numpy.integer):
            kind = "int8"
        return {kind: price(eqn.params, ins, outs), "bytes": _bytes(ins + outs)}
    return _enter(name, eqn, used, rules)


def _enter(name: str, eqn: Any, used: list[bool], rules: _Rules) -> Counter:
    """Loops, branches, and every call whose parameters hold exactly one jaxpr (custom derivatives: the primal)."""
    params = eqn.params
    if name == "while":
        if rules.trips is None:
            raise UnpricedOp(
                "the program has a while loop whose length depends on data",
                "give count_jaxpr(..., trips=N), or loop a fixed number of times (scan)",
            )
        parts = [_all(params[key], rules) for key in ("cond_jaxpr", "body_jaxpr")]
        return _times(rules.trips, parts[0] + parts[1])
    if name == "cond":
        branches = [_all(branch, rules) for branch in params["branches"]]
        if rules.weights is not None and len(rules.weights) == len(branches):
            kinds = set().union(*branches)
            mean = {
                k: sum(w * b[k] for w, b in zip(rules.weights, branches, strict=True))
                for k in kinds
            }
            return Counter({k: round(v) for k, v in mean.items()})
        return max(branches, key=lambda b: (_flops(b), b["elementwise"]))
    bodies = [body for body in map(_jaxpr, params.values()) if body is not None]
    if len(bodies) != 1:
        raise UnpricedOp(
            f"the operation {name!r} has no price",
            "add it to cerebra_jax/cost/count.py, with a test",
        )
    if name == "scan":
        return _times(params["length"], _all(bodies[0], rules))
    if name == "shard_map":  # the body is one device's share
        manual = params.get("manual_axes", params["mesh"].axis_names)
        return _times(
            math.prod(params["mesh"].shape[axis] for axis in manual), _all(bodies[0], rules)
        )
    wanted = used if len(used) == len(bodies[0].outvars) else [True] * len(bodies[0].outvars)
    return _times(params.get("global_axis_size", 1), _walk(bodies[0], wanted, rules))


def _dot(params: dict, ins: list, outs: list) -> int:
    (contract, _), _ = params["dimension_numbers"]
    return prices.matmul_flops(_size(outs[0]), math.prod(ins[0].shape[i] for i in contract), 1)


def _conv(params: dict, ins: list, outs: list) -> int:
    """Taps in the padding are counted, the zeros that `lhs_dilation` inserts (transposed convolutions) are not."""
    kernel = ins[1].shape
    taps = _size(ins[1]) // max(1, kernel[params["dimension_numbers"].rhs_spec[0]])
    return prices.conv_flops(_size(outs[0]), taps, 1, 1) // math.prod(params["lhs_dilation"])


def _fft(params: dict, ins: list, outs: list) -> int:
    points = math.prod(params["fft_lengths"])
    kind = getattr(params["fft_type"], "name", str(params["fft_type"])).upper()
    real = "RFFT" in kind  # RFFT and IRFFT
    full = (
        outs[0] if kind.endswith("IRFFT") else ins[0]
    )  # the side with `points` entries a transform
    return (
        _size(full)
        // max(1, points)
        * (prices.rfft_flops(points) if real else prices.fft_flops(points))
    )


def _fused_attention(params: dict, ins: list, _: list) -> int:
    """cuDNN attention, queries (B, L, H, C) or with layout 1 (B, H, L, C); its causal kernel skips the upper half."""
    (B, a, b, C), key = ins[0].shape, ins[1].shape
    q, H, k = (b, a, key[2]) if params["layout"] == 1 else (a, b, key[1])
    causal = getattr(params["mask_type"], "value", params["mask_type"]) in CUDNN_CAUSAL
    pairs = prices.causal_pairs(min(q, k)) + max(0, q - k) * k if causal else q * k
    return B * prices.attention_pairs_flops(pairs, H * C)


def _fused_attention_bwd(params: dict, ins: list, outs: list) -> int:
    return (
        _fused_attention(params, ins, outs) * 5 // 2
    )  # five matmuls against two: the scores are computed again


_PRICES: dict[str, tuple[str, Callable[[dict, list, list], int]]] = {
    "dot_general": ("dot", _dot),
    "conv_general_dilated": ("conv", _conv),
    "fft": ("fft", _fft),
    "dot_product_attention_fwd": ("attention", _fused_attention),
    "dot_product_attention_fwd_wrapper": ("attention", _fused_attention),
    "dot_product_attention_bwd": ("attention", _fused_attention_bwd),
    "dot_product_attention_bwd_wrapper": ("attention", _fused_attention_bwd),
}


def _all(body: Any, rules: _Rules) -> Counter:
    jaxpr = _jaxpr(body)
    return _walk(jaxpr, [True] * len(jaxpr.outvars), rules)


def _times(n: int, tally: Counter) -> Counter:
    return Counter({kind: n * amount for kind, amount in tally.items()})


def _flops(tally: Counter) -> int:
    return sum(v for k, v in tally.items() if k not in ("elementwise", "bytes"))


def _jaxpr(x: Any) -> Any:
    """The open jaxpr of a (closed) jaxpr, None for anything else; told by its parts, whose classes JAX moves about."""
    x = getattr(x, "jaxpr", x)
    return x if hasattr(x, "eqns") and hasattr(x, "outvars") else None


def _is_var(v: Any) -> bool:
    return not hasattr(v, "val")  # literals carry their value


def _size(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ()))


def _bytes(avals: list) -> int:
    return sum(_size(a) * getattr(getattr(a, "dtype", None), "itemsize", 0) for a in avals)
