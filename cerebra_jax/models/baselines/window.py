"""The Transformer with a sliding window: a token sees the nearest net.window tokens, itself among them.

Longformer's local attention (Beltagy et al. 2020, arXiv:2004.05150) without global tokens: causal, those before it; as
an encoder, half on each side. The key blocks outside the window are not computed (`attend.window_plan`).
"""

from __future__ import annotations

import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import prices
from cerebra_jax.kernels import attention as att
from cerebra_jax.layers import block
from cerebra_jax.models import transformer
from cerebra_jax.types import Cost

FAR = 1 << 30  # where padding stands: no real token reaches it


def reach(net: NetCfg) -> tuple[int, int]:
    """How many positions before and after its own a token sees."""
    return (net.window - 1, 0) if net.causal else (net.window // 2, (net.window - 1) // 2)


class Window(transformer.Transformer):
    """`transformer.Transformer` with another plan, mask and kernel of attention."""

    def share(self, L):
        return (
            cost(self.net, L, self.vocab).model_flops
            / transformer.cost(self.net, L, self.vocab).model_flops
        )

    def attention(self, L):
        span = reach(self.net)
        plan = att.window_plan(L, span)
        return {"plan": plan, "kernel": block.masked_kernel(self.net, plan), "reach": span}

    def order(self, L, mask_BxL):
        pos_1xL = jnp.arange(L)[None]
        return pos_1xL if mask_BxL is None else jnp.where(mask_BxL, pos_1xL, FAR)


def pairs(net: NetCfg, L: int) -> int:
    """(query, key) pairs that see each other."""
    back, ahead = reach(net)
    return sum(min(L, i + ahead + 1) - max(0, i - back) for i in range(L))


def cost(net: NetCfg, L: int, vocab: int) -> Cost:
    """Forward FLOPs per example, head included: the dense Transformer's, with the pairs and key blocks of a window."""
    D, dense = net.width, transformer.cost(net, L, vocab)
    projections = 4 * L * prices.linear_flops(D, D)
    attention = {
        "model": projections + prices.attention_pairs_flops(pairs(net, L), D),
        "executed": block.attention_flops(D, L, L, att.window_plan(L, reach(net))),
    }

    def windowed(of: str) -> dict[str, int]:
        return {
            k: attention[of] if k.endswith("/attention") else v
            for k, v in getattr(dense, of).items()
        }

    return Cost(windowed("model"), windowed("executed"))
