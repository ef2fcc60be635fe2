"""What can be removed from a model, unit by unit: which entries of which parameters go with each, and masks over them.

A unit is masked in one place where its output is linear in the mask, so that dL/dm = Σ g·w there is the first-order
effect of its removal (Molchanov et al. 2017, arXiv:1611.06440): the rows of `out` for a head, a row of `down` for a
hidden feature, the column that makes a channel of the compressed tokens. What makes or reads a masked unit then gets no
gradient, and can be cut away with it. A DCT coefficient of CHIAR's filter is masked too, but nothing is smaller without
it: the transform computes all of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cerebra_jax.config import NetCfg
from cerebra_jax.layers import compressor, shapes
from cerebra_jax.models import cerebra

KINDS = ("heads", "ffn", "rest", "channels")  # as in net.kept; those that make a model smaller
Masks = dict[
    str, Any
]  # "units", "elements": {parameter: mask}; (n,) float32 of n units, or as large as the parameter


class Member(NamedTuple):
    """Entries of a parameter that belong to units: an axis in `blocks` parts, unit j has `per` entries of each."""

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


def groups(net: NetCfg) -> list[Group]:
    """All units of a model, in the order of its layers."""
    found = []
    for i, each in enumerate(shapes.each(net)):
        found += _PARTS[net.name](each, i)
    return found


def _transformer(net: NetCfg, i: int) -> list[Group]:
    return [
        _heads(net, i, f"layer_{i:02d}/attention"),
        _ffn(net, i, f"layer_{i:02d}/ffn", shapes.hidden(net)),
    ]


def _cerebra(net: NetCfg, i: int) -> list[Group]:
    layer, mode, (narrow, rest) = f"layer_{i:02d}", net.route.mode, cerebra.ffn_widths(net)
    found = [] if mode == "always_compressed" else [_heads(net, i, f"{layer}/heavy")]
    if mode != "always_full":
        made = Member(f"{layer}/compressor/kernel", 2) if net.compress.kind == "conv" else Member(
            f"{layer}/compressor/project/kernel", 1)  # fmt: skip
        read = [Member(f"{layer}/light/kv/kernel", 0)]
        read += (
            [Member(f"{layer}/compressor/decoder/kernel", 0)] if net.compress.reconstruct else []
        )
        found.append(Group(made.name, i, "channels", compressor.channels(net), (made, *read)))
    found.append(_ffn(net, i, f"{layer}/ffn_light" if rest else f"{layer}/ffn", narrow))
    if rest and mode != "always_compressed":
        found.append(_ffn(net, i, f"{layer}/ffn_rest", rest, "rest"))
    return found


def _chiar(net: NetCfg, i: int) -> list[Group]:
    ends = {0: "first_", net.depth - 1: "last_"}
    place = ends[i] if i in ends else f"layer_{i - 1:02d}/"
    last, mode, found = i == net.depth - 1, net.route.mode, []
    if last or (i > 0 and mode != "always_compressed"):
        found.append(_heads(net, i, f"{place}heavy/attention", bias=True))
    if not last and (i == 0 or mode != "always_full"):
        found.append(Group(f"{place}filter/w", i, "dct", net.width, ()))
    return [*found, _ffn(net, i, f"{place}mlp/ffn", shapes.hidden(net), bias=True)]


_PARTS = {"transformer": _transformer, "cerebra": _cerebra, "chiar": _chiar}


def _heads(net: NetCfg, i: int, place: str, bias: bool = False) -> Group:
    C = net.width // net.heads
    made = [("q", 1), ("kv", 2)]
    members = [Member(f"{place}/{name}/kernel", 1, C, blocks) for name, blocks in made]
    members += [Member(f"{place}/{name}/bias", 0, C, blocks) for name, blocks in made if bias]
    out = Member(f"{place}/out/kernel", 0, C)
    return Group(out.name, i, "heads", shapes.heads(net), (out, *members))


def _ffn(net: NetCfg, i: int, place: str, n: int, kind: str = "ffn", bias: bool = False) -> Group:
    made = ("up", "gate") if net.ffn == "gated" else ("up",)
    members = [Member(f"{place}/{name}/kernel", 1) for name in made]
    members += [Member(f"{place}/{name}/bias", 0) for name in made if bias]
    down = Member(f"{place}/down/kernel", 0)
    return Group(down.name, i, kind, n, (down, *members))


def masked(params: Any, masks: Masks) -> Any:
    """The parameters with what is masked at zero; without masks, the parameters themselves."""
    for part in ("units", "elements"):
        for name, m in masks.get(part, {}).items():
            params = _changed(
                params, name.split("/"), lambda w, name=name, m=m: w * spread(name, m, w)
            )
    return params


def spread(name: str, m: Any, w: Any) -> Any:
    """The mask of a parameter, repeated over the entries of each unit, with as many axes as the parameter."""
    if m.ndim == w.ndim:
        return m
    axis = w.ndim - 1 if "/compressor/" in name else 0
    shape = [1] * w.ndim
    shape[axis] = w.shape[axis]
    return m.repeat(w.shape[axis] // m.shape[0]).reshape(shape)


def _changed(tree: Any, path: list[str], change: Any) -> Any:
    head, *rest = path
    return tree | {head: _changed(tree[head], rest, change) if rest else change(tree[head])}


def cut(named: dict[str, Any], found: list[Group], keep: dict[str, Any]) -> dict[str, Any]:
    """Arrays by name, parameters and what an optimizer holds of each, with the units of these indices only.

    What is left out must be masked before: where a unit's output is not zero, the model is another one without it.
    """
    out = dict(named)
    for g in found:
        for m in g.members:
            for key in [
                key for key in out if key.endswith(f"/{m.name}") and not key.startswith("prune/")
            ]:
                starts = [
                    block * g.n * m.per + j * m.per
                    for block in range(m.blocks)
                    for j in keep[g.name]
                ]
                entries = [start + k for start in starts for k in range(m.per)]
                out[key] = out[key].take(np.array(entries, np.int64), axis=m.axis)
    return out


def shape_of(net: NetCfg, left: dict[str, int]) -> NetCfg:
    """The configuration with so many units left of each group, by name; DCT coefficients change no shape."""
    full = {(g.kind, g.layer): g.n for g in groups(shapes.whole(net))}
    lists = {kind: [0] * net.depth for kind in KINDS}
    for g in groups(net):
        if g.kind in KINDS and left[g.name] != full[g.kind, g.layer]:
            lists[g.kind][g.layer] = left[g.name]
    return shapes.with_kept(
        net, {kind: tuple(n) if any(n) else () for kind, n in lists.items()}
    )
