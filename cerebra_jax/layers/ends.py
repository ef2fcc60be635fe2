"""The ends of a model: what a token is to it (its row of the table, those of its character n-grams, the number that it
carries), how tokens become one, and the output matrix."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import prices
from cerebra_jax.layers import block, shapes
from cerebra_jax.types import Out

_init = nn.initializers.normal(0.02)


class Embed(nn.Module):
    """Token table, (B, L) int32 -> (B, L, D); the same table is the output matrix (tied head).

    With n-grams, (B, L, G) rows of the same table or −1 for none, a token is its row + the mean of theirs: a word that
    training never showed is known by its parts. Bojanowski et al. 2017, arXiv:1607.04606.
    """

    vocab: int
    net: NetCfg

    @nn.compact
    def __call__(self, ids_BxL, subwords_BxLxG=None):
        table_VxD = self.param(
            "table",
            nn.initializers.normal(self.net.init_std),
            (self.vocab, self.net.width),
            jnp.float32,
        )
        x_BxLxD = table_VxD[ids_BxL]
        if subwords_BxLxG is not None:
            there_BxLxG = subwords_BxLxG >= 0
            rows_BxLxGxD = jnp.where(
                there_BxLxG[..., None], table_VxD[jnp.maximum(subwords_BxLxG, 0)], 0.0
            )
            x_BxLxD += rows_BxLxGxD.sum(2) / jnp.maximum(there_BxLxG.sum(2), 1)[..., None]
        return x_BxLxD.astype(self.net.dtype), table_VxD


class Columns(nn.Module):
    """Tokens that carry numbers: value · embedding + a bias of the place (Gorishniy et al. 2021, arXiv:2106.11959)."""

    @nn.compact
    def __call__(self, x_BxLxD, values_BxL):
        bias_LxD = self.param("bias", _init, x_BxLxD.shape[1:], jnp.float32)
        return (
            values_BxL[..., None].astype(x_BxLxD.dtype) * x_BxLxD
            + bias_LxD.astype(x_BxLxD.dtype)[None]
        )


def pool(kind: str, h_BxLxD, mask_BxL):
    """(B, 1, D) in float32: the mean over the real tokens, or (max) each feature's largest value among them."""
    h = h_BxLxD.astype(jnp.float32)
    real_BxLx1 = None if mask_BxL is None else mask_BxL[..., None]
    if (
        kind == "max"
    ):  # padding stands at the least of all values: finite, where nothing else is there
        return (h if mask_BxL is None else jnp.where(real_BxLx1, h, h.min(1, keepdims=True))).max(
            1, keepdims=True
        )
    if mask_BxL is None:
        return h.mean(1, keepdims=True)
    return jnp.where(real_BxLx1, h, 0.0).sum(1, keepdims=True) / jnp.maximum(
        real_BxLx1.sum(1, keepdims=True), 1
    )


def embed(net: NetCfg, vocab: int, batch):
    """Tokens or features of a batch -> ((B, L, D), the token table or None), dropout applied."""
    if net.features:
        init = nn.initializers.normal(net.features**-0.5)
        dense = nn.Dense(net.width, True, net.dtype, kernel_init=init, name="features")
        x_BxLxD, table_VxD = dense(batch["features_BxLxN"].astype(net.dtype)), None
    else:
        subwords_BxLxG = batch["subwords_BxLxG"] if net.subwords else None
        x_BxLxD, table_VxD = Embed(vocab, net, name="embed")(batch["inputs_BxL"], subwords_BxLxG)
        if "values_BxL" in batch:
            x_BxLxD = Columns(name="columns")(x_BxLxD, batch["values_BxL"])
    return block.Drop(net.dropout)(batch["ex_B"], x_BxLxD), table_VxD


class Head(nn.Module):
    """(B, L, D) -> `Out`. Per token: V logits, tied to the token table if there is one. Pooled (net.outputs > 0): the
    mean over the real tokens, one row, and that many outputs: classes, or 1 for a regression."""

    net: NetCfg
    vocab: int

    @nn.compact
    def __call__(self, h_BxLxD, table_VxD, mask_BxL):
        net = self.net
        if net.outputs:
            h_BxLxD = pool("mean", h_BxLxD, mask_BxL).astype(h_BxLxD.dtype)
        if net.outputs or table_VxD is None:
            table_VxD = self.param(
                "table", _init, (net.outputs or self.vocab, net.width), jnp.float32
            )
        return Out(h_BxLxD, table_VxD)


def finish(net: NetCfg, vocab: int, x_BxLxD, table_VxD, mask_BxL, ex_B) -> Out:
    """Last norm and head. With net.pool a pooled head's tokens are pooled before the norm: a token then counts by its
    size, which the model may choose; after it all are of one size, a name as large as an article. With net.pooler
    what is pooled passes x + FFN(LN x)."""
    if net.outputs and net.pool:
        x_BxLxD, mask_BxL = pool(net.pool, x_BxLxD, mask_BxL).astype(x_BxLxD.dtype), None
        if net.pooler:
            h_Bx1xD = block.FeedForward(shapes.whole(net), True, net.branch, name="pooler")(
                block.Norm(name="pooler_norm")(x_BxLxD)
            )
            x_BxLxD = x_BxLxD + block.Drop(net.dropout)(ex_B, h_Bx1xD)
    return Head(net, vocab, name="head")(block.Norm(name="norm")(x_BxLxD), table_VxD, mask_BxL)


def head_flops(net: NetCfg, L: int, vocab: int) -> int:
    """Forward FLOPs per example of the logits or pooled outputs; pooling itself is elementwise work."""
    if net.outputs:
        return prices.linear_flops(net.width, net.outputs) + (
            block.ffn_flops(shapes.whole(net), 1) if net.pooler else 0
        )
    return (net.answers or L) * prices.linear_flops(net.width, vocab)


def embed_flops(net: NetCfg, L: int) -> dict[str, int]:
    """Forward FLOPs per example of the embedding, as a part: of features; the gather of token rows costs 0."""
    return {"embed": L * prices.linear_flops(net.features, net.width)} if net.features else {}
