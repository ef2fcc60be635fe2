"""Parts of jaxprs, told by what they have: JAX moves their classes about."""

from __future__ import annotations

from typing import Any


def open_jaxpr(x: Any) -> Any:
    """Returns the open jaxpr of a (closed) jaxpr, None for anything else."""
    x = getattr(x, "jaxpr", x)
    return x if hasattr(x, "eqns") and hasattr(x, "outvars") else None


def bodies(params: dict) -> list:
    """Returns all jaxprs among the parameters of an equation."""
    found = []
    for value in params.values():
        values = value if isinstance(value, tuple | list) else (value,)
        found += [open_jaxpr(v) for v in values if open_jaxpr(v) is not None]
    return found


def is_var(v: Any) -> bool:
    """Returns whether an operand is a variable, and no literal."""
    return not hasattr(v, "val")  # literals carry their value
