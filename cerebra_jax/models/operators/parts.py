"""What CHIAR's layers do with a token: the filter over its features, attention, and the FFN after either of them.

x = LN(x + op(x)), then x = LN(x + FFN(x)).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.models import block
from cerebra_jax.models.decoding import cache as cached
from cerebra_jax.models.router import routed
from cerebra_jax.ops import attend as att
from cerebra_jax.ops import dispatch, spectral


class Filter(nn.Module):
    """LN(x + iDCT(w ⊙ DCT(x))) over the features of each token, w = 1 at the start; also returns DCT(x), float32."""

    net: NetCfg

    @nn.compact
    def __call__(self, x_BxLxD):
        method = self.net.route.dct
        w_D = self.param("w", nn.initializers.ones, (self.net.width,), jnp.float32)
        X_BxLxD = spectral.dct(x_BxLxD.astype(jnp.float32), method)
        y_BxLxD = spectral.idct(w_D[None, None] * X_BxLxD, method).astype(x_BxLxD.dtype)
        if self.net.compat:
            y_BxLxD, X_BxLxD = 2 * y_BxLxD, spectral.published_scale(self.net.width)[None, None] * X_BxLxD
        return block.Norm(name="norm")(x_BxLxD + y_BxLxD), X_BxLxD


class FeedForwardLN(nn.Module):
    """x = LN(x + FFN(x))."""

    net: NetCfg

    @nn.compact
    def __call__(self, x_BxLxD, ex_B):
        y = block.FeedForward(self.net, bias=True, name="ffn")(x_BxLxD)
        return block.Norm(name="norm")(x_BxLxD + block.Drop(self.net.dropout)(ex_B, y))


class AttentionLN(nn.Module):
    """x = LN(x + Attention(x)) for gathered or all tokens: queries (B, Q, D) over memory (B, K, D), or over a cache."""

    net: NetCfg
    plan: att.Plan
    kernel: str

    @nn.compact
    def __call__(self, q_BxQxD, m_BxKxD, qpos, kpos, ex_B, qorder=None, step: cached.Step | None = None):
        attention = block.Attention(self.net, self.plan, self.kernel, bias=True, name="attention")
        korder = None if qorder is None else kpos
        y, kv = attention(q_BxQxD, m_BxKxD, qpos, kpos, qorder, korder, step), None
        if step is not None:
            y, kv = y
        x_BxQxD = block.Norm(name="norm")(q_BxQxD + block.Drop(self.net.dropout)(ex_B, y))
        return x_BxQxD if step is None else (x_BxQxD, kv)


def dispatched(net: NetCfg) -> bool:
    return net.route.dispatch and net.route.mode != "soft" and routed(net)


def layout(net: NetCfg, L: int, share: float | None = None) -> dispatch.Layout:
    """Slots of the dispatch to attention, or to what takes another share of the tokens; as many as tokens where there
    is none."""
    share = net.route.rate if share is None else share
    return dispatch.layout(L, min(1.0, share * net.route.capacity) if dispatched(net) else 1.0)
