"""cerebra_jax: models whose compute is part of what they are trained for.

    import cerebra_jax

    config = cerebra_jax.defaults()                # an ml_collections.ConfigDict with every key
    config.net.name = "cerebra"
    config.objective.budget = 0.6                  # of the dense Transformer's FLOPs
    run = cerebra_jax.train(cerebra_jax.parse(config), "runs/mine")
    run.generate(["The town"], max_tokens=40).texts

This page is the whole public API:

    defaults, parse            configurations: edit the defaults, then check them
    build_task, build_model    the data with their loss, and the model, of a configuration
    train, load, Trained       a run from its configuration to its answers
    count                      what any function of arrays costs, counted by tracing it
    assert_causal, assert_decodes    checks for any model, ours or not
    UserError                  what is raised for a mistake of the user: "what; hint"

Importing the package loads no JAX: a name loads what it needs when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cerebra_jax.config import defaults, parse
    from cerebra_jax.cost.count import count
    from cerebra_jax.errors import UserError
    from cerebra_jax.models.model import build as build_model
    from cerebra_jax.tasks.registry import build as build_task
    from cerebra_jax.testing import assert_causal, assert_decodes
    from cerebra_jax.trained import Trained, load, train

__version__ = "0.1.0"

__all__ = [
    "Trained",
    "UserError",
    "assert_causal",
    "assert_decodes",
    "build_model",
    "build_task",
    "count",
    "defaults",
    "load",
    "parse",
    "train",
]

# where each public name stands: (module, name in it)
_HOMES = {
    "Trained": ("cerebra_jax.trained", "Trained"),
    "UserError": ("cerebra_jax.errors", "UserError"),
    "assert_causal": ("cerebra_jax.testing", "assert_causal"),
    "assert_decodes": ("cerebra_jax.testing", "assert_decodes"),
    "build_model": ("cerebra_jax.models.model", "build"),
    "build_task": ("cerebra_jax.tasks.registry", "build"),
    "count": ("cerebra_jax.cost.count", "count"),
    "defaults": ("cerebra_jax.config", "defaults"),
    "load": ("cerebra_jax.trained", "load"),
    "parse": ("cerebra_jax.config", "parse"),
    "train": ("cerebra_jax.trained", "train"),
}


def __getattr__(name: str) -> Any:
    """Loads a public name from its module, the first time that it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    found = getattr(importlib.import_module(module), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Lists the public names, loaded or not."""
    return sorted({*globals(), *__all__})
