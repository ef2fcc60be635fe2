"""Computes cross-entropy in chunks of tokens: the B x L x V logits never exist at once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def chunks_of(tokens: int, chunk: int) -> int:
    """Returns the least number of equal chunks of at most `chunk` tokens that tile `tokens`."""
    n = -(-tokens // chunk)
    while tokens % n:
        n += 1
    return n


# Columns of a matrix unit. A head whose last tile would be ragged is padded, where that adds less
# than 1 % to it; a GPU pads it otherwise for each product, and slices what comes of it.
_TILE = 128
_LEAST = 100 * _TILE


def _on_tiles(f: Callable, h_TxD, head_VxD, y_T, w_T):
    """Returns f(h, head in the dtype of the products, y, w), with a large head in whole tiles.

    On a GPU alone: on a CPU the copies take longer than they save, and a TPU's compiler pads by
    itself, in less memory.
    """
    V = head_VxD.shape[0]

    def as_it_is(h_TxD, head_VxD, y_T, w_T):
        return f(h_TxD, head_VxD.astype(h_TxD.dtype), y_T, w_T)

    def padded(h_TxD, head_VxD, y_T, w_T):
        head_PxD = jnp.pad(head_VxD.astype(h_TxD.dtype), ((0, -V % _TILE), (0, 0)))
        return f(h_TxD, head_PxD, y_T, w_T)

    if V < _LEAST or V % _TILE == 0:
        return as_it_is(h_TxD, head_VxD, y_T, w_T)
    arrays = (h_TxD, head_VxD, y_T, w_T)
    return jax.lax.platform_dependent(*arrays, default=as_it_is, cuda=padded, rocm=padded)


def _max_and_sum(logits_TxP):
    """Returns the largest logit of each token, and Σ exp(logit − largest)."""
    max_Tx1 = logits_TxP.max(-1, keepdims=True)
    return max_Tx1, jnp.exp(logits_TxP - max_Tx1).sum(-1, keepdims=True)


def _both_at_once(logits_TxP):
    """Returns the same in one pass: a sum is rescaled where a larger logit turns up.

    Milakov and Gimelshein 2018, arXiv:1805.02867. A GPU reads the logits once less; on a CPU the
    exponentials take longer than the reading.
    """

    def joined(a, b):
        (max_a, sum_a), (max_b, sum_b) = a, b
        most = jnp.maximum(max_a, max_b)
        return most, sum_a * jnp.exp(max_a - most) + sum_b * jnp.exp(max_b - most)

    least = jnp.finfo(logits_TxP.dtype).min  # not −inf, whose difference to itself is not a number
    start = (jnp.float32(least), jnp.float32(0))
    ones_TxP = jnp.ones_like(logits_TxP)
    max_T, sum_T = jax.lax.reduce((logits_TxP, ones_TxP), start, joined, (1,))
    return max_T[:, None], sum_T[:, None]


def _nll(h_TxD, head_PxD, y_T, V):
    """Returns nll_T, and exp(logits - max) with its sum, whose quotient is the softmax.

    P >= V: what is padding has no weight.
    """
    logits_TxP = jnp.einsum("td,pd->tp", h_TxD, head_PxD, preferred_element_type=jnp.float32)
    if head_PxD.shape[0] > V:
        logits_TxP = jnp.where(jnp.arange(head_PxD.shape[0])[None] < V, logits_TxP, -jnp.inf)
    max_Tx1, sum_Tx1 = jax.lax.platform_dependent(
        logits_TxP, default=_max_and_sum, cuda=_both_at_once, rocm=_both_at_once
    )
    exp_TxP = jnp.exp(logits_TxP - max_Tx1)
    hit_Tx1 = jnp.take_along_axis(logits_TxP, y_T[:, None], axis=1)
    return (jnp.log(sum_Tx1) + max_Tx1 - hit_Tx1)[:, 0], exp_TxP, sum_Tx1


def _split(n, *arrays):
    return tuple(a.reshape(n, a.shape[0] // n, *a.shape[1:]) for a in arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _xent(h_TxD, head_VxD, y_T, w_T, n, each):
    """Returns the weighted sum of n chunks, and with `each` its terms, (n, T); else None."""

    V = head_VxD.shape[0]

    def summed(h_TxD, head_PxD, y_T, w_T):
        def body(total, x):
            h, y, w = x
            nats_T = w * _nll(h, head_PxD, y, V)[0]
            return total + nats_T.sum(), nats_T if each else None

        return jax.lax.scan(body, jnp.float32(0), _split(n, h_TxD, y_T, w_T))

    return _on_tiles(summed, h_TxD, head_VxD, y_T, w_T)


def _xent_fwd(h_TxD, head_VxD, y_T, w_T, n, each):
    """Returns the loss, and its gradient, which is linear in that of the sum.

    It is computed here, with the logits at hand, so that nothing is computed again.
    """
    slopes = functools.partial(_slopes, (head_VxD.shape[0], n, each))
    sums, dh_TxD, dhead_DxV = _on_tiles(slopes, h_TxD, head_VxD, y_T, w_T)
    return sums, (dh_TxD, dhead_DxV.T.astype(head_VxD.dtype))


def _slopes(form, h_TxD, head_PxD, y_T, w_T):
    """Returns what `_xent` returns, and its gradients of h and of the head, transposed.

    `form` is V, and the n and each of `_xent`.
    """
    V, n, each = form
    ids_1xP = jnp.arange(head_PxD.shape[0])[None]

    def body(carry, x):
        total, dhead_DxP = carry
        h, y, w = x
        nll_T, exp_TxP, sum_Tx1 = _nll(h, head_PxD, y, V)
        w_Tx1 = w[:, None]
        d_TxP = exp_TxP * (w_Tx1 / sum_Tx1) - jnp.where(y[:, None] == ids_1xP, w_Tx1, 0.0)
        d_TxP = d_TxP.astype(h.dtype)
        dh = jnp.einsum("tp,pd->td", d_TxP, head_PxD)
        # as (D, P): XLA's CPU matmul is twice as fast with the wide matrix on the right, and one
        # transpose is cheap
        dhead_DxP += jnp.einsum("tp,td->dp", d_TxP, h, preferred_element_type=jnp.float32)
        nats_T = w * nll_T
        return (total + nats_T.sum(), dhead_DxP), (dh, nats_T if each else None)

    start = (jnp.float32(0), jnp.zeros(head_PxD.shape[::-1], jnp.float32))
    (total, dhead_DxP), (dh_nxTxD, nats_nxT) = jax.lax.scan(body, start, _split(n, h_TxD, y_T, w_T))
    return (total, nats_nxT), dh_nxTxD.reshape(h_TxD.shape), dhead_DxP[:, :V]


def _xent_bwd(n, each, res, ct):
    g, _ = ct  # the nats of single tokens are for looking at
    dh_TxD, dhead_VxD = res
    return (g * dh_TxD).astype(dh_TxD.dtype), (g * dhead_VxD).astype(dhead_VxD.dtype), None, None


_xent.defvjp(_xent_fwd, _xent_bwd)


def chunked_xent(h_BxLxD, head_VxD, labels_BxL, w_BxL, chunk: int, each: bool = False):
    """Returns Σ w · (logsumexp(h·headᵀ) − (h·headᵀ)[label]) in nats, a float32 scalar.

    Logits of at most `chunk` tokens exist at once; they and their softmax are float32. It is
    differentiable in h and head_VxD; no gradient reaches the weights. With `each` it returns (that
    sum, its terms (B, L)); no gradient passes through the terms.
    """
    n = chunks_of(labels_BxL.size, chunk)
    D = h_BxLxD.shape[-1]
    flat = (h_BxLxD.reshape(-1, D), head_VxD, labels_BxL.reshape(-1), w_BxL.reshape(-1))
    total, nats_nxT = _xent(*flat, n, each)
    return (total, nats_nxT.reshape(labels_BxL.shape)) if each else total
