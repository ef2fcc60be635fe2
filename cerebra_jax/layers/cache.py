"""Decoding with a cache: the same modules and parameters, a few tokens at a time, the decisions of the full pass.

A chunk of n tokens per row is read at the row's own positions. A token that is not real (what fills up a ragged chunk,
or lies beyond the context length L) stands at position L: what it would write is dropped, and no real query sees it.
All shapes are static. Work that only some tokens need is a branch of the program, skipped when no row needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.kernels.attention import Plan
from cerebra_jax.routing import dispatch


class KV(NamedTuple):
    """Keys, after RoPE, and values of N slots; order_BxN is what masks compare, L where a slot is empty."""

    k_BxHxNxC: jax.Array
    v_BxHxNxC: jax.Array
    order_BxN: jax.Array


class Cache(NamedTuple):
    """What a model remembers of a batch, a pytree of arrays; made by `Model.init_cache`, moved on by `Model.decode`."""

    pos_B: jax.Array  # tokens that each row has read
    ex_B: jax.Array  # index of each example: a random router is keyed by it
    kept_RxBxL: (
        jax.Array
    )  # bool, the decisions taken so far; R routed layers, none in a dense model
    layers: Any  # of each of the repeated layers: a tuple, or with net.scan stacked
    rest: dict[str, Any]  # of what stands outside of them


class Step(NamedTuple):
    """What attention needs to read a chunk: its cache, the slot of each new key (N or more: none), and whether any
    query wants the result (None: all do). The keys of a lazy step are made only then."""

    kv: KV
    at_Bxn: jax.Array
    run: jax.Array | None = None
    lazy: bool = False


def empty_kv(B: int, heads: int, N: int, C: int, dtype: str, L: int) -> KV:
    """N empty slots for each of B rows; L, the context length, is later than every query."""
    k, v = (jnp.zeros((B, heads, N, C), dtype) for _ in range(2))
    return KV(k, v, jnp.full((B, N), L, jnp.int32))


def empty(
    net: NetCfg,
    L: int,
    ex_B,
    routed: int,
    nets: list[NetCfg],
    layer: Callable[[NetCfg], Any],
    **rest: Any,
):
    """The `Cache` of rows that have read nothing: `layer(net)` for each of the repeated layers."""
    layers = tuple(layer(each) for each in nets)
    if net.scan and nets:
        layers = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    B = len(ex_B)
    return Cache(
        jnp.zeros(B, jnp.int32), jnp.asarray(ex_B), jnp.zeros((routed, B, L), bool), layers, rest
    )


def places(batch, n: int, cache: Cache | None):
    """-> (context length L, positions, mask of the real tokens or None), of a whole batch or of a chunk of n tokens, of
    which those that are not real stand at L."""
    mask = batch["mask_BxL"] if "mask_BxL" in batch else None
    if cache is None:
        return n, jnp.arange(n)[None], mask
    L = cache.kept_RxBxL.shape[2]
    pos_Bxn = cache.pos_B[:, None] + jnp.arange(n)[None]
    real_Bxn = mask & (pos_Bxn < L)
    return L, jnp.where(real_Bxn, pos_Bxn, L), real_Bxn


def advance(cache: Cache, pos_Bxn, layers: Any, kept_RxBxn=None, **rest: Any) -> Cache:
    """The cache after a chunk that stood at `pos_Bxn`."""
    kept_RxBxL, B = cache.kept_RxBxL, pos_Bxn.shape[0]
    if kept_RxBxn is not None:
        kept_RxBxL = kept_RxBxL.at[:, jnp.arange(B)[:, None], pos_Bxn].set(kept_RxBxn, mode="drop")
    new_B = (pos_Bxn < kept_RxBxL.shape[2]).sum(1, dtype=jnp.int32)
    return Cache(cache.pos_B + new_B, cache.ex_B, kept_RxBxL, layers, rest)


def write(kv: KV, at_Bxn, k_BxHxnxC, v_BxHxnxC, order_Bxn) -> KV:
    """New keys and values in their slots; a slot outside the cache drops them."""
    rows_Bx1 = jnp.arange(at_Bxn.shape[0])[:, None]
    put = lambda old, new: old.at[rows_Bx1, :, at_Bxn].set(new.swapaxes(1, 2), mode="drop")  # noqa: E731
    order_BxN = kv.order_BxN.at[rows_Bx1, at_Bxn].set(order_Bxn, mode="drop")
    return KV(put(kv.k_BxHxNxC, k_BxHxnxC), put(kv.v_BxHxNxC, v_BxHxnxC), order_BxN)


def slide(recent_BxWxD, x_BxnxD, real_Bxn) -> tuple[jax.Array, jax.Array]:
    """The last W tokens before a chunk -> (those and the chunk, (B, W + n, D); the last W real ones after it)."""
    x = jnp.concatenate([recent_BxWxD, x_BxnxD], axis=1)
    last_BxW = real_Bxn.sum(1, keepdims=True) + jnp.arange(recent_BxWxD.shape[1])[None]
    return x, jnp.take_along_axis(x, last_BxW[..., None], axis=1)


def routed(net: NetCfg, layer: dict, wanted_Bxn, pos_Bxn, lay: dispatch.Layout):
    """Decisions of a chunk -> (kept (B, n) bool, order of the queries, slots used by segment, attention's `Step`).

    With kv=routed, the slots of the dispatch are the slots of the cache. Soft: both paths run for every token.
    """
    slot_Bxn, used_BxS = dispatch.place(wanted_Bxn, pos_Bxn, layer["used_BxS"], lay)
    kept_Bxn, soft, every = slot_Bxn < lay.K, net.route.mode == "soft", net.route.kv == "all"
    step = Step(
        layer["heavy"], pos_Bxn if every else slot_Bxn, None if soft else kept_Bxn.any(), not every
    )
    # a query that is not kept is thrown away; it sees empty slots too, because without any key it would be NaN
    return kept_Bxn, jnp.where(kept_Bxn, pos_Bxn, lay.tokens[-1][1]), used_BxS, step


def when(run, part: Callable, module: nn.Module, x_Bxnx, width: int):
    """part(module, x), (B, n, width); with a scalar `run`, zeros and no work done where it is false."""
    if run is None:
        return part(module, x_Bxnx)
    none = lambda module, x: jnp.zeros((*x.shape[:2], width), x.dtype)  # noqa: E731
    return nn.cond(run, part, none, module, x_Bxnx)


def plan(queries: int, slots: int) -> Plan:
    """Attention plan of a chunk: every slot of the cache is visited, whatever the position."""
    return ((0, queries, 0, slots),)
