"""What pruning may remove from a whole model, and the shape that is left."""

from __future__ import annotations

import dataclasses

from cerebra_jax.config import KeptCfg, NetCfg
from cerebra_jax.layers.prunable import KINDS, Group
from cerebra_jax.models import registry
from cerebra_jax.models.shapes import WHOLE

_LENGTH = 64  # of no consequence: units are parameters, whose shapes know no length


def groups(net: NetCfg) -> list[Group]:
    """Returns all units of a model, in the order of its layers."""
    return registry.prunable(net, _LENGTH)


def shape_of(net: NetCfg, left: dict[str, int]) -> NetCfg:
    """Returns the configuration with so many units left of each group, by name.

    DCT coefficients change no shape.
    """
    unpruned = dataclasses.replace(net, kept=WHOLE)
    full = {(group.kind, group.layer): group.n for group in groups(unpruned)}
    lists = {kind: [0] * net.depth for kind in KINDS}
    for group in groups(net):
        if group.kind in KINDS and left[group.name] != full[group.kind, group.layer]:
            lists[group.kind][group.layer] = left[group.name]
    kept = {kind: tuple(n) if any(n) else () for kind, n in lists.items()}
    return dataclasses.replace(net, kept=KeptCfg(**kept))
