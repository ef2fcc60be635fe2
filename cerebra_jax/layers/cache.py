"""What a model remembers while it decodes: keys and values, windows, sums; pytrees of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.kernels.attention import Layout, Segment


class KV(NamedTuple):
    """Keys and values of N slots; order_BxN is what masks compare, L where a slot is empty."""

    k_BxHxNxC: jax.Array
    v_BxHxNxC: jax.Array
    order_BxN: jax.Array


class Place(NamedTuple):
    """Where a chunk of n tokens joins a memory, and who looks at it."""

    slot_Bxn: jax.Array  # the slot of each token; `slots` or more: none
    slots: int
    run: jax.Array | None = None  # whether any token wants the result; None: all do
    lazy: bool = False  # keys and values are made only where `run` is true

    @property
    def keep(self) -> jax.Array:
        """Returns which tokens join the memory, (B, n) bool."""
        return self.slot_Bxn < self.slots


class Cache(NamedTuple):
    """What a model remembers of a batch; made by `Model.init_cache`, moved on by `Model.decode`."""

    pos_B: jax.Array  # tokens that each row has read
    ex_B: jax.Array  # index of each example: a random router is keyed by it
    kept_RxBxL: jax.Array  # bool, the decisions so far; R routed layers, none in a dense model
    layers: Any  # of each of the repeated layers: a tuple, or with net.scan stacked
    rest: dict[str, Any]  # of what stands outside of them


def empty_kv(batch: int, heads: int, slots: int, head_width: int, dtype: str, length: int) -> KV:
    """Returns empty slots for each row; `length`, the context's, is later than every query."""
    shape = (batch, heads, slots, head_width)
    order_BxN = jnp.full((batch, slots), length, jnp.int32)
    return KV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), order_BxN)


def empty(length: int, ex_B, routed: int, layers: tuple, scan: bool, rest: dict) -> Cache:
    """Returns the cache of rows that have read nothing; `routed` layers take decisions."""
    if scan and layers:
        layers = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    B = len(ex_B)
    kept_RxBxL = jnp.zeros((routed, B, length), bool)
    return Cache(jnp.zeros(B, jnp.int32), jnp.asarray(ex_B), kept_RxBxL, layers, rest)


def places(batch, n: int, cache: Cache | None):
    """Returns (context length L, positions, mask of the real tokens or None).

    Of a whole batch, or of a chunk of n tokens, of which those that are not real stand at L.
    """
    if cache is None:
        mask = batch["mask_BxL"] if "mask_BxL" in batch else None
        return n, jnp.arange(n)[None], mask
    L = cache.kept_RxBxL.shape[2]
    pos_Bxn = cache.pos_B[:, None] + jnp.arange(n)[None]
    real_Bxn = batch["mask_BxL"] & (pos_Bxn < L)  # a chunk always has a mask
    return L, jnp.where(real_Bxn, pos_Bxn, L), real_Bxn


def advance(cache: Cache, pos_Bxn, layers: Any, kept_RxBxn, rest: dict[str, Any]) -> Cache:
    """Returns the cache after a chunk that stood at `pos_Bxn`."""
    kept_RxBxL = cache.kept_RxBxL
    if kept_RxBxn is not None:
        rows_Bx1 = jnp.arange(pos_Bxn.shape[0])[:, None]
        kept_RxBxL = kept_RxBxL.at[:, rows_Bx1, pos_Bxn].set(kept_RxBxn, mode="drop")
    new_B = (pos_Bxn < kept_RxBxL.shape[2]).sum(1, dtype=jnp.int32)
    return Cache(cache.pos_B + new_B, cache.ex_B, kept_RxBxL, layers, rest)


def write(kv: KV, at_Bxn, k_BxHxnxC, v_BxHxnxC, order_Bxn) -> KV:
    """Returns the cache with new keys and values; a slot outside of it drops them."""
    rows_Bx1 = jnp.arange(at_Bxn.shape[0])[:, None]

    def put(old, new):
        return old.at[rows_Bx1, :, at_Bxn].set(new.swapaxes(1, 2), mode="drop")

    order_BxN = kv.order_BxN.at[rows_Bx1, at_Bxn].set(order_Bxn, mode="drop")
    return KV(put(kv.k_BxHxNxC, k_BxHxnxC), put(kv.v_BxHxNxC, v_BxHxnxC), order_BxN)


def slide(recent_BxWxD, x_BxnxD, real_Bxn) -> tuple[jax.Array, jax.Array]:
    """Joins the last W tokens and a chunk; returns both (B, W + n, D), and the last W real ones."""
    x = jnp.concatenate([recent_BxWxD, x_BxnxD], axis=1)
    last_BxW = real_Bxn.sum(1, keepdims=True) + jnp.arange(recent_BxWxD.shape[1])[None]
    return x, jnp.take_along_axis(x, last_BxW[..., None], axis=1)


def when(run, compute: Callable, module: nn.Module, x_Bxnx, width: int):
    """Returns compute(module, x), (B, n, width); where a scalar `run` is false, free zeros.

    On a GPU and a TPU it is always computed: a branch would make the device ask the host, which
    takes longer than the layer. Nobody reads what nobody wanted.
    """
    if run is None:
        return compute(module, x_Bxnx)

    def zeros(module, x):
        return jnp.zeros((*x.shape[:2], width), x.dtype)

    return nn.cond(run | _accelerated(), compute, zeros, module, x_Bxnx)


def _accelerated() -> jax.Array:
    """Returns whether the program is compiled for a GPU or a TPU.

    It is a constant there, so that the compiler takes the one branch and drops the other.
    """
    return jax.lax.platform_dependent(cpu=lambda: jnp.bool(False), default=lambda: jnp.bool(True))


def layout(queries: int, slots: int) -> Layout:
    """Returns the block layout of a chunk: it looks at every slot, whatever the position."""
    return (Segment(0, queries, 0, slots),)
