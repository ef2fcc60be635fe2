"""Models without routing to compare with: embedding, layers of one kind, LayerNorm, head.

ssm (Mamba, Gu & Dao 2023), lstm (Hochreiter & Schmidhuber 1997), cnn (gated, dilated convolutions),
fnet (Fourier mixing, Lee-Thorp et al. 2021; an encoder) and mlp (all tokens at once, for pooled
heads: laid end to end, or as a bag, a deep averaging network, Iyyer et al. 2015).
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.checks import require
from cerebra_jax.config import NetCfg
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.dropout import Drop
from cerebra_jax.layers.feedforward import FeedForward
from cerebra_jax.layers.fnet import FourierMixing
from cerebra_jax.layers.gated_conv import GatedConv
from cerebra_jax.layers.head import pool
from cerebra_jax.layers.linear import linear
from cerebra_jax.layers.lstm import Lstm
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.parameters import Dense
from cerebra_jax.layers.rows import Rows, mask_out
from cerebra_jax.layers.ssm import EXPAND, SelectiveStateSpace
from cerebra_jax.models import pricing, stack
from cerebra_jax.models.dense_block import reading
from cerebra_jax.models.pricing import Block, Part, PriceList
from cerebra_jax.models.registry import register
from cerebra_jax.models.stack import Decisions, Own, Shared
from cerebra_jax.models.stack_model import Pass, StackModel
from cerebra_jax.routing.report import NOTHING


class ResidualBlock(nn.Module):
    """Computes x + layer(LN x); the layer's parameters stand beside those of the norm."""

    layer: nn.Module
    norm: Norm
    length: int
    causal: bool
    dropout: float = 0.0

    def setup(self):
        nn.share_scope(self, self.layer)
        self.drop = Drop(self.dropout)

    def __call__(self, x_BxLxD, own: Own, shared: Shared, cache=None):
        decoding = cache is not None
        rows = shared.rows(self.norm(x_BxLxD), self.length, self.causal, decoding)
        if decoding:
            place = cached.Place(shared.pos, self.length)
            y_BxnxD, after = self.layer.decode(rows, cache, place)
            return x_BxLxD + y_BxnxD, (None, after)
        more = {"number": own.number} if isinstance(self.layer, GatedConv) else {}
        y_BxLxD = self.layer(rows, rows, **more, **reading(self.layer, self.causal, own))
        return x_BxLxD + self.drop(shared.ex_B, y_BxLxD), NOTHING

    def init_cache(self, batch: int):
        """Returns the state of rows that have read nothing."""
        return self.layer.init_cache(batch, 0, self.length)

    def parts(self, net: NetCfg) -> tuple[Part, ...]:
        """Returns what it is made of, with prices."""
        L, name = self.length, PARTS[net.name]
        if isinstance(self.layer, GatedConv):
            price = _convolving(self.layer, net.width, net.dtype, L)
            return stack.norm_part(net, L), Part(name, price)
        return stack.norm_part(net, L), stack.mixing_part(net, name, self.layer, L, None)


@functools.cache
def _convolving(layer: GatedConv, width: int, dtype: str, L: int) -> pricing.Price:
    def rows(x, index):
        return Rows(x, index, index, L, ((0, L),))

    def make(x, index):
        return layer.init(jax.random.key(0), rows(x, index), rows(x, index), index[0, 0])

    def run(params, x, index):
        both = (rows(x, index), rows(x, index))
        return layer.apply({"params": params}, *both, index[0, 0])

    x = jax.ShapeDtypeStruct((1, L, width), jnp.dtype(dtype))
    return pricing.whole(make, run, (x, jax.ShapeDtypeStruct((1, L), jnp.dtype("int32"))))


class FnetBlock(nn.Module):
    """Computes x + Re F(LN x), then x + FFN(LN x).

    The paper's LayerNorms stand after the sums and its transform is not scaled; before them and
    orthonormal, as here, it trains like the other models of the table.
    """

    mixing: FourierMixing
    ffn: FeedForward
    mix_norm: Norm
    ffn_norm: Norm
    length: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BxLxD, own: Own, shared: Shared):
        drop = Drop(self.dropout)
        rows = shared.rows(self.mix_norm(x_BxLxD), self.length, False, decoding=False)
        x_BxLxD += drop(shared.ex_B, self.mixing(rows, rows))
        return x_BxLxD + drop(shared.ex_B, self.ffn(self.ffn_norm(x_BxLxD))), NOTHING

    def parts(self, net: NetCfg) -> tuple[Part, ...]:
        """Returns what it is made of, with prices; a transform over tokens is counted whole."""
        L = self.length
        mixing = Part("mix", _transforming(self.mixing, net.width, net.dtype, L))
        return stack.norm_part(net, 2 * L), mixing, stack.rows_part(net, "ffn", self.ffn, L, None)


@functools.cache
def _transforming(layer: FourierMixing, width: int, dtype: str, L: int) -> pricing.Price:
    def run(params, x):
        rows = Rows(x, None, None, L, ((0, L),))
        return layer.apply({}, rows, rows)

    x = jax.ShapeDtypeStruct((1, L, width), jnp.dtype(dtype))
    return pricing.whole(lambda x: {}, run, (x,))


class MlpBlock(nn.Module):
    """Computes x + FFN(LN x) of one row."""

    ffn: FeedForward
    norm: Norm
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_Bx1xD, own: Own, shared: Shared):
        return x_Bx1xD + Drop(self.dropout)(shared.ex_B, self.ffn(self.norm(x_Bx1xD))), NOTHING

    def parts(self, net: NetCfg) -> tuple[Part, ...]:
        """Returns what it is made of, with prices."""
        return stack.norm_part(net, 1), stack.rows_part(net, "ffn", self.ffn, 1, None)


PARTS = {"ssm": "scan", "lstm": "lstm", "cnn": "conv"}


def block(net: NetCfg, L: int, platform: str) -> nn.Module:
    """Returns one layer of a baseline; all of them are alike."""
    norm, drop = Norm(parent=None), net.dropout
    if net.name == "fnet":
        ffn = stack.feed_forward(net, net.ffn_width, stack.out_scale(net))
        mixing = FourierMixing(parent=None)
        return FnetBlock(mixing, ffn, norm, Norm(parent=None), L, drop, parent=None)
    if net.name == "mlp":
        scale = net.branch * net.depth**-0.5
        ffn = stack.feed_forward(net, net.ffn_width, scale, bias=True)
        return MlpBlock(ffn, norm, drop, parent=None)
    if net.name == "ssm":
        out_std = (EXPAND * net.width * net.depth) ** -0.5
        sizes = (net.width, net.ssm_state, net.kernel, net.dtype)
        layer = SelectiveStateSpace(*sizes, out_std=out_std, platform=platform, parent=None)
    elif net.name == "lstm":
        layer = Lstm(net.width, net.dtype, parent=None)
    else:
        layer = GatedConv(net.width, net.kernel, net.depth, net.causal, parent=None)
    return ResidualBlock(layer, norm, L, net.causal, drop, parent=None)


class Baseline(StackModel):
    """Language model, or encoder, of alike blocks without routing."""

    @staticmethod
    def blocks(
        net: NetCfg, L: int, platform: str, decisions: Decisions | None = None
    ) -> tuple[nn.Module, ...]:
        """Returns the blocks, in order."""
        return (block(net, L, platform),) * net.depth


@register("ssm", "lstm")
class Recurrent(Baseline):
    """A baseline that reads its tokens one after the other: it decodes with its state."""


@register("cnn", "fnet")
class Whole(Baseline):
    """A baseline that needs all tokens at once."""

    decodes = False


@register("mlp")
class Mlp(Whole):
    """One row of all tokens, and FFNs of it: one answer per example."""

    def enter(self, now: Pass) -> Pass:
        """Makes one row of all tokens: a linear map of the L · D features, or their pool."""
        net, x_BxLxD, batch = self.net, now.x_BxLxD, now.batch
        B, L, D = x_BxLxD.shape
        mask_BxL = batch["mask_BxL"] if "mask_BxL" in batch else None
        rest = {name: x for name, x in batch.items() if name != "mask_BxL"}
        if net.pool:
            row_Bx1xD = pool(net.pool, x_BxLxD, mask_BxL).astype(x_BxLxD.dtype)
        else:
            flat_Bx1xLD = mask_out(x_BxLxD, mask_BxL).reshape(B, 1, L * D)
            row_Bx1xD = linear(flat_Bx1xLD, D, (L * D) ** -0.5, "flat", bias=True)
        return now._replace(x_BxLxD=row_Bx1xD, batch=rest)

    @classmethod
    def price_list(cls, net: NetCfg, L: int, vocab: int, platform: str) -> PriceList:
        """Returns its blocks with prices.

        UserError where every token needs an answer of its own.
        """
        require(
            net.outputs > 0,
            "net.name is mlp, which gives one answer per example, not per token",
            "use another model",
        )
        # embedding of all tokens; blocks and head of one row
        first, _ = stack.ends(net, L, vocab)
        flat = () if net.pool else (Block("flat", (Part("", _flattening(net, L)),)),)
        _, *rest = stack.listed(net, 1, vocab, cls.blocks(net, L, platform)).blocks
        return PriceList((first, *flat, *rest))


def _flattening(net: NetCfg, L: int) -> pricing.Price:
    """Returns the price of the first linear map, of L · D features."""
    layer = Dense(net.width, True, jnp.dtype(net.dtype), parent=None)

    def make(x):
        return layer.init(jax.random.key(0), x)

    def run(params, x):
        return layer.apply({"params": params}, x)

    x = jax.ShapeDtypeStruct((1, 1, L * net.width), jnp.dtype(net.dtype))
    return pricing.whole(make, run, (x,))
