"""What CHIAR's layers do with a token: the filter over its features, attention, and the FFN after either of them.

x = LN(x + op(x)), then x = LN(x + FFN(x)).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import device, prices
from cerebra_jax.kernels import attention as att
from cerebra_jax.kernels import dct as spectral
from cerebra_jax.layers import block
from cerebra_jax.layers import cache as cached
from cerebra_jax.routing import dispatch
from cerebra_jax.routing.routers import routed


def methods(net: NetCfg) -> spectral.Methods:
    """How this model computes its DCTs, and filters that are not `seen`, on the present device."""
    return spectral.methods(net.route.dct, net.width, device.present_platform())


def how(net: NetCfg) -> str:
    """`methods` for a person."""
    transform, whole = methods(net)
    return f"DCT by {transform}" + (
        "" if whole == transform else f", {whole} where no router looks at it"
    )


def seen(net: NetCfg) -> bool:
    """Whether the routers look at what the filters of their layers compute."""
    return net.route.mode == "threshold" and net.route.score == "spectral"


def filter_flops(net: NetCfg, seen: bool) -> int:
    """Forward FLOPs per token of a filter."""
    return prices.filter_flops(net.width, methods(net).transform if seen else methods(net).filter)


class Filter(nn.Module):
    """(LN(x + iDCT(w ⊙ DCT(x))) over the features of each token, w = 1 at the start; DCT(x) in float32 where a router
    looks at it, `seen`, else None). The matrix of a folded filter may be there as `folded/matrix`, from `fold`."""

    net: NetCfg
    seen: bool = False

    @nn.compact
    def __call__(self, x_BxLxD):
        net, how = self.net, methods(self.net)
        w_D, X_BxLxD = self.param("w", nn.initializers.ones, (net.width,), jnp.float32), None
        if self.seen:
            X_BxLxD = spectral.dct(x_BxLxD.astype(jnp.float32), how.transform)
            y_BxLxD = spectral.idct(w_D[None, None] * X_BxLxD, how.transform).astype(x_BxLxD.dtype)
        else:
            made = self.has_variable("folded", "matrix")
            matrix_DxD = self.get_variable("folded", "matrix") if made else None
            y_BxLxD = spectral.filtered(x_BxLxD, w_D, how.filter, matrix_DxD)
        if net.compat:
            y_BxLxD = 2 * y_BxLxD
            X_BxLxD = (
                spectral.published_scale(net.width)[None, None] * X_BxLxD if self.seen else None
            )
        return block.Norm(name="norm")(x_BxLxD + y_BxLxD), X_BxLxD


def fold(net: NetCfg, params: Any) -> dict[str, Any]:
    """The collection `folded`: of fixed weights, the matrix of each filter that is computed as one, if any is."""
    if methods(net).filter != "folded":
        return {}
    found = {}
    for name, layer in params.items():
        if name == "first_filter":
            found[name] = {"matrix": spectral.folded(layer["w"])}
        elif isinstance(layer, Mapping) and "filter" in layer and not seen(net):
            make = jax.vmap(spectral.folded) if net.scan else spectral.folded
            found[name] = {"filter": {"matrix": make(layer["filter"]["w"])}}
    return found


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
    def __call__(
        self, q_BxQxD, m_BxKxD, qpos, kpos, ex_B, qorder=None, step: cached.Step | None = None
    ):
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
