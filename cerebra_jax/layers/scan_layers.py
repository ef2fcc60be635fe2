"""A stack of layers that differ in their number, and where something was pruned, in their widths."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.layers import shapes


def repeat(layer: type[nn.Module], net: NetCfg, count: int, kwargs: dict, carry, scanned: tuple, shared: tuple,
           cache=None, first: int = 0):  # fmt: skip
    """Runs `count` layers, `carry, y = layer(carry, *scanned_i, *shared, cache_i)`; -> (carry, ys stacked over layers).

    Scanned over the layers (one is compiled) or unrolled, rematerialised or not, as the configuration says. Parameters
    are stacked under `layers` when scanned, else `layer_00`, `layer_01`, …; so is a cache (of decoding), else it is a
    tuple of one per layer, which leaves the arrays where they are. Unrolled, the i-th is made for the widths of layer
    `first` + i of the net, and for its own prices.
    """
    more = () if cache is None else (cache,)
    if net.remat:
        layer = nn.remat(layer, prevent_cse=not net.scan)
    if net.scan:
        axes = (0,) * len(scanned) + (nn.broadcast,) * len(shared) + (0,) * len(more)
        rngs = {"params": True, "dropout": True, "route": True}
        over = nn.scan(
            layer, {"params": 0, "folded": 0}, split_rngs=rngs, in_axes=axes, length=count
        )
        return over(**kwargs, name="layers")(carry, *scanned, *shared, *more)
    ys, caches = [], []
    for i in range(count):
        own = {"net": shapes.of(net, first + i)} | (
            {"each": kwargs["each"].of(i)} if "each" in kwargs else {}
        )
        each = (*(s[i] for s in scanned), *shared, *(c[i] for c in more))
        carry, y = layer(**kwargs | own, name=f"layer_{i:02d}")(carry, *each)
        if cache is not None:
            caches.append(y.pop("cache"))
        ys.append(y)
    stacked = jax.tree.map(lambda *y: jnp.stack(y), *ys) if ys else None
    return carry, stacked if cache is None else {**(stacked or {}), "cache": tuple(caches)}
