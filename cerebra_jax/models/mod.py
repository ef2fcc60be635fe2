"""Mixture-of-Depths: every second block runs for a few tokens, the rest skip it.

Raposo et al. 2024, arXiv:2404.02258. x += g · (a + FFN(LN(x + a))), a = attention(LN x), for the
kept tokens, gathered into slots; the others pass unchanged. The paper takes the top k of the
sequence, which no causal model can know: here a causal model keeps the tokens above a running
quantile, as Cerebra does, with the same router and gate; an encoder the top k.
"""

from __future__ import annotations

from typing import Any

import jax

from cerebra_jax.config import NetCfg
from cerebra_jax.models import stack
from cerebra_jax.models.dense_block import DenseBlock, block
from cerebra_jax.models.mod_block import Pair, routed_block
from cerebra_jax.models.pricing import PriceList
from cerebra_jax.models.registry import register
from cerebra_jax.models.shapes import layer_shapes
from cerebra_jax.models.stack import Decisions, Placed
from cerebra_jax.models.stack_model import Pass, StackModel
from cerebra_jax.routing import thresholds


@register("mod")
class Mod(StackModel):
    """Language model or encoder of net.depth blocks, the second, fourth, … of them routed.

    routing = {"tau": (R,), "spread": (R,)}, R = depth // 2, with a threshold; else empty.
    """

    @staticmethod
    def blocks(
        net: NetCfg, L: int, platform: str, decisions: Decisions | None = None
    ) -> tuple[Pair, ...]:
        """Returns the pairs of a dense and a routed block, in order."""
        shapes, found = layer_shapes(net), []
        for i, cost in enumerate(stack.costs_of(decisions, net.depth // 2)):
            dense = block(net, shapes[2 * i], L, platform)
            routed = routed_block(net, Placed(L, platform, cost))
            found.append(Pair(dense, routed, parent=None))
        return tuple(found)

    def leave(self, now: Pass) -> Pass:
        """Runs the block that stands alone at the end, where there is one."""
        net, own = self.net, stack.owns({}, 1)
        last = last_block(net, now.length, self.platform)
        if last is None:
            return now
        last = last.clone(name="last", parent=self)
        if now.cache is None:
            x_BxLxD, _ = last(now.x_BxLxD, own, now.shared)
            return now._replace(x_BxLxD=x_BxLxD)
        x_BxLxD, (_, memory) = last(now.x_BxLxD, own, now.shared, now.cache.rest["last"])
        return now._replace(x_BxLxD=x_BxLxD, rest={"last": memory})

    @classmethod
    def price_list(cls, net: NetCfg, L: int, vocab: int, platform: str) -> PriceList:
        """Returns its blocks with prices."""
        pairs, last = cls.blocks(net, L, platform), last_block(net, L, platform)
        layers = [layer for pair in pairs for layer in (pair.dense, pair.routed)]
        return stack.listed(net, L, vocab, layers if last is None else [*layers, last])

    @classmethod
    def init_rest(cls, net: NetCfg, L: int, batch: int, platform: str) -> dict[str, Any]:
        """Returns the memory of the block that stands alone at the end."""
        last = last_block(net, L, platform)
        return {} if last is None else {"last": last.init_cache(batch)}

    @classmethod
    def prunable(cls, net: NetCfg, L: int) -> list[Any]:
        """Returns nothing: a kept token's block is one unit."""
        return []

    @staticmethod
    def routed(net: NetCfg) -> tuple[str, ...]:
        """Returns the names of its routed blocks."""
        return tuple(f"layer_{i:02d}" for i in range(1, net.depth, 2))

    @staticmethod
    def init_routing(net: NetCfg) -> dict[str, jax.Array]:
        """Returns its thresholds before any data."""
        return thresholds.initial([net.route] * (net.depth // 2))

    @staticmethod
    def decision_weights(net: NetCfg) -> dict[str, float]:
        """Returns the weights of the losses that its blocks report."""
        return {"z_loss": net.route.z_loss}


def last_block(net: NetCfg, L: int, platform: str) -> DenseBlock | None:
    """Returns the dense block after the last pair, of an odd depth; else None."""
    return block(net, layer_shapes(net)[-1], L, platform) if net.depth % 2 else None
