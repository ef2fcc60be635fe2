"""How tokens become one, and the output matrix."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.layers.dropout import Drop
from cerebra_jax.layers.feedforward import FeedForward
from cerebra_jax.layers.linear import normal
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.parameters import Module
from cerebra_jax.types import Out


def pool(kind: str, h_BxLxD, mask_BxL):
    """Returns (B, 1, D) in float32: the mean of real tokens, or each feature's largest value."""
    h = h_BxLxD.astype(jnp.float32)
    if mask_BxL is None:
        return h.max(1, keepdims=True) if kind == "max" else h.mean(1, keepdims=True)
    real_BxLx1 = mask_BxL[..., None]
    if kind == "max":
        # padding stands at the least of all values: finite, and never last
        h = jnp.where(real_BxLx1, h, h.min(1, keepdims=True))
        return h.max(1, keepdims=True)
    count_Bx1x1 = jnp.maximum(real_BxLx1.sum(1, keepdims=True), 1)
    return jnp.where(real_BxLx1, h, 0.0).sum(1, keepdims=True) / count_Bx1x1


class Head(Module):
    """Returns the `Out` of features (B, L, D).

    Per token: V logits, tied to the token table if there is one. Pooled (outputs > 0): the mean
    over the real tokens, one row, and that many outputs: classes, or 1 for a regression.
    """

    width: int
    outputs: int
    vocab: int

    @nn.compact
    def __call__(self, h_BxLxD, table_VxD, mask_BxL):
        if self.outputs:
            h_BxLxD = pool("mean", h_BxLxD, mask_BxL).astype(h_BxLxD.dtype)
        if self.outputs or table_VxD is None:
            shape = (self.outputs or self.vocab, self.width)
            table_VxD = self.param("table", normal(), shape, jnp.float32)
        return Out(h_BxLxD, table_VxD)


def finish(net: NetCfg, vocab: int, x_BxLxD, table_VxD, batch) -> Out:
    """Returns what the last norm and the head make of a model's features.

    With net.pool a pooled head's tokens are pooled before the norm: a token then counts by its
    size, which the model may choose; after it all are of one size, a name as large as an article.
    With net.pooler what is pooled passes x + FFN(LN x). To be called inside a compact method.
    """
    mask_BxL = batch["mask_BxL"] if "mask_BxL" in batch else None
    if net.outputs and net.pool:
        x_BxLxD = pool(net.pool, x_BxLxD, mask_BxL).astype(x_BxLxD.dtype)
        mask_BxL = None
        if net.pooler:
            ffn = FeedForward(
                net.width, net.ffn_width, net.ffn, True, net.init_std, net.branch, net.compat,
                name="pooler",
            )  # fmt: skip
            h_Bx1xD = ffn(Norm(name="pooler_norm")(x_BxLxD))
            x_BxLxD = x_BxLxD + Drop(net.dropout)(batch["ex_B"], h_Bx1xD)
    h_BxLxD = Norm(name="norm")(x_BxLxD)
    return Head(net.width, net.outputs, vocab, name="head")(h_BxLxD, table_VxD, mask_BxL)
