"""The table of operations by model, and their price in a unit."""

from __future__ import annotations

import math
from collections.abc import Callable

from cerebra_jax.config import NetCfg
from cerebra_jax.cost.units import Unit
from cerebra_jax.errors import UserError
from cerebra_jax.layers import block
from cerebra_jax.models.traffic import common, routed
from cerebra_jax.models.traffic.common import Ops, Parts
from cerebra_jax.routing import routers as router
from cerebra_jax.types import DecisionCost

EACH = {"cerebra": routed.cerebra_each, "chiar": routed.chiar_each, "mod": routed.mod_each}
PARTS: dict[str, Callable[[NetCfg, int, int], Parts]] = {
    "transformer": common.transformer,
    "cerebra": routed.cerebra_parts,
    "chiar": routed.chiar_parts,
    "mod": routed.mod_parts,
}


def parts(net: NetCfg, L: int, vocab: int) -> Parts:
    """The operations of a model; UserError for one whose bytes are not known."""
    if net.route.rbf and net.name == "chiar":
        raise UserError(
            "the bytes that the RBF mixer moves are not priced", "use objective.unit=flops"
        )
    if net.name not in PARTS:
        raise UserError(
            f"the bytes that net.name={net.name} moves are not priced", "use objective.unit=flops"
        )
    return PARTS[net.name](net, L, vocab)


def total(ops: dict[str, Ops], unit: Unit) -> float:
    """Price of one example."""
    return math.fsum(unit.price(part) for part in ops.values())


def decisions(
    net: NetCfg, L: int, vocab: int, dense: NetCfg, unit: Unit, layers: list[NetCfg]
) -> DecisionCost:
    """What the decisions in the routed layers cost in a unit, relative to the dense Transformer `dense`."""
    whole = total(parts(net, L, vocab).model, unit)
    of = total(parts(dense, L, vocab).model, unit)
    own = [
        (unit.marginal(each.token), unit.marginal(each.pair))
        for each in (EACH[net.name](n, L) for n in layers)
    ]
    decided = sum(L * token + block.pairs(net, L) * pair for token, pair in own)
    return router.decision_cost(
        (whole - decided) / of, [(token / of, pair / of) for token, pair in own]
    )
