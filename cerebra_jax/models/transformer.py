"""The dense baselines: a Transformer with RoPE and a tied head, and one with a sliding window.

Longformer's local attention (Beltagy et al. 2020, arXiv:2004.05150) without global tokens: causal,
the nearest net.window tokens before a token; as an encoder, half on each side. The key blocks
outside the window are not computed.
"""

from __future__ import annotations

import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.models.dense_block import DenseBlock, block
from cerebra_jax.models.registry import register
from cerebra_jax.models.shapes import layer_shapes
from cerebra_jax.models.stack import Decisions
from cerebra_jax.models.stack_model import Pass, StackModel

FAR = 1 << 30  # where padding stands in a window: no real token reaches it


@register("transformer", "window")
class Transformer(StackModel):
    """Language model, or encoder, in which every token runs everything."""

    @staticmethod
    def blocks(
        net: NetCfg, L: int, platform: str, decisions: Decisions | None = None
    ) -> tuple[DenseBlock, ...]:
        """Returns the blocks, in order."""
        return tuple(block(net, shape, L, platform) for shape in layer_shapes(net))

    def enter(self, now: Pass) -> Pass:
        """Lets tokens of a window stand at their positions, in an encoder too."""
        if self.net.name != "window" or now.cache is not None:
            return now
        rank = _window_rank(now.x_BxLxD.shape[1], now.shared.mask_BxL)
        return now._replace(shared=now.shared._replace(rank=rank))


def _window_rank(n: int, mask_BxL):
    pos_1xL = jnp.arange(n)[None]
    return pos_1xL if mask_BxL is None else jnp.where(mask_BxL, pos_1xL, FAR)
