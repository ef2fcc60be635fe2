"""Prepares a model for writing token by token: what all tokens share is done before the first."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cerebra_jax.models import cerebra_block, registry
from cerebra_jax.models.model import Model

# Kernels that are read in net.dtype alone. Routers, norms, tables and recurrent gates are float32.
_CAST = re.compile(r"(?:.*/)?(?:q|kv|out|up|down|project|conv|flat|compressor|ffn\w*/gate)/kernel")


class Writer(NamedTuple):
    """A model and its variables, as they write token by token."""

    model: Model
    variables: Any
    unrolled: bool  # its layers are, though the model scans over them

    def opened(self, cache: Any) -> Any:
        """Returns the cache of the model that was prepared, for this one."""
        return cache._replace(layers=tuple(_each(cache.layers))) if self.unrolled else cache

    def closed(self, cache: Any) -> Any:
        """Returns the cache of this model, for the one that was prepared."""
        if not self.unrolled:
            return cache
        return cache._replace(layers=jax.tree.map(lambda *x: jnp.stack(x), *cache.layers))


def prepared(model: Model, variables: Any) -> Writer:
    """Returns a model that writes what this model writes, at less cost a token.

    Weights are rounded to net.dtype once instead of at each token. On a GPU and a TPU layers that
    are scanned over are unrolled: a loop over them copies the weights and the memory of each. Those
    in 8 bits stay as they are.
    """
    dtype = jnp.dtype(model.net.dtype)
    weights = {name: variables[name] for name in ("params", "folded") if name in variables}
    weights["params"] = _rounded("", weights["params"], dtype)
    if "folded" in weights:
        weights["folded"] = jax.tree.map(lambda x: x.astype(dtype), weights["folded"])
    plain = type(model.module) is registry.model_class(model.name)
    unrolled = plain and model.net.scan and model.module.platform != "cpu"
    if unrolled:
        net = dataclasses.replace(model.net, scan=False)
        model = dataclasses.replace(model, net=net, module=model.module.clone(net=net))
        weights = {name: _unrolled(tree) for name, tree in weights.items()}
        weights["folded"] = _with_whole_ffns(weights)
    return Writer(model, variables | weights, unrolled)


def _rounded(prefix: str, node: Any, dtype: Any) -> Any:
    """Returns parameters with the kernels of linear layers in the dtype of their products."""
    if isinstance(node, dict):
        below = f"{prefix}/" if prefix else ""
        return {name: _rounded(below + name, child, dtype) for name, child in node.items()}
    return node.astype(dtype) if _CAST.fullmatch(prefix) else node


def _unrolled(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns a collection of a scanned model as that of the same model unrolled."""
    if "layers" not in tree:
        return tree
    found = {name: child for name, child in tree.items() if name != "layers"}
    return found | {f"layer_{i:02d}": layer for i, layer in enumerate(_each(tree["layers"]))}


def _with_whole_ffns(weights: dict[str, Any]) -> dict[str, Any]:
    """Returns the collection `folded` with routed FFNs as one layer each."""
    found = dict(weights.get("folded", {}))
    for name, layer in weights["params"].items():
        if name.startswith("layer_") and (made := cerebra_block.beside(layer)):
            found[name] = found.get(name, {}) | made
    return found


def _each(stacked: Any) -> list[Any]:
    """Returns the trees whose arrays a tree holds side by side."""
    count = len(jax.tree.leaves(stacked)[0])
    return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)]
