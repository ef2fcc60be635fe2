"""Multi-layer perceptron on all tokens at once, for pooled heads: laid end to end, or as a bag.

End to end, for inputs of one fixed length. With net.pool the tokens are pooled before the layers, and their places mean
nothing: a deep averaging network (Iyyer et al. 2015), for texts.
"""

from __future__ import annotations

import flax.linen as nn

from cerebra_jax.checks import need
from cerebra_jax.cost import prices
from cerebra_jax.layers import block, ends
from cerebra_jax.models.baselines import stack


class Layer(nn.Module):
    """x + FFN(LN x)."""

    net: block.NetCfg

    @nn.compact
    def __call__(self, x_Bx1xD, number, ex_B, mask_BxL):
        net = self.net
        ffn = block.FeedForward(net, True, net.branch * net.depth**-0.5, name="ffn")
        return x_Bx1xD + block.Drop(net.dropout)(ex_B, ffn(block.Norm(name="norm")(x_Bx1xD))), None


class Mlp(stack.Stack):
    """One linear map of the L · D features to D, or their pool; then net.depth residual feed-forward layers."""

    layer = Layer

    def start(self, x_BxLxD, mask_BxL):
        B, L, D = x_BxLxD.shape
        if self.net.pool:
            return ends.pool(self.net.pool, x_BxLxD, mask_BxL).astype(x_BxLxD.dtype), None
        flat_Bx1xLD = stack.silenced(x_BxLxD, mask_BxL).reshape(B, 1, L * D)
        return block._dense(D, True, flat_Bx1xLD, (L * D) ** -0.5, "flat"), None

    @staticmethod
    def entry(net, L):
        """L D · D for the first map, nothing for a pool. UserError where every token needs an answer of its own."""
        need(
            net.outputs > 0,
            "net.name is mlp, which gives one answer per example, not per token",
            "use another model",
        )
        return {} if net.pool else {"flat": prices.linear_flops(L * net.width, net.width)}

    @staticmethod
    def parts(net, L):
        """The FFN of one token."""
        flops = block.ffn_flops(net, 1)
        return {"ffn": (flops, flops)}
