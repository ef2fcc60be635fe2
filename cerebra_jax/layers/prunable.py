"""What can be removed from a layer, unit by unit: which entries of which parameters go with it.

A unit is masked in one place where its output is linear in the mask, so that dL/dm = Σ g·w there is
the first-order effect of its removal (Molchanov et al. 2017, arXiv:1611.06440): the rows of `out`
for a head, a row of `down` for a hidden feature, the column that makes a channel of the compressed
tokens. What makes or reads a masked unit then gets no gradient, and can be cut away with it. A DCT
coefficient of CHIAR's filter is masked too, but nothing is smaller without it: the transform
computes all of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

KINDS = ("heads", "ffn", "rest", "channels")  # as in net.kept; those that make a model smaller
Masks = dict[str, Any]
"""{"units" or "elements": {parameter: mask}}: (n,) float32 of n units, or as large as it is."""


class Member(NamedTuple):
    """Entries of a parameter that belong to units: an axis in `blocks` parts, `per` a unit."""

    name: str
    axis: int
    per: int = 1
    blocks: int = 1


class Group(NamedTuple):
    """The n units of one kind in one layer; `name` is the parameter that their mask multiplies."""

    name: str
    layer: int
    kind: str
    n: int
    members: tuple[Member, ...]


def masked(params: Any, masks: Masks) -> Any:
    """Returns the parameters with what is masked at zero; without masks, as they are."""
    for kind in ("units", "elements"):
        for name, mask in masks.get(kind, {}).items():
            params = _multiplied(params, name.split("/"), name, mask)
    return params


def _multiplied(tree: Any, path: list[str], name: str, mask: Any) -> Any:
    head, *rest = path
    below = tree[head]
    if rest:
        return tree | {head: _multiplied(below, rest, name, mask)}
    return tree | {head: below * spread(name, mask, below)}


def spread(name: str, mask: Any, weight: Any) -> Any:
    """Returns the mask of a parameter, repeated over each unit's entries, with as many axes."""
    if mask.ndim == weight.ndim:
        return mask
    axis = weight.ndim - 1 if "/compressor/" in name else 0
    shape = [1] * weight.ndim
    shape[axis] = weight.shape[axis]
    return mask.repeat(weight.shape[axis] // mask.shape[0]).reshape(shape)


def cut(named: dict[str, Any], groups: list[Group], remaining: dict[str, Any]) -> dict[str, Any]:
    """Returns arrays by name (parameters, and what an optimizer holds of each) with these units
    only.

    What is left out must be masked before: where a unit's output is not zero, the model is another
    one without it.
    """
    out = dict(named)
    for group in groups:
        for member in group.members:
            entries = _entries(group, member, remaining[group.name])
            for key in [key for key in out if _is_of(key, member)]:
                out[key] = out[key].take(entries, axis=member.axis)
    return out


def _is_of(key: str, member: Member) -> bool:
    return key.endswith(f"/{member.name}") and not key.startswith("prune/")


def _entries(group: Group, member: Member, units: Any) -> np.ndarray:
    """Returns the indices of a parameter's axis that these units have."""
    starts = [
        (block * group.n + unit) * member.per for block in range(member.blocks) for unit in units
    ]
    return np.array([start + k for start in starts for k in range(member.per)], np.int64)
