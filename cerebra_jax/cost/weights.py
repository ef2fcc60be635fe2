"""Bytes of the operations of a program, and which of them are weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

from cerebra_jax.cost.jaxprs import is_var
from cerebra_jax.cost.primitives import RELABELS, bytes_of, itemsize_of, size_of
from cerebra_jax.cost.units import Op


class Weight(NamedTuple):
    """Marks a variable that comes from the weights alone."""

    elements: int  # numbers that are read to have it; fewer than its own after a broadcast
    slices: int = 1  # a loop over slices reads so many such variables, one after the other


class Context(NamedTuple):
    """Says where a walk stands."""

    scope: str = ""  # name stacks of the equations around, joined
    times: int = 1  # turns of all the loops around
    trips: int | None = None  # of a data-dependent `while`
    branches: tuple[float, ...] | None = None  # how often each branch of a `cond` is taken
    constants: bool = False  # whether constants of the program are weights
    fused: bool = False  # inside a fused region


Env = dict[Any, Weight]


def traffic_of(operands: Sequence, results: Sequence, env: Env, context: Context) -> Op:
    """Returns the bytes that an operation reads and writes, over all turns.

    The result of an operation on weights alone is shared by the examples as the weights are.
    """
    held = [held_by(v, env, context) for v in operands]
    read = weights = 0
    for v, weight in zip(operands, held, strict=True):
        if weight is None:
            read += context.times * bytes_of([v.aval])
        else:
            weights += weight.elements * weight.slices * itemsize_of(v.aval)
    written = bytes_of([v.aval for v in results])
    if only_weights(held):
        return Op(weights=weights + written * max(weight.slices for weight in held))
    return Op(bytes=read + context.times * written, weights=weights)


def move_of(eqn: Any, env: Env, context: Context) -> Op:
    """Returns what a move of `MOVES` reads and writes over all turns, Op() if it is fused away."""
    name = eqn.primitive.name
    held = [held_by(v, env, context) for v in eqn.invars]
    if name == "gather" or (name == "dynamic_slice" and held[0] is None):
        moved = bytes_of([v.aval for v in eqn.outvars])
    elif name == "dynamic_update_slice":
        moved = bytes_of([eqn.invars[1].aval])
    elif name == "scatter":
        moved = bytes_of([v.aval for v in eqn.invars[2:]])
    else:
        return Op()  # also a slice of a stack of weights, which what uses it reads
    if only_weights(held):
        return Op(weights=2 * moved)
    return Op(bytes=2 * context.times * moved)


def held_by(v: Any, env: Env, context: Context) -> Weight | None:
    """Returns what a variable holds of the weights; a literal is a constant."""
    if is_var(v):
        return env.get(v)
    return Weight(size_of(v.aval)) if context.constants else None


def only_weights(held: list[Weight | None]) -> TypeGuard[list[Weight]]:
    """Returns whether there are any, and each is an array of weights."""
    return bool(held) and None not in held


def results_of(eqn: Any, env: Env, context: Context) -> list[Weight | None]:
    """Returns which results of an operation are weights: those of operations on weights alone."""
    name, outs = eqn.primitive.name, [v.aval for v in eqn.outvars]
    if not env and not context.constants:
        return [None] * len(outs)
    held = [held_by(v, env, context) for v in eqn.invars]
    if name == "optimization_barrier":
        return held
    if name in RELABELS:
        # indices and what pads are no arrays of weights
        sources = held if name in ("concatenate", "stack") else held[:1]
        if not only_weights(sources):
            return [None] * len(outs)
        elements = sum(weight.elements for weight in sources)
        slices = max(weight.slices for weight in sources)
        return [Weight(min(elements, size_of(out)), slices) for out in outs]
    if not only_weights(held):
        return [None] * len(outs)
    return [Weight(size_of(out), max(weight.slices for weight in held)) for out in outs]


def passed(inner: Sequence, outer: Sequence, env: Env, context: Context) -> list[Weight | None]:
    """Returns what the variables of a body hold, given those of the call.

    Where the body sees a slice, of a scan or of several devices, it goes through all slices.
    """
    found: list[Weight | None] = []
    for var, v in zip(inner, outer, strict=True):
        weight = held_by(v, env, context)
        if weight is not None:
            parts = max(1, size_of(v.aval) // max(1, size_of(var.aval)))
            weight = Weight(-(-weight.elements // parts), weight.slices * parts)
        found.append(weight)
    return found
