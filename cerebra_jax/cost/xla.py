"""XLA's own count of a program, which `cost/count.py` is checked against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from cerebra_jax.cost.jaxprs import bodies


def xla_flops(fn: Callable, *args: Any) -> float:
    """Returns the FLOPs that XLA's `cost_analysis` gives for fn(*args), elementwise work included.

    Trust it for small unrolled single-device programs of matmuls: loops are counted once, FFTs too
    dearly, custom calls (cuBLAS, cuDNN, TopK) as -1, sharded programs per device. A program without
    arithmetic has 0. Raises ValueError where XLA gives no figure.
    """
    return compiled_flops(jax.jit(fn).lower(*args).compile())


def compiled_flops(compiled: Any) -> float:
    """Returns `xla_flops` of a program that is compiled already."""
    found = compiled.cost_analysis()
    if isinstance(found, list | tuple) and found:
        found = found[0]
    if not isinstance(found, dict):
        raise ValueError("XLA gives no cost analysis on this backend")
    flops = found.get("flops", 0.0)
    if flops < 0:
        raise ValueError("XLA gives no FLOPs for this program: it is a custom call")
    return flops


def loops(fn: Callable, *args: Any) -> int:
    """Returns how many loops of more than one turn fn(*args) has.

    XLA's count misses all their turns but the first.
    """

    def inside(jaxpr: Any) -> int:
        found = 0
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            found += name == "while" or (name == "scan" and eqn.params["length"] > 1)
            found += sum(inside(body) for body in bodies(eqn.params))
        return found

    return inside(jax.make_jaxpr(fn)(*args).jaxpr)
