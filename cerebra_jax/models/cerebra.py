"""Cerebra: a stack of blocks that route each token to a heavy path or leave it on a light one.

Per block, pre-LayerNorm: x += g · heavy + (1 − g) · light, then x += FFN. The heavy layer runs for
the kept tokens alone, gathered with their positions; the light one for all. net.heavy and net.light
say which layers they are: attention and compressed attention as published. With route.part=block
the FFN is routed too: every token runs its first ceil(s F) hidden features, kept tokens the others
as well, so that a kept token has the full width F and nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import jax

from cerebra_jax.config import NetCfg
from cerebra_jax.layers import compressor
from cerebra_jax.models import stack
from cerebra_jax.models.cerebra_block import RoutedBlock, block
from cerebra_jax.models.registry import register
from cerebra_jax.models.shapes import layer_shapes
from cerebra_jax.models.stack import Decisions, Placed
from cerebra_jax.models.stack_model import StackModel
from cerebra_jax.routing import thresholds


@register("cerebra")
class Cerebra(StackModel):
    """Routed language model or encoder.

    routing = {"tau": (R,), "spread": (R,)}, R = depth, with a threshold; else empty.
    """

    @staticmethod
    def blocks(
        net: NetCfg, L: int, platform: str, decisions: Decisions | None = None
    ) -> tuple[RoutedBlock, ...]:
        """Returns the blocks, in order."""
        places = (Placed(L, platform, cost) for cost in stack.costs_of(decisions, net.depth))
        shapes = layer_shapes(net)
        return tuple(block(net, *both) for both in zip(shapes, places, strict=True))

    @staticmethod
    def routed(net: NetCfg) -> tuple[str, ...]:
        """Returns the names of its routed blocks."""
        if net.route.mode.startswith("always"):
            return ()
        return tuple(f"layer_{i:02d}" for i in range(net.depth))

    @staticmethod
    def init_routing(net: NetCfg) -> dict[str, jax.Array]:
        """Returns its thresholds before any data."""
        return thresholds.initial([shape.route for shape in layer_shapes(net)])

    @staticmethod
    def decision_weights(net: NetCfg) -> dict[str, float]:
        """Returns the weights of the losses that its blocks report."""
        return {"z_loss": net.route.z_loss, "reconstruct": net.compress.reconstruct}


def folded(net: NetCfg, params: Any) -> dict[str, Any]:
    """Returns keys and values of the windows as one map each, where that is no more work."""
    return compressor.fold(net.compress.kind, params) if net.light == "compressed" else {}
