"""The models by name. A model registers itself: `@register("cerebra")` on its module.

A model is a `StackModel` (models/stack_model.py), `Model(net, vocab, decisions, platform)`. It
lists its blocks; the functions below ask it for what follows from them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

_FILES = ("transformer", "cerebra", "chiar", "mod", "baselines")
_MODELS: dict[str, Any] = {}


def register(*names: str) -> Callable[[type], type]:
    """Returns a decorator that makes a module known under these names."""

    def add(module: type) -> type:
        for name in names:
            _MODELS[name] = module
        return module

    return add


def model_class(name: str) -> Any:
    """Returns the module of a registered name."""
    if name not in _MODELS:
        for file in _FILES:
            importlib.import_module(f"cerebra_jax.models.{file}")
    return _MODELS[name]


def names() -> tuple[str, ...]:
    """Returns the names of all models."""
    model_class("transformer")
    return tuple(_MODELS)


def decodes(name: str) -> bool:
    """Returns whether a model has a cache to decode with."""
    return model_class(name).decodes


def routed(net: Any) -> tuple[str, ...]:
    """Returns the names of the routed blocks of a configuration."""
    return model_class(net.name).routed(net)


def init_routing(net: Any) -> dict[str, Any]:
    """Returns the thresholds of a configuration before any data."""
    return model_class(net.name).init_routing(net)


def prunable(net: Any, L: int) -> list[Any]:
    """Returns what pruning may remove from a model, `Group`s in the order of its layers."""
    return model_class(net.name).prunable(net, L)


def routed_layers(net: Any) -> list[int]:
    """Returns the numbers of the routed blocks of a configuration."""
    return [int(name.removeprefix("layer_")) for name in routed(net)]


def fold(net: Any, params: Any, platform: str) -> dict[str, Any]:
    """Returns what depends on fixed weights alone, to be computed once."""
    return model_class(net.name).fold(net, params, platform)


def describe(net: Any, platform: str) -> str:
    """Returns what a model chose for a device, for a person."""
    return model_class(net.name).describe(net, platform)
