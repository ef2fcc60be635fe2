"""Modules that read their parameters without tracing how these would begin."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from flax import errors


class Module(nn.Module):
    """Returns a parameter that is there as it is; everything else is Flax's.

    Flax traces the initialiser of a parameter whenever the parameter is read, to compare its shape:
    half a millisecond each time, a tenth of the time that a model takes to trace. The shape that is
    asked for is compared here as well. Raises ScopeParamShapeError where it is another one.
    """

    def param(self, name: str, init: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the parameter `name` of shape args[0], made by init(key, *args) where missing."""
        scope = self.scope
        found = scope.get_variable("params", name) if scope is not None else None
        if not isinstance(found, jax.Array) or scope is None:  # missing, or int8 with its scale
            return super().param(name, init, *args, **kwargs)
        scope.reserve(name, "params")
        if found.shape != tuple(args[0]):
            raise errors.ScopeParamShapeError(name, scope.path_text, found.shape, args[0])
        return found


class Dense(Module, nn.Dense):
    """Computes W x + b on the last axis: nn.Dense, with parameters as above."""
