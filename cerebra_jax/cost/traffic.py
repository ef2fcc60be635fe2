"""Estimates what a compiled program moves through memory, and its time, from its jaxpr.

`cost/count.py` counts the traffic that no compiler can save. Compiled programs move two to three
times as much: results are written and read again between kernels. Here kernels are formed as XLA
forms them on a GPU:

- A matmul, a fused attention, a sort, a scatter, … is a kernel. Its operands and results are in
  memory.
- Elementwise work, gathers and slices join the kernels that use them, and are computed again in
  each of these unless keeping the result moves less.
- A reduction ends a kernel. Kernels that read the same arrays are one.
- What a loop stacks is cleared once, and then each slice is written by a kernel of its own. A slice
  that a matmul reads is copied out of the stack first.

`benchmarks/compiled.py` shows the estimate beside what it reads from compiled programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cerebra_jax.cost import scopes
from cerebra_jax.cost.device import Device
from cerebra_jax.cost.jaxprs import open_jaxpr
from cerebra_jax.cost.primitives import ELEMENTWISE, PRICES, REDUCTIONS, bytes_of

_ALIASES = frozenset(
    """bitcast_convert_type copy copy_p expand_dims layout_constraint mesh_cast name
    optimization_barrier pbroadcast pcast pvary random_unwrap random_wrap reshape reshard
    sharding_constraint squeeze stop_gradient transpose""".split()
)
"""The same memory under another name; a transposed operand of a matmul too."""

_FUSIBLE = ELEMENTWISE | frozenset(
    """broadcast_in_dim concatenate convert_element_type dynamic_slice gather iota pad rev slice
    split stack tile random_seed random_split random_fold_in random_bits""".split()
)
_CUTS = frozenset("dynamic_slice gather slice split".split())
"""They read as much of their operand as they give."""

_UPDATES = frozenset("dynamic_update_slice scatter".split())
_CALLS = frozenset("call closed_call jit pjit remat remat2 checkpoint core_call".split())
SMALL = 1 << 12
"""Bytes of arrays that are not looked at."""


START = 2e-6
"""Seconds that every kernel of a GPU takes beside its work."""

MATMUL, FORWARD, BACKWARD, COPY = 0.71, 0.41, 0.30, 0.90
"""Parts of a chip's peaks that we assume a large kernel to reach: a matmul, fused attention forward
and backward, a copy. On an H100 these are 700, 410 and 300 TFLOP/s, and 3 TB/s."""


class Estimate(NamedTuple):
    """Holds what a program takes."""

    kernels: int = 0
    bytes: int = 0
    seconds: float = 0.0  # each kernel: the dearer of FLOPs and bytes, and its start

    def plus(self, other: Estimate) -> Estimate:
        kernels, moved = self.kernels + other.kernels, self.bytes + other.bytes
        return Estimate(kernels, moved, self.seconds + other.seconds)

    def times(self, n: int) -> Estimate:
        return Estimate(n * self.kernels, n * self.bytes, n * self.seconds)


class _Equation(NamedTuple):
    """Holds one operation of a flattened jaxpr; values are numbers."""

    name: str
    ins: tuple[int, ...]  # arrays alone
    outs: tuple[int, ...]
    eqn: Any
    region: str  # of a fused attention; "" outside


class _Kernel(NamedTuple):
    reads: dict[int, int]  # {value: bytes}
    writes: frozenset[int]


class _Body:
    """Flattens a jaxpr: calls are entered, and every value has a number and a size."""

    def __init__(self, jaxpr: Any):
        self.sizes: list[int] = []
        self.equations: list[_Equation] = []
        self.inputs = [self._new(v) for v in (*jaxpr.constvars, *jaxpr.invars)]
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), self.inputs, strict=True))
        self._flatten(jaxpr, env, "")
        self.outputs = [env[v] for v in jaxpr.outvars if v in env]
        self.equations = self._needed()

    def _new(self, v: Any) -> int:
        self.sizes.append(bytes_of([v.aval]))
        return len(self.sizes) - 1

    def _flatten(self, jaxpr: Any, env: dict[Any, int], scope: str) -> None:
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            here = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
            if eqn.params.get("name") in (scopes.FUSED_ATTENTION, scopes.FUSED_CAUSAL_ATTENTION):
                here = f"{here}/{eqn.params['name']}"
            ins = [env[v] for v in eqn.invars if not hasattr(v, "val") and v in env]
            body = self._call(eqn, name)
            if body is not None and len(body.invars) == len(eqn.invars):
                inner = {v: self._new(v) for v in body.constvars}
                for var, v in zip(body.invars, eqn.invars, strict=True):
                    known = not hasattr(v, "val") and v in env
                    inner[var] = env[v] if known else self._new(var)
                self._flatten(body, inner, here)
                for var, v in zip(eqn.outvars, body.outvars, strict=True):
                    known = not hasattr(v, "val") and v in inner
                    env[var] = inner[v] if known else self._new(var)
            elif name in _ALIASES and ins:
                env[eqn.outvars[0]] = ins[0]
                for var, value in zip(eqn.outvars, ins, strict=False):
                    env[var] = value
            else:
                outs = [self._new(v) for v in eqn.outvars]
                env.update(zip(eqn.outvars, outs, strict=True))
                region = scopes.region_of(here) or ""
                self.equations.append(_Equation(name, tuple(ins), tuple(outs), eqn, region))

    def _call(self, eqn: Any, name: str) -> Any:
        if name in ("scan", "while", "cond", "shard_map"):
            return None
        bodies = [b for b in map(open_jaxpr, eqn.params.values()) if b is not None]
        entered = name in _CALLS or name.startswith(("custom_", "remat", "checkpoint"))
        return bodies[0] if bodies and entered else None

    def _needed(self) -> list[_Equation]:
        needed, found = set(self.outputs), []
        for equation in reversed(self.equations):
            if needed.intersection(equation.outs) or equation.eqn.effects:
                needed.update(equation.ins)
                found.append(equation)
        return found[::-1]


def estimate(closed: Any, device: Device) -> Estimate:
    """Returns what a (closed) jaxpr takes when it is compiled for a device.

    On a GPU it has been compared with compiled programs.
    """
    return _run(_Body(open_jaxpr(closed)), device)


class _Work(NamedTuple):
    """Says what a kernel computes beside what it moves."""

    flops: int = 0
    dtype: str = "float32"
    reached: float = MATMUL  # part of the peak


_MOVES_ONLY = _Work()


def one_kernel(size: int, device: Device, work: _Work = _MOVES_ONLY) -> Estimate:
    """Returns one kernel that moves so many bytes."""
    computing = work.flops / (work.reached * device.peak(work.dtype))
    return Estimate(1, size, max(computing, size / (COPY * device.bandwidth)) + START)


def _run(
    body: _Body, device: Device, carried: int | None = None, sliced: frozenset[int] = frozenset()
) -> Estimate:
    """Returns what one run of a body takes.

    carried: how many of its outputs are not stacked by a loop (None: all); sliced: inputs that are
    slices of a stack.
    """
    total = Estimate()
    makers = {out: equation for equation in body.equations for out in equation.outs}
    stacked = [] if carried is None else body.outputs[carried:]
    kept = _in_memory(body, makers, body.outputs[:carried])
    kernels: list[_Kernel] = []

    # slices into and out of the stacks
    for value in stacked:
        maker = makers.get(value)
        if value in kept or maker is None or not _is_fusible(maker):
            size = 2 * body.sizes[value]
        else:
            size = sum(_reads(maker, body, makers, kept).values()) + body.sizes[value]
        total = total.plus(one_kernel(size, device))
    for value in sliced:
        users = (one for one in body.equations if value in one.ins)
        if any(not _is_fusible(one) and one.name not in REDUCTIONS for one in users):
            total = total.plus(one_kernel(2 * body.sizes[value], device))

    # kernels
    regions: dict[str, list[_Equation]] = {}
    for equation in body.equations:
        if equation.region:
            regions.setdefault(equation.region, []).append(equation)
        elif _is_fusible(equation) or equation.name in REDUCTIONS:
            written = [out for out in equation.outs if out in kept]
            if written:
                reads = _reads(equation, body, makers, kept)
                kernels.append(_Kernel(reads, frozenset(written)))
        else:
            total = total.plus(_alone(equation, body, device))
    for equations in regions.values():
        total = total.plus(_of_region(equations, body, device))
    for kernel in _joined(kernels):
        size = sum(kernel.reads.values()) + sum(body.sizes[out] for out in kernel.writes)
        total = total.plus(one_kernel(size, device))
    return total


def _is_fusible(equation: _Equation) -> bool:
    return equation.name in _FUSIBLE and not equation.region


def _in_memory(body: _Body, makers: dict[int, _Equation], outputs: Sequence[int]) -> set[int]:
    """Returns the values that are in memory."""
    kept = set(body.inputs) | set(outputs)
    users: dict[int, list[_Equation]] = {}
    for equation in body.equations:
        for value in equation.ins:
            users.setdefault(value, []).append(equation)
        if not _is_fusible(equation):
            kept.update(equation.outs)
            if equation.name not in REDUCTIONS:
                kept.update(equation.ins)

    # a value that several kernels would compute again is kept where that moves less
    for equation in body.equations:
        if not _is_fusible(equation):
            continue
        for out in equation.outs:
            uses = len(users.get(out, ()))
            if out in kept or uses < 2:
                continue
            size = body.sizes[out]
            again = sum(_reads(equation, body, makers, kept).values())
            if again * uses > again + size * (1 + uses):
                kept.add(out)
    return kept


def _reads(
    equation: _Equation, body: _Body, makers: dict[int, _Equation], kept: set[int]
) -> dict[int, int]:
    """Returns what the kernel that ends in an equation reads, {value: bytes}."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    pending = [equation]
    while pending:
        one = pending.pop()
        for i, value in enumerate(one.ins):
            whole = body.sizes[value]
            if one.name in _CUTS and i == 0:
                whole = min(whole, sum(body.sizes[out] for out in one.outs))
            if value in kept or value not in makers:
                found[value] = min(body.sizes[value], found.get(value, 0) + whole)
            elif value not in seen:
                seen.add(value)
                pending.append(makers[value])
    return found


def _joined(kernels: Sequence[_Kernel]) -> list[_Kernel]:
    """Returns the kernels after those that read what another one reads have joined it."""
    found: list[_Kernel] = []
    for kernel in kernels:
        large = {value for value, size in kernel.reads.items() if size > SMALL}
        for i, other in enumerate(found):
            theirs = {value for value, size in other.reads.items() if size > SMALL}
            apart = not (kernel.writes & other.reads.keys() or other.writes & kernel.reads.keys())
            if large and apart and (large <= theirs or theirs <= large):
                reads = {
                    value: max(kernel.reads.get(value, 0), other.reads.get(value, 0))
                    for value in kernel.reads.keys() | other.reads.keys()
                }
                found[i] = _Kernel(reads, kernel.writes | other.writes)
                break
        else:
            found.append(kernel)
    return found


def _alone(equation: _Equation, body: _Body, device: Device) -> Estimate:
    """Returns what an operation that is a kernel, or a loop, takes."""
    eqn, name = equation.eqn, equation.name
    own = sum(body.sizes[value] for value in {*equation.ins, *equation.outs})

    # loops and branches
    if name == "scan":
        inner = _Body(open_jaxpr(eqn.params["jaxpr"]))
        first = len(inner.inputs) - len(open_jaxpr(eqn.params["jaxpr"]).invars)
        first += eqn.params["num_consts"] + eqn.params["num_carry"]
        sliced = frozenset(inner.inputs[first:])
        once = _run(inner, device, eqn.params["num_carry"], sliced)
        return once.times(eqn.params["length"]).plus(one_kernel(_stacked(eqn), device))
    if name == "while":
        return _run(_Body(open_jaxpr(eqn.params["body_jaxpr"])), device)
    if name == "cond":
        branches = (_run(_Body(open_jaxpr(one)), device) for one in eqn.params["branches"])
        return max(branches, key=lambda branch: branch.bytes)
    if name == "shard_map":
        return _run(_Body(open_jaxpr(eqn.params["jaxpr"])), device)

    # kernels
    if name in _UPDATES:  # in place
        return one_kernel(2 * sum(body.sizes[value] for value in equation.ins[1:]), device)
    if name.startswith("scatter"):
        size = body.sizes[equation.outs[0]] + 3 * body.sizes[equation.ins[-1]]
        return one_kernel(size, device)
    return one_kernel(own, device, _work(equation))


def _work(equation: _Equation) -> _Work:
    """Returns the FLOPs of an operation, and at which rate they run."""
    eqn = equation.eqn
    if equation.name not in PRICES:
        return _Work()
    avals = [v.aval for v in eqn.invars]
    flops = PRICES[equation.name][1](eqn.params, avals, [v.aval for v in eqn.outvars])
    reached = MATMUL
    if equation.name.startswith("dot_product_attention"):
        reached = BACKWARD if "_bwd" in equation.name else FORWARD
    return _Work(flops, "bfloat16" if avals[0].dtype.itemsize < 4 else "float32", reached)


def _stacked(eqn: Any) -> int:
    """Returns the bytes of what a scan stacks, which are cleared before it."""
    carried = eqn.params["num_carry"]
    return bytes_of([v.aval for v in eqn.outvars[carried:]])


def _of_region(equations: Iterable[_Equation], body: _Body, device: Device) -> Estimate:
    """Returns what a fused kernel takes: operands from outside, results used outside."""
    equations = list(equations)
    made = {out for equation in equations for out in equation.outs}
    outside = {value for equation in equations for value in equation.ins} - made
    inner = set(map(id, equations))
    used = set(body.outputs)
    for equation in body.equations:
        if id(equation) not in inner:
            used.update(equation.ins)
    size = sum(body.sizes[value] for value in outside | (made & used))
    works = [_work(equation) for equation in equations]
    flops = sum(work.flops for work in works)
    if scopes.FUSED_CAUSAL_ATTENTION in equations[0].region:
        flops //= 2
    low = any(work.dtype == "bfloat16" for work in works)
    reached = BACKWARD if "transpose(" in equations[0].region else FORWARD
    return one_kernel(size, device, _Work(flops, "bfloat16" if low else "float32", reached))
