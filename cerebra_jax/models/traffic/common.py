"""The operations of each part of a model, with their bytes: what costs in bytes and in seconds are made of.

Parts are named as in `Cost`, and the FLOPs of their operations are those of `Cost` (a test holds them together);
cost/units.py says what counts as a byte. `model` and `executed` mean what they mean there.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import prices, units
from cerebra_jax.cost.units import FLOAT, Op
from cerebra_jax.kernels import attention as att
from cerebra_jax.layers import block, shapes

Ops = list[Op]


class Parts(NamedTuple):
    """{part: operations of one example}."""

    model: dict[str, Ops]
    executed: dict[str, Ops]

    def add(self, name: str, ops: Ops, run: Ops | None = None) -> None:
        self.model[name], self.executed[name] = ops, ops if run is None else run


def itemsize(net: NetCfg) -> int:
    return jnp.dtype(net.dtype).itemsize


def looks(
    net: NetCfg, pairs: int, queries: int, reads: int, width: int, heads: int, kernel: str = "full"
) -> Ops:
    """Scores and values of visited pairs, for that many queries and readings of a key."""
    size, fused = itemsize(net), kernel == "cudnn"
    return [
        units.pair(width, heads, size, fused).times(pairs),
        units.streamed(width, size).times(queries + reads),
    ]


def visits(net: NetCfg, plan: att.Plan, width: int, heads: int, kernel: str) -> Ops:
    """`looks` as executed: each segment, and each chunk of queries in the blockwise kernel, reads its keys."""
    queries = plan[-1][1]
    if kernel == "cudnn":
        return looks(net, prices.causal_pairs(queries), queries, queries, width, heads, kernel)
    pairs = reads = 0
    for (q0, q1, k0, k1), chunk in att.pieces(plan, kernel):
        pairs += (q1 - q0) * (k1 - k0)
        reads += (k1 - k0) * ((q1 - q0) // chunk)
    return looks(net, pairs, queries, reads, width, heads)


def heavy(net: NetCfg, queries: int, keys: int, looks: Ops) -> Ops:
    """Projections and scores of an attention layer."""
    D, A, size = net.width, shapes.inner(net), itemsize(net)
    ends = [units.linear(*ends, size).times(queries) for ends in ((D, A), (A, D))]
    return [*ends, units.linear(D, 2 * A, size).times(keys), *looks]


def dense(net: NetCfg, L: int) -> tuple[Ops, Ops]:
    """(model, executed) operations of dense attention."""
    A, H, kernel = shapes.inner(net), shapes.heads(net), block.kernel_of(net, L)
    model = heavy(net, L, L, looks(net, block.pairs(net, L), L, L, A, H, kernel))
    return model, heavy(net, L, L, visits(net, block.dense_plan(net, L), A, H, kernel))


def ffn(net: NetCfg, rows: int, F: int) -> Ops:
    up, down = (
        units.linear(*ends, itemsize(net)).times(rows) for ends in ((net.width, F), (F, net.width))
    )
    return [up, *([up] if net.ffn == "gated" else []), down] if F else []


def norm(net: NetCfg, rows: int) -> Op:
    return units.norm(net.width).times(rows)


def embed(net: NetCfg, L: int, parts: Parts) -> None:
    if net.features:
        parts.add("embed", [units.linear(net.features, net.width, itemsize(net)).times(L)])
    else:
        # rows of the token table; those of n-grams are then read by their sum
        summed = [Op(bytes=(net.subwords + 1) * net.width * FLOAT).times(L)] if net.subwords else []
        parts.add("embed", [units.moved(net.width, FLOAT).times(L * (1 + net.subwords)), *summed])


def head(net: NetCfg, L: int, vocab: int, parts: Parts) -> None:
    """Last norm and logits: float32, written and read twice (maximum, sum)."""
    rows, V = (1, net.outputs) if net.outputs else (net.answers or L, vocab)
    logits = units.linear(net.width, V, itemsize(net), FLOAT)
    pooled = [Op(bytes=L * net.width * FLOAT)] if net.outputs else []
    more = [units.moved(net.width, itemsize(net)).times(rows)] if net.answers else []
    normed = 1 if net.outputs and net.pool else L
    parts.add(
        "head",
        [norm(net, normed), *pooled, *more, logits.times(rows), Op(bytes=2 * V * FLOAT * rows)],
    )


def transformer(net: NetCfg, L: int, vocab: int) -> Parts:
    parts = Parts({}, {})
    embed(net, L, parts)
    for i, each in enumerate(shapes.each(net)):
        parts.add(f"layer_{i:02d}/attention", *([norm(net, L), *ops] for ops in dense(each, L)))
        parts.add(f"layer_{i:02d}/ffn", [norm(net, L), *ffn(net, L, shapes.hidden(each))])
    head(net, L, vocab, parts)
    return parts
