"""Finds the layer that a configuration names."""

from __future__ import annotations

import importlib

import flax.linen as nn

from cerebra_jax.config import NetCfg
from cerebra_jax.config.mixers import MIXERS


def mixer(name: str, net: NetCfg, heads: int, out_scale: float, platform: str) -> nn.Module:
    """Returns a layer of `config.mixers` for a configuration, with so many of its heads left."""
    found = MIXERS[name]
    layer = getattr(importlib.import_module(found.module), found.name)
    return layer.of(net, heads, out_scale, platform)
