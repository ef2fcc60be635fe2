"""The frame of the baselines: embedding, layers of one kind, LayerNorm, head. Each says what its layer is and costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.layers import ends
from cerebra_jax.layers.scan_layers import repeat
from cerebra_jax.models import transformer
from cerebra_jax.types import Aux, Cost


class Stack(nn.Module):
    """Language model, or encoder, without routing; (B, L) tokens -> features and output matrix (`Out`).

    `layer` is called as layer(net)(x_BxLxD, number, ex_B, mask_BxL) -> (x_BxLxD, None), `parts(net, L)` are the
    (model, executed) FLOPs of its parts. `start` is what stands before the first layer, `entry(net, L)` its FLOPs.
    """

    net: NetCfg
    vocab: int

    layer: ClassVar[type[nn.Module]]
    parts: ClassVar[Callable[[NetCfg, int], dict[str, tuple[int, int]]]]

    @nn.compact
    def __call__(self, batch, knobs, routing):
        net = self.net
        x_BxLxD, table_VxD = ends.embed(net, self.vocab, batch)
        B, L = x_BxLxD.shape[:2]
        mask_BxL = batch["mask_BxL"] if "mask_BxL" in batch else None
        x_BxLxD, mask_BxL = self.start(x_BxLxD, mask_BxL)
        scanned, shared = (jnp.arange(net.depth),), (batch["ex_B"], mask_BxL)
        x_BxLxD, _ = repeat(self.layer, net, net.depth, {"net": net}, x_BxLxD, scanned, shared)
        share = (
            self.cost(net, L, self.vocab).model_flops
            / transformer.cost(net, L, self.vocab).model_flops
        )
        share_B = jnp.full(B, share, jnp.float32)
        out = ends.finish(net, self.vocab, x_BxLxD, table_VxD, mask_BxL, batch["ex_B"])
        return out, Aux(share_B, share_B, {}, {}, {}, {})

    def start(self, x_BxLxD, mask_BxL):
        return x_BxLxD, mask_BxL

    @staticmethod
    def entry(net: NetCfg, L: int) -> dict[str, int]:
        return {}

    @classmethod
    def cost(cls, net: NetCfg, L: int, vocab: int) -> Cost:
        """Forward FLOPs per example, head included."""
        model = ends.embed_flops(net, L) | cls.entry(net, L)
        executed = dict(model)
        for i in range(net.depth):
            for part, prices in cls.parts(net, L).items():
                model[f"layer_{i:02d}/{part}"], executed[f"layer_{i:02d}/{part}"] = prices
        model["head"] = executed["head"] = ends.head_flops(net, L, vocab)
        return Cost(model, executed)


def turned(net: NetCfg, number, x_BxL):
    """(B, L, …) as the layer reads it: from the first token to the last; an encoder's every second layer from the last
    to the first, so that two layers see both sides. Its own inverse."""
    return (
        x_BxL if net.causal or x_BxL is None else jnp.where(number % 2 == 1, x_BxL[:, ::-1], x_BxL)
    )


def silenced(x_BxLxD, mask_BxL):
    """Zeros where there is padding."""
    return (
        x_BxLxD
        if mask_BxL is None
        else jnp.where(mask_BxL[..., None], x_BxLxD, jnp.zeros((), x_BxLxD.dtype))
    )
