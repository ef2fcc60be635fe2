"""Counts a program: walks its jaxpr and prices every operation, in Python integers.

The prices are those of `cost/primitives.py`, by the conventions of `cost/prices.py`. Scan bodies
are multiplied by their length, `cond` costs its dearest branch (or the mean under given weights),
jit, remat and custom derivatives are entered once, code whose results nobody uses is left out (XLA
removes it too), and an operation without a price raises. What is counted is what the program runs:
a masked full square of attention is a full square. Nothing is allocated or compiled, and arguments
may be `jax.ShapeDtypeStruct`.

Name scopes change what is counted inside them: `cost/scopes.py` has them.

This is not XLA's `cost_analysis`, which counts a scan body once, charges FFTs 1.6 to 4.8 times too
much and reports -1 for custom calls; `cost/xla.py` has it, to check small, unrolled, single-device
programs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax

from cerebra_jax.cost import device, prices
from cerebra_jax.cost.jaxprs import is_var, open_jaxpr
from cerebra_jax.cost.primitives import (
    ELEMENTWISE,
    MOVES,
    PRICES,
    REDUCTIONS,
    bytes_of,
    complex_work,
    size_of,
)
from cerebra_jax.cost.scopes import (
    FUSED_ATTENTION,
    FUSED_CAUSAL_ATTENTION,
    RECURRENCE,
    module_path,
    region_of,
    scope_of,
)
from cerebra_jax.cost.units import Op
from cerebra_jax.cost.weights import (
    Context,
    Env,
    Weight,
    held_by,
    move_of,
    passed,
    results_of,
    traffic_of,
)
from cerebra_jax.errors import RunError


class Counts(NamedTuple):
    """Holds what one call of a program costs."""

    flops: int  # the sum of `by`
    by: dict[str, int]  # FLOPs of each kind: dot, conv, fft, attention, scan
    elementwise: int  # one per element of a result (arithmetic) or operand (reductions)
    bytes: int  # operands and results of what is not fused away: matmuls, FFTs, gathers, sorts …
    int8: int = 0  # products of integers, by the prices of FLOPs, which they are not


class Counted(NamedTuple):
    """Holds one operation of a program, over all the turns of the loops around it."""

    scope: str  # path of the flax module, "layer_03/heavy/q"; "" outside of any
    op: Op
    elementwise: int = 0
    kind: str = "elementwise"  # dot, conv, fft, attention, scan, int8, move or elementwise
    conditional: bool = False  # in a branch: another one might run in its place


class UnpricedOp(RunError):
    """Says that an operation of the program has no price, so that its cost is unknown."""


class _Step(NamedTuple):
    """Holds one equation that is needed."""

    eqn: Any
    used: list[bool]  # which of its results are needed
    context: Context


def operations(fn: Callable, params: Any, *args: Any, **kwargs: Any) -> list[Counted]:
    """Returns the operations of fn(params, *args, **kwargs) in program order.

    `params` are the weights: bytes of operands that come from them, or from constants of the
    program, are in `op.weights`, all others in `op.bytes`. A weight that a loop reads again in
    every turn counts once, a stack of weights that it goes through counts in full. Work that is
    elementwise alone has op == Op(). Arrays may be `jax.ShapeDtypeStruct`. Raises UnpricedOp.
    """
    with device.counting():
        program = jax.make_jaxpr(lambda p, a, k: fn(p, *a, **k))(params, args, kwargs)
    jaxpr = open_jaxpr(program)
    held = len(jax.tree.leaves(params))
    weights = [Weight(size_of(v.aval)) if i < held else None for i, v in enumerate(jaxpr.invars)]
    return _all(jaxpr, weights, Context(constants=True))


def count(fn: Callable, *args: Any, **kwargs: Any) -> Counts:
    """Returns what one call of fn(*args, **kwargs) costs; arrays may be `jax.ShapeDtypeStruct`.

    Raises UnpricedOp.
    """
    with device.counting():
        program = jax.make_jaxpr(lambda a, k: fn(*a, **k))(args, kwargs)
    return count_jaxpr(program)


def count_jaxpr(
    closed: Any, *, trips: int | None = None, weights: Sequence[float] | None = None
) -> Counts:
    """Returns what one run of a (closed) jaxpr costs.

    trips: how often each data-dependent `while` runs; without it such a loop raises UnpricedOp.
    weights: how often each branch of a `cond` with that many branches is taken; without it the
    dearest branch counts.
    """
    jaxpr = open_jaxpr(closed)
    branches = None if weights is None else tuple(weights)
    context = Context(trips=trips, branches=branches)
    return total(_all(jaxpr, [None] * len(jaxpr.invars), context))


def total(counted: Iterable[Counted]) -> Counts:
    """Returns the sum over operations; weights count among the bytes."""
    by: Counter = Counter()
    elementwise = moved = int8 = 0
    for _, op, more, kind, _ in counted:
        if kind not in ("elementwise", "move", "int8"):
            by[kind] += op.flops
        elementwise += more
        moved += op.bytes + op.weights
        int8 += op.int8
    return Counts(sum(by.values()), dict(by), elementwise, moved, int8)


# the walk


def _all(body: Any, weights: list[Weight | None], context: Context) -> list[Counted]:
    """Returns the operations of a jaxpr all of whose results are wanted."""
    jaxpr = open_jaxpr(body)
    return _walk(jaxpr, [True] * len(jaxpr.outvars), weights, context)[0]


def _walk(
    jaxpr: Any, wanted: list[bool], weights: list[Weight | None], context: Context
) -> tuple[list[Counted], list[Weight | None]]:
    """Returns the operations that the wanted results need, and which results are weights."""
    env: Env = {v: w for v, w in zip(jaxpr.invars, weights, strict=True) if w is not None}
    if context.constants:
        env.update((v, Weight(size_of(v.aval))) for v in jaxpr.constvars)
    live = _live(jaxpr, wanted)

    # the equations of a fused region are one group, which stands where the last of them does
    groups: dict[int | str, list[_Step]] = {}
    for i, (eqn, used) in enumerate(live):
        scope = scope_of(eqn, context.scope)
        region = None if context.fused else region_of(scope)
        key = i if region is None else region
        step = _Step(eqn, used, context._replace(scope=scope, fused=context.fused or bool(region)))
        groups[key] = [*groups.pop(key, ()), step]

    found: list[Counted] = []
    for key, steps in groups.items():
        if isinstance(key, int):
            counted, held = _equation(*steps[0], env)
            env.update((v, w) for v, w in zip(steps[0].eqn.outvars, held, strict=True) if w)
        else:
            outside = _needed(jaxpr, wanted)
            for other, others in groups.items():
                if other != key:
                    outside.update(v for step in others for v in step.eqn.invars if is_var(v))
            counted = [_fused(steps, outside, env)]
        for one in counted:
            _append(found, one)
    return found, [held_by(v, env, context) for v in jaxpr.outvars]


def _live(jaxpr: Any, wanted: list[bool]) -> list[tuple[Any, list[bool]]]:
    """Returns the equations that the wanted results need, each with which of its own are needed."""
    needed = _needed(jaxpr, wanted)
    found = []
    for eqn in reversed(jaxpr.eqns):
        used = [v in needed for v in eqn.outvars]
        if any(used) or eqn.effects:
            found.append((eqn, used))
            needed.update(v for v in eqn.invars if is_var(v))
    return found[::-1]


def _needed(jaxpr: Any, wanted: list[bool]) -> set:
    """Returns the variables of the wanted results."""
    return {v for v, want in zip(jaxpr.outvars, wanted, strict=True) if want and is_var(v)}


def _append(found: list[Counted], one: Counted) -> None:
    """Appends an operation; work that is fused with the operation before it joins that one."""
    if found:
        last = found[-1]
        alone = one.kind == "elementwise" and one.op == last.op == Op()
        recurrent = one.kind == last.kind == "scan"
        if last.scope == one.scope and (alone or recurrent):
            found[-1] = last._replace(
                op=_sum([last.op, one.op]), elementwise=last.elementwise + one.elementwise
            )
            return
    found.append(one)


def _fused(steps: list[_Step], outside: set, env: Env) -> Counted:
    """Returns the one operation that a fused region is; `outside` is what is used outside of it."""
    inside: list[Counted] = []
    operands: dict[Any, None] = {}  # in order, each once
    made: set = set()
    for step in steps:
        inside += _equation(*step, env)[0]
        operands.update((v, None) for v in step.eqn.invars if is_var(v) and v not in made)
        made.update(step.eqn.outvars)
    results = [v for step in steps for v in step.eqn.outvars if v in outside]
    whole = _sum(counted.op for counted in inside)
    context = steps[0].context
    return Counted(
        module_path(region_of(context.scope) or ""),
        traffic_of(list(operands), results, env, context)._replace(
            flops=whole.flops, int8=whole.int8
        ),
        sum(counted.elementwise for counted in inside),
        "attention",
    )


def _equation(
    eqn: Any, used: list[bool], context: Context, env: Env
) -> tuple[list[Counted], list[Weight | None]]:
    """Returns the operations of one equation, and which of its results are weights."""
    operation = _operation(eqn, env, context)
    if operation is None:
        return _enter(eqn, used, context, env)
    kind, op, elementwise = operation
    counted = Counted(module_path(context.scope), op, elementwise * context.times, kind)
    empty = op == Op() and not elementwise and kind in ("elementwise", "move")
    return ([] if empty else [counted]), results_of(eqn, env, context)


def _operation(eqn: Any, env: Env, context: Context) -> tuple[str, Op, int] | None:
    """Returns (kind, operation over all turns, elementwise work of one turn) of an equation.

    Returns None for calls, loops and branches, and for what has no price.
    """
    name, times = eqn.primitive.name, context.times
    outs = [v.aval for v in eqn.outvars]
    ins = [v.aval for v in eqn.invars]

    # elementwise work, which is FLOPs in a recurrence
    if name in ELEMENTWISE or name in REDUCTIONS:
        amount = sum(map(size_of, outs)) if name in ELEMENTWISE else size_of(ins[0])
        op = Op() if name in ELEMENTWISE else traffic_of(eqn.invars, eqn.outvars, env, context)
        if RECURRENCE not in context.scope:
            kind = "elementwise" if name in ELEMENTWISE else "move"
            return kind, op, amount
        return "scan", op._replace(flops=times * amount * complex_work(name, ins)), 0

    # what moves
    if name in MOVES:
        return "move", move_of(eqn, env, context), 0
    if name.startswith("scatter"):  # scatter-add, scatter_mul …: the old values are read too
        return "move", Op(bytes=3 * times * bytes_of(ins[2:])), size_of(ins[2])
    if name in ("sort", "top_k", "approx_top_k"):
        length = max(ins[0].shape[eqn.params.get("dimension", -1)], 1)
        steps = max(1, (length - 1).bit_length())
        return "move", traffic_of(eqn.invars, eqn.outvars, env, context), steps * size_of(ins[0])

    # what has a price
    if name not in PRICES:
        return None
    kind, price = PRICES[name]
    amount = times * price(eqn.params, ins, outs)
    if kind == "dot" and FUSED_CAUSAL_ATTENTION in context.scope:
        amount = _visible(amount, eqn)
    op = traffic_of(eqn.invars, eqn.outvars, env, context)
    if kind in ("dot", "conv") and jax.numpy.issubdtype(ins[0].dtype, jax.numpy.integer):
        return "int8", op._replace(int8=amount), 0
    return kind, op._replace(flops=amount), 0


def _enter(
    eqn: Any, used: list[bool], context: Context, env: Env
) -> tuple[list[Counted], list[Weight | None]]:
    """Returns `_equation` of a loop, a branch, or a call whose parameters hold exactly one jaxpr.

    That of a custom derivative is the function itself. Raises UnpricedOp for other operations.
    """
    name, params = eqn.primitive.name, eqn.params
    nothing: list[Weight | None] = [None] * len(eqn.outvars)
    if name == "while":
        return _while(eqn, env, context), nothing
    if name == "cond":
        return _cond(eqn, env, context), nothing
    bodies = [body for body in map(open_jaxpr, params.values()) if body is not None]
    if len(bodies) != 1:
        raise UnpricedOp(
            f"the operation {name!r} has no price",
            "add it to cerebra_jax/cost/primitives.py, with a test",
        )
    (body,) = bodies

    # loops, and programs of several devices, of which the body is one's share
    if name == "scan":
        variable = slice(params["num_consts"], params["num_consts"] + params["num_carry"])
        weights = passed(body.invars, eqn.invars, env, context)
        weights[variable] = [None] * params["num_carry"]
        inside = context._replace(times=context.times * params["length"])
        return _all(body, weights, inside), nothing
    if name == "shard_map":
        manual = params.get("manual_axes", params["mesh"].axis_names)
        devices = math.prod(params["mesh"].shape[axis] for axis in manual)
        inside = context._replace(times=context.times * devices)
        return _all(body, passed(body.invars, eqn.invars, env, context), inside), nothing

    # plain calls
    weights: list[Weight | None] = [None] * len(body.invars)
    if len(body.invars) == len(eqn.invars):
        weights = passed(body.invars, eqn.invars, env, context)
    inside = context._replace(times=context.times * params.get("global_axis_size", 1))
    if len(used) != len(body.outvars):
        return _all(body, weights, inside), nothing
    return _walk(body, used, weights, inside)


def _while(eqn: Any, env: Env, context: Context) -> list[Counted]:
    """Returns the operations of a loop whose length depends on data, for the given trips."""
    if context.trips is None:
        raise UnpricedOp(
            "the program has a while loop whose length depends on data",
            "give count_jaxpr(..., trips=N), or loop a fixed number of times (scan)",
        )
    first = eqn.params["cond_nconsts"]
    last = first + eqn.params["body_nconsts"]
    inside = context._replace(times=context.times * context.trips)
    found = []
    for key, consts in (
        ("cond_jaxpr", eqn.invars[:first]),
        ("body_jaxpr", eqn.invars[first:last]),
    ):
        body = open_jaxpr(eqn.params[key])
        weights = passed(body.invars[: len(consts)], consts, env, context)
        found += _all(body, weights + [None] * (len(body.invars) - len(consts)), inside)
    return found


def _cond(eqn: Any, env: Env, context: Context) -> list[Counted]:
    """Returns the operations of the dearest branch, or of all in their given proportions."""
    branches = []
    for branch in eqn.params["branches"]:
        body = open_jaxpr(branch)
        branches.append(_all(body, passed(body.invars, eqn.invars[1:], env, context), context))
    if context.branches is None or len(context.branches) != len(branches):
        return [one._replace(conditional=True) for one in max(branches, key=_dearness)]
    return [
        _scaled(counted, Fraction(fraction))
        for fraction, branch in zip(context.branches, branches, strict=True)
        for counted in branch
    ]


def _dearness(branch: list[Counted]) -> tuple[int, int]:
    products = sum(counted.op.flops + counted.op.int8 for counted in branch)
    return products, sum(counted.elementwise for counted in branch)


def _scaled(counted: Counted, fraction: Fraction) -> Counted:
    op = Op(*(round(fraction * amount) for amount in counted.op))
    return counted._replace(op=op, elementwise=round(fraction * counted.elementwise))


def _sum(ops: Iterable[Op]) -> Op:
    return Op(*map(sum, zip(Op(), *ops, strict=True)))


def _visible(flops: int, eqn: Any) -> int:
    """Returns the FLOPs of the visible pairs, of those of a product over all L x L pairs."""
    (contract, _), (batch, _) = eqn.params["dimension_numbers"]
    left, right = (v.aval for v in eqn.invars)
    depth = math.prod(left.shape[i] for i in contract)
    kept = depth * math.prod(left.shape[i] for i in batch)
    sizes = [depth, size_of(left) // max(1, kept), size_of(right) // max(1, kept)]
    L = next((size for size in sizes if sizes.count(size) > 1), None)
    if L is None:
        raise UnpricedOp(
            f"a product of sizes {sizes} is no full square of causal attention",
            f"name the scope {FUSED_ATTENTION!r}, or give it as many keys as queries",
        )
    return flops * prices.causal_pairs(L) // max(1, L * L)
