"""Which linear layers 8 bits are for, the only table of them. Imports no JAX."""

from __future__ import annotations

import re

LINEAR = r"(?!pooler/|meta_router/)(?:.*/)?(?:q|kv|out|up|gate|down|project|conv|flat|compressor)"
"""Modules whose kernel is int8.

Projections of attention and of the light path, FFNs, the compressor's products, and what the
baselines have of them. Float32 are the others: routers, norms, embeddings, heads and what is pooled
for them, and products of activations, which no module of these names forms."""


def holds(name: str) -> bool:
    """Whether 8 bits round a parameter, written as "layer_00/heavy/q/kernel"."""
    module, _, leaf = name.rpartition("/")
    return leaf == "kernel" and bool(re.fullmatch(LINEAR, module))
