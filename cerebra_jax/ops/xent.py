"""Cross-entropy in chunks of tokens: the B x L x V logits never exist at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


def chunks_of(tokens: int, chunk: int) -> int:
    """The least number of equal chunks, each of at most `chunk` tokens, that tile `tokens`."""
    n = -(-tokens // chunk)
    while tokens % n:
        n += 1
    return n


def _nll(h_TxD, head_VxD, y_T):
    logits_TxV = jnp.einsum("td,vd->tv", h_TxD, head_VxD.astype(h_TxD.dtype), preferred_element_type=jnp.float32)
    lse_T = jax.nn.logsumexp(logits_TxV, axis=-1)
    hit_TxV = y_T[:, None] == jnp.arange(head_VxD.shape[0])[None]
    return lse_T - jnp.where(hit_TxV, logits_TxV, 0.0).sum(-1), (logits_TxV, lse_T, hit_TxV)


def _split(n, *arrays):
    return tuple(a.reshape(n, a.shape[0] // n, *a.shape[1:]) for a in arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _xent(h_TxD, head_VxD, y_T, w_T, n):
    def body(total, x):
        h, y, w = x
        return total + (w * _nll(h, head_VxD, y)[0]).sum(), None

    return jax.lax.scan(body, jnp.float32(0), _split(n, h_TxD, y_T, w_T))[0]


def _xent_fwd(h_TxD, head_VxD, y_T, w_T, n):
    """The loss is linear in its weights, so its gradient is computed here, with the logits at hand (no recompute)."""

    def body(carry, x):
        total, dhead_VxD = carry
        h, y, w = x
        nll_T, (logits_TxV, lse_T, hit_TxV) = _nll(h, head_VxD, y)
        d_TxV = w[:, None] * (jnp.exp(logits_TxV - lse_T[:, None]) - hit_TxV)
        d_TxV = d_TxV.astype(h.dtype)
        dh = jnp.einsum("tv,vd->td", d_TxV, head_VxD.astype(h.dtype))
        dhead_VxD += jnp.einsum("tv,td->vd", d_TxV, h, preferred_element_type=jnp.float32)
        return (total + (w * nll_T).sum(), dhead_VxD), dh

    start = (jnp.float32(0), jnp.zeros(head_VxD.shape, jnp.float32))
    (total, dhead_VxD), dh_nxTxD = jax.lax.scan(body, start, _split(n, h_TxD, y_T, w_T))
    return total, (dh_nxTxD.reshape(h_TxD.shape), dhead_VxD.astype(head_VxD.dtype))


def _xent_bwd(n, res, g):
    dh_TxD, dhead_VxD = res
    return (g * dh_TxD).astype(dh_TxD.dtype), (g * dhead_VxD).astype(dhead_VxD.dtype), None, None


_xent.defvjp(_xent_fwd, _xent_bwd)


def chunked_xent(h_BxLxD, head_VxD, labels_BxL, w_BxL, chunk: int) -> jax.Array:
    """Σ w · (logsumexp(h·headᵀ) − (h·headᵀ)[label]) in nats, float32 scalar; at most `chunk` tokens' logits live.

    Differentiable in h and head_VxD; no gradient reaches the weights. Logits and their softmax are float32.
    """
    n = chunks_of(labels_BxL.size, chunk)
    D = h_BxLxD.shape[-1]
    return _xent(h_BxLxD.reshape(-1, D), head_VxD, labels_BxL.reshape(-1), w_BxL.reshape(-1), n)
