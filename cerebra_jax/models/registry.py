"""The models by name. A model registers itself: `@register("cerebra")` on its module.

A model is a Flax module `Model(net, vocab, decisions, platform)` with these static methods:

    price_list(net, L, vocab, platform)   its blocks with prices; every model has it
    init_cache(net, L, ex_B, platform)    what it remembers while decoding, where it can
    prunable(net, L)                      what pruning may remove, where it can be pruned
    routed(net)                           names of its routed blocks, `layer_03`; none by default
    init_routing(net)                     thresholds before any data; none by default
    fold(net, params, platform)           what depends on fixed weights alone; nothing by default
    describe(net, platform)               what it chose for a device, for a person
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
    return hasattr(model_class(name), "init_cache")


def routed(net: Any) -> tuple[str, ...]:
    """Returns the names of the routed blocks of a configuration."""
    find = getattr(model_class(net.name), "routed", None)
    return find(net) if find else ()


def init_routing(net: Any) -> dict[str, Any]:
    """Returns the thresholds of a configuration before any data."""
    start = getattr(model_class(net.name), "init_routing", None)
    return start(net) if start else {}


def prunable(net: Any, L: int) -> list[Any]:
    """Returns what pruning may remove from a model, `Group`s in the order of its layers."""
    find = getattr(model_class(net.name), "prunable", None)
    return find(net, L) if find else []


def routed_layers(net: Any) -> list[int]:
    """Returns the numbers of the routed blocks of a configuration."""
    return [int(name.removeprefix("layer_")) for name in routed(net)]


def fold(net: Any, params: Any, platform: str) -> dict[str, Any]:
    """Returns what depends on fixed weights alone, to be computed once."""
    make = getattr(model_class(net.name), "fold", None)
    return make(net, params, platform) if make else {}


def describe(net: Any, platform: str) -> str:
    """Returns what a model chose for a device, for a person."""
    say = getattr(model_class(net.name), "describe", None)
    return say(net, platform) if say else ""
