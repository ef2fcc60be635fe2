"""A stack of layers, scanned over or unrolled."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.kernels.remat import keep_dots


class Repeat(NamedTuple):
    """How layers are repeated: scanned over or unrolled, and what their backward pass recomputes.

    `remat` is what net.remat stands for. off: nothing, all that the backward pass needs is kept.
    dots: results of matmuls, convolutions and fused attention are kept, elementwise work is done
    again. full: only what passes from layer to layer is kept, so that a step runs the forward pass
    twice.
    """

    scan: bool = False
    remat: str = "off"


def fields_of(module: nn.Module) -> dict[str, Any]:
    """Returns what a module was made of; modules in it are made anew, to be of another parent."""
    found = {}
    for name in module.__dataclass_fields__:
        if name not in ("parent", "name"):
            value = getattr(module, name)
            found[name] = value.clone(parent=None) if isinstance(value, nn.Module) else value
    return found


def scan_layers(blocks: tuple, mode: Repeat, carry, scanned, shared, cache=None):
    """Runs layers, carry, y = block(carry, scanned_i, shared[, cache_i]): (carry, stacked ys).

    Scanned over (one is compiled, they must be alike) or unrolled.
    Parameters are stacked under `layers` when scanned, else `layer_00`, `layer_01`, …; so is a
    cache (of decoding), else it is a tuple of one per layer, which leaves the arrays where they
    are. To be called inside a compact method.
    """
    kind = type(blocks[0])
    if mode.remat != "off":
        policy = keep_dots if mode.remat == "dots" else None
        kind = nn.remat(kind, prevent_cse=not mode.scan, policy=policy)
    caches = () if cache is None else (cache,)
    if mode.scan:
        axes = (0, nn.broadcast, *(0 for _ in caches))
        rngs = {"params": True, "dropout": True, "route": True}
        collections = {"params": 0, "folded": 0}
        # Flax declares in_axes an int, and the names of collections as filters
        how = {"split_rngs": rngs, "in_axes": axes, "length": len(blocks)}
        over = nn.scan(kind, collections, **how)  # pyright: ignore[reportArgumentType]
        return over(**fields_of(blocks[0]), name="layers")(carry, scanned, shared, *caches)

    ys, after = [], []
    for i, block in enumerate(blocks):
        own = jax.tree.map(lambda x, i=i: x[i], scanned)
        own_cache = () if cache is None else (cache[i],)
        carry, y = kind(**fields_of(block), name=f"layer_{i:02d}")(carry, own, shared, *own_cache)
        if cache is not None:
            y, new = y
            after.append(new)
        ys.append(y)
    stacked = jax.tree.map(lambda *y: jnp.stack(y), *ys)
    return carry, stacked if cache is None else (stacked, tuple(after))
