"""The light path of Cerebra: compressed attention as published, or any other layer."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.layers.compressor import (
    Compressed,
    CompressedAttention,
    Compressor,
    visible_pairs,
    window_segments,
    windows,
)
from cerebra_jax.layers.mixers import mixer
from cerebra_jax.layers.rows import Rows
from cerebra_jax.models import pricing, stack
from cerebra_jax.models.pricing import Part
from cerebra_jax.models.shapes import LayerShape, light_width
from cerebra_jax.routing.routers import Circumstances, Thresholds


def light_heads(net: NetCfg) -> int:
    """Returns the heads of the light path: net.compress.heads, or as many of H as divide E."""
    return net.compress.heads or math.gcd(net.heads, light_width(net))


def light_path(net: NetCfg, shape: LayerShape, made: stack.Placed, scale: float):
    """Returns (compressor or None, light layer or None) of net.light."""
    if net.light == "none":
        return None, None
    if net.light != "compressed":
        return None, mixer(net.light, net, net.heads, scale, made.platform)
    c, heads = net.compress, light_heads(net)
    compress = Compressor(
        made.length, c.r, shape.channels, net.heads, c.kind, bool(c.reconstruct), parent=None
    )
    attend = CompressedAttention(
        net.width,
        light_width(net),
        heads,
        dtype=net.dtype,
        std=net.init_std,
        out_scale=scale,
        kernel=net.attention,
        head_share=heads / net.heads,
        platform=made.platform,
        parent=None,
    )
    return compress, attend


def joined(compress: nn.Module | None, layer: nn.Module, causal: bool) -> Any:
    """Returns the light path as one layer."""
    return layer if compress is None else Compressed(compress, layer, causal)


@dataclasses.dataclass(frozen=True)
class Directed:
    """A layer that reads the rows in a given direction."""

    layer: nn.Module
    backwards: jax.Array

    def __call__(self, queries: Rows, keys: Rows) -> jax.Array:
        return self.layer(queries, keys, backwards=self.backwards)


def directed(layer: nn.Module, backwards: dict[str, Any]) -> Any:
    """Returns the layer, in the direction that `transformer.reading` says."""
    return Directed(layer, **backwards) if backwards else layer


def parts(net: NetCfg, compress: Compressor | None, layer: nn.Module, L: int) -> list[Part]:
    """Returns the light path with prices."""
    if compress is None:
        return [stack.mixing_part(net, "light", layer, L, None)]

    every = stack.abstract_rows(net, L)
    last_M = windows(L, compress.share).last_M
    x = jax.ShapeDtypeStruct((1, len(last_M), compress.channels), jnp.dtype(net.dtype))
    index = jax.ShapeDtypeStruct((1, len(last_M)), jnp.dtype("int32"))
    segments = window_segments(every.segments, last_M, net.causal)
    keys = Rows(x, index, index, L, segments, causal=net.causal)
    attend = stack.attending(net, "light", layer, every, keys)
    visible = visible_pairs(L, compress.share, net.causal)
    made = Part("compressor", _compressing(compress, net.width, net.dtype))
    return [made, attend._replace(pairs=visible)]


@functools.cache
def _compressing(compress: Compressor, width: int, dtype: str) -> pricing.Price:
    """Returns the price of compressing all tokens, counted at their real number."""

    def make(x):
        return compress.init(jax.random.key(0), x)

    def run(params, x):  # without the decoder of the reconstruction loss, which trains only
        return compress.apply({"params": params}, x)[0]

    x = jax.ShapeDtypeStruct((1, compress.length, width), jnp.dtype(dtype))
    return pricing.whole(make, run, (x,))


def router_part(net: NetCfg, router: nn.Module, L: int) -> Part:
    """Returns the router as a part, counted at its real number of tokens."""
    router = stack.at_any_rate(router)
    return Part("router", _routing(router, net.width, net.dtype, L, net.causal))


@functools.cache
def _routing(router: nn.Module, width: int, dtype: str, L: int, causal: bool) -> pricing.Price:
    def rows(x, index):
        return Rows(x, index, index, L, ((0, L),), None, causal)

    def now(scalar):
        return Circumstances(Thresholds(scalar, scalar, scalar), 0, scalar, jnp.zeros(1, int))

    def make(x, index, scalar):
        return router.init(jax.random.key(0), rows(x, index), now(scalar))

    def run(params, x, index, scalar):
        return router.apply({"params": params}, rows(x, index), now(scalar))

    x = jax.ShapeDtypeStruct((1, L, width), jnp.dtype(dtype))
    index = jax.ShapeDtypeStruct((1, L), jnp.dtype("int32"))
    scalar = jax.ShapeDtypeStruct((), jnp.dtype("float32"))
    return pricing.whole(make, run, (x, index, scalar))
