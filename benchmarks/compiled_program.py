"""Reads the text of a compiled program: its kernels, with the bytes, FLOPs and time of each.

The text is XLA's optimized HLO. Each instruction that is not free is one kernel (a fusion, a call
of a library, a copy, …), and the kernels of a loop count as often as the loop turns. Bytes are what
a kernel reads and writes if nothing stays in a cache; of a slice only the slice. This module
imports nothing of the package and no JAX.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_SIZES = {"pred": 1, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
_SHAPE = re.compile(
    r"\b(pred|token|opaque|[suc]\d+|bf16|f\d+\w*)\[([\d,]*)\]"
    r"(?:\{([^}]*)\})?"
)
_ON_CHIP = "S(1)"  # in the layout of an array in a TPU's vector memory
_FREE = frozenset(
    """parameter constant tuple get-tuple-element bitcast partition-id replica-id after-all
    opt-barrier add-dependency async-done async-update copy-done slice-done domain all-reduce-done
    all-gather-done collective-permute-done""".split()
)
_FREE_CALLS = ('"ConcatBitcast"', '"AllocateBuffer"')  # of a TPU: names for what is there
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Instruction(NamedTuple):
    """Holds one line of a computation."""

    name: str
    type: str  # of its result, "bf16[8,16]{1,0}" or a tuple of such
    op: str
    operands: tuple[str, ...]
    attributes: str  # all that stands behind the operands
    is_root: bool


Computation = list[Instruction]


class Program(NamedTuple):
    """Holds the computations of a program by name, and the name of the one that is called first."""

    computations: dict[str, Computation]
    entry: str

    def of(self, instruction: Instruction, *keys: str) -> Computation:
        """Returns the computation that the first of these attributes names."""
        name = next(filter(None, (_attribute(instruction, key) for key in keys)), "")
        return self.computations.get(name, [])


class Kernel(NamedTuple):
    """Holds one kernel, and how often a call of the program runs it."""

    name: str
    label: str  # what it does: "fusion:loop", "dot", "call:__cublas$gemm", …
    times: int
    bytes: int  # read and written, each time
    flops: int  # of matmuls, convolutions and attention, each time
    dtype: str  # of the first operand of these
    cycles: int  # as a TPU's compiler estimates, 0 where it does not
    loop: str  # the outermost loop around it, "" outside of any
    turns: int  # of that loop
    source: str  # the operation that it was made from


class Rates(NamedTuple):
    """Holds what a model of a device's time needs; rates are per second."""

    matmul: dict[str, float]  # FLOP/s by dtype
    attention: tuple[float, float]  # FLOP/s of fused attention, forward and backward
    bandwidth: float  # bytes/s
    start: float  # seconds that each kernel takes beside its work
    clock: float = 0.0  # cycles/s, where the compiler estimates cycles


# parsing


def parse(text: str) -> Program:
    """Returns the computations of a program's text. Raises ValueError where there is none."""
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation | None = None
    for line in _lines(text):
        if current is None:
            found = re.match(r"(ENTRY )?%?([\w.\-$]+)\s*(\(.*\))?\s*->\s*.*\{\s*$", line)
            if found:
                current = computations.setdefault(found.group(2), [])
                entry = found.group(2) if found.group(1) else entry
        elif line == "}":
            current = None
        else:
            instruction = _instruction(line)
            if instruction:
                current.append(instruction)
    if not entry:
        raise ValueError("the text holds no compiled program")
    return Program(computations, entry)


def _lines(text: str) -> Iterator[str]:
    """Yields the lines of a program, those of one instruction as one.

    What a kernel of a TPU says of itself stands on lines of its own, which are not indented.
    """
    held, inside = "", False
    for line in text.splitlines():
        if inside and line != "}" and not line.startswith(" "):
            held += line
            continue
        yield held
        held = line
        inside = line.endswith("{") if not inside else line != "}"
    yield held


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-$]+) = (.*)$", line)
    if not found:
        return None
    rest = found.group(3)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].strip()
    op = re.match(r"([\w\-]+)\(", rest)
    if not op:
        return None
    end = _closing(rest, op.end() - 1)
    inside = rest[op.end() : end]
    operands = re.findall(r"%([\w.\-$]+)", inside)
    if not operands:  # a parameter's number or a constant's value
        operands = [word.strip().split(" ")[-1] for word in inside.split(",") if word.strip()]
    is_root = bool(found.group(1))
    return Instruction(
        found.group(2), type_, op.group(1), tuple(operands), rest[end + 1 :], is_root
    )


def _closing(text: str, start: int) -> int:
    """Returns where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return len(text)


def _attribute(instruction: Instruction, key: str) -> str:
    found = re.search(rf"\b{key}=\{{?%?([\w.\-$]+)", instruction.attributes)
    return found.group(1) if found else ""


def shapes(type_: str) -> list[tuple[str, list[int]]]:
    """Returns (dtype, sizes) of each array of a type."""
    return [
        (dtype, [int(n) for n in sizes.split(",") if n])
        for dtype, sizes, _ in _SHAPE.findall(type_)
    ]


def bytes_of(type_: str) -> int:
    """Returns the bytes of all arrays of a type; what stays on the chip moves nothing."""
    return sum(
        _itemsize(dtype) * math.prod(int(n) for n in sizes.split(",") if n)
        for dtype, sizes, layout in _SHAPE.findall(type_)
        if _ON_CHIP not in layout
    )


def _itemsize(dtype: str) -> int:
    if dtype in _SIZES:
        return _SIZES[dtype]
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits.group()) // 8) if bits else 0


# kernels


def kernels(text: str) -> list[Kernel]:
    """Returns the kernels of a program's text in the order of the program."""
    program = parse(text)
    return list(_kernels(program, program.computations[program.entry], _Place()))


class _Place(NamedTuple):
    """Says where a walk stands."""

    times: int = 1
    loop: str = ""
    turns: int = 1


def _kernels(program: Program, body: Computation, place: _Place) -> Iterator[Kernel]:
    types = {instruction.name: instruction.type for instruction in body}
    for instruction in body:
        op = instruction.op
        if op in _FREE or any(name in instruction.attributes for name in _FREE_CALLS):
            continue
        if op == "while":
            turns = trip_count(program, instruction)
            inside = place._replace(times=place.times * turns)
            if not place.loop:
                inside = inside._replace(loop=instruction.name, turns=turns)
            yield from _kernels(program, program.of(instruction, "body"), inside)
        elif op == "call":
            yield from _kernels(program, program.of(instruction, "to_apply"), place)
        elif op == "async-start":
            yield from _kernels(program, program.of(instruction, "calls"), place)
        elif op == "conditional":
            yield from _dearest(program, instruction, place)
        else:
            yield _kernel(program, instruction, types, place)


def _dearest(program: Program, instruction: Instruction, place: _Place) -> list[Kernel]:
    """Returns the kernels of the branch that moves most."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        names = [name.strip().lstrip("%") for name in listed.group(1).split(",")]
    else:
        names = [_attribute(instruction, f"{which}_computation") for which in ("true", "false")]
    branches = [list(_kernels(program, program.computations[name], place)) for name in names]
    return max(branches, key=lambda branch: sum(kernel.times * kernel.bytes for kernel in branch))


def trip_count(program: Program, instruction: Instruction) -> int:
    """Returns how often a loop turns: what the compiler knows, else the limit it compares with."""
    known = re.search(r'known_trip_count":\s*\{"n":\s*"(\d+)"', instruction.attributes)
    if known:
        return int(known.group(1))
    limits = [
        int(one.operands[0])
        for one in program.of(instruction, "condition")
        if one.op == "constant" and one.operands and re.fullmatch(r"\d+", one.operands[0])
    ]
    return max(limits, default=1)


def _kernel(
    program: Program, instruction: Instruction, types: dict[str, str], place: _Place
) -> Kernel:
    cycles = re.search(r'"estimated_cycles":\s*"(\d+)"', instruction.attributes)
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    flops, dtype = _flops(program, instruction, types)
    return Kernel(
        instruction.name,
        _label(program, instruction, flops),
        place.times,
        _bytes(program, instruction, types),
        flops,
        dtype,
        int(cycles.group(1)) if cycles else 0,
        place.loop,
        place.turns,
        source.group(1) if source else "",
    )


def _label(program: Program, instruction: Instruction, flops: int) -> str:
    if instruction.op == "custom-call":
        target = re.search(r'custom_call_target="([^"]+)"', instruction.attributes)
        return f"call:{target.group(1)}" if target else "call"
    if instruction.op != "fusion":
        return instruction.op
    if flops:
        return "fusion:dot"
    inside = {one.op for one in program.of(instruction, "calls")}
    kinds = ("sort", "scatter", "gather", "reduce", "dynamic-update-slice")
    return f"fusion:{next((kind for kind in kinds if kind in inside), 'loop')}"


# FLOPs


def _flops(program: Program, instruction: Instruction, types: dict[str, str]) -> tuple[int, str]:
    """Returns the FLOPs of an instruction with all that it calls, and the dtype of its operands."""
    first = types.get(instruction.operands[0], "") if instruction.operands else ""
    dtype = next((dtype for dtype, _ in shapes(first)), "")
    if instruction.op == "convolution":
        return _convolution(instruction, types), dtype
    if instruction.op in ("dot", "custom-call"):
        if "fmha" in instruction.attributes:
            return _fused_attention(instruction, types), dtype
        if instruction.name.startswith("splash"):
            return _splash(instruction, types), "bf16"
        stated = re.search(r'"cost_estimate":\s*\{[^}]*"flops":\s*"?(\d+)', instruction.attributes)
        return (int(stated.group(1)) if stated else _dot(instruction, types)), dtype
    if instruction.op not in ("fusion", "call"):
        return 0, ""
    body = program.of(instruction, "calls", "to_apply")
    own = {one.name: one.type for one in body}
    total, dtype = 0, ""
    for one in body:
        flops, inner = _flops(program, one, own)
        total += flops
        dtype = dtype or (inner if flops else "")
    return total, dtype


def _dot(instruction: Instruction, types: dict[str, str]) -> int:
    """Returns the FLOPs of a dot, or of a library's call whose settings say what it contracts."""
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    found = found or re.search(
        r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', instruction.attributes
    )
    if not found:
        return 0
    left = shapes(types[instruction.operands[0]])[0][1]
    depth = math.prod(left[int(i)] for i in re.findall(r"\d+", found.group(1)))
    return 2 * depth * math.prod(shapes(instruction.type)[0][1])


def _convolution(instruction: Instruction, types: dict[str, str]) -> int:
    """Returns the FLOPs of a convolution: taps that meet a number, not padding or a hole.

    A TPU's matmuls are convolutions, and batches of them have windows of mostly holes.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels, f"{instruction.name}: a convolution without dim_labels"
    left, kernel = (shapes(types[name])[0][1] for name in instruction.operands[:2])
    out = shapes(instruction.type)[0][1]
    total = 2 * kernel[labels.group(2).index("i")]
    total *= math.prod(out[labels.group(3).index(letter)] for letter in "bf")
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    settings = dict(word.split("=") for word in window.group(1).split()) if window else {}
    for axis in sorted(set(labels.group(1)) - set("bf")):
        i = int(axis)
        numbers = {key: int(text.split("x")[i]) for key, text in settings.items() if key != "pad"}
        pads = settings.get("pad", "").split("x")
        low = int(pads[i].split("_")[0]) if i < len(pads) and pads[i] else 0
        total *= _meetings(
            out[labels.group(3).index(axis)],
            kernel[labels.group(2).index(axis)],
            left[labels.group(1).index(axis)],
            low,
            numbers,
        )
    return total


def _meetings(out: int, taps: int, size: int, low: int, numbers: dict[str, int]) -> int:
    """Returns how many (result, tap) pairs of one axis meet one of its `size` numbers."""
    stride, hole = numbers.get("stride", 1), numbers.get("lhs_dilate", 1)
    dilate = numbers.get("rhs_dilate", 1)
    places = (o * stride + k * dilate - low for o in range(out) for k in range(taps))
    return sum(0 <= place <= (size - 1) * hole and place % hole == 0 for place in places)


def _fused_attention(instruction: Instruction, types: dict[str, str]) -> int:
    """Returns the FLOPs of cuDNN's attention, whose settings tell the sizes of the scores.

    Under causality half of them are visible. The backward pass has five products where the forward
    pass has two.
    """
    settings = instruction.attributes
    found = re.search(r'"intermediate_tensor_shape":\s*\{.*?"dimensions":\s*\[([^\]]*)\]', settings)
    assert found, f"{instruction.name}: attention without the sizes of its scores"
    scores = math.prod(map(int, re.findall(r"\d+", found.group(1))))
    if re.search(r'"mask_type":\s*"\w*CAUSAL', settings):
        scores //= 2
    width = shapes(types[instruction.operands[0]])[0][1][-1]
    forward = 4 * scores * width
    return forward * 5 // 2 if "fmhaSoftmaxBackward" in settings else forward


_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}  # of scores, that each of Splash's kernels computes


def _splash(instruction: Instruction, types: dict[str, str]) -> int:
    """Returns the FLOPs of one of Splash's kernels; its name says which, its operands the sizes.

    It is given the rows of the queries, as whole numbers, where its mask is causal: half of the
    scores are visible then.
    """
    operands = [shapes(types[name])[0] for name in instruction.operands]
    q, k = [sizes for dtype, sizes in operands if dtype == "bf16"][:2]
    scores = math.prod(q[:-1]) * k[-2]
    if any(dtype == "s32" for dtype, _ in operands):
        scores //= 2
    products = next(n for part, n in _PRODUCTS.items() if f"_{part}_" in instruction.name)
    return 2 * products * scores * q[-1]


# bytes


def _bytes(program: Program, instruction: Instruction, types: dict[str, str]) -> int:
    """Returns what an instruction reads and writes."""
    op = instruction.op
    if op == "fusion":
        body = program.of(instruction, "calls")
        return _reads(body) + _writes(body)
    if op in ("dynamic-slice", "gather", "slice"):
        return 2 * bytes_of(instruction.type)
    if op == "dynamic-update-slice":
        return 2 * bytes_of(types.get(instruction.operands[1], ""))
    return bytes_of(instruction.type) + sum(
        bytes_of(types.get(name, "")) for name in instruction.operands
    )


def _reads(body: Computation) -> int:
    """Returns the bytes that a fused computation reads of its parameters.

    Where only slices of a parameter are used, it reads the slices.
    """
    users: dict[str, Computation] = defaultdict(list)
    for instruction in body:
        for name in instruction.operands:
            users[name].append(instruction)

    def read(name: str, whole: int) -> int:
        total = 0
        for user in users[name]:
            first = user.operands[0] == name
            if user.op in ("dynamic-slice", "slice", "gather") and first:
                total += bytes_of(user.type)
            elif user.op in ("bitcast", "reshape"):
                total += read(user.name, whole)
            elif not (user.op == "dynamic-update-slice" and first):
                return whole
        return min(total, whole)

    parameters = [instruction for instruction in body if instruction.op == "parameter"]
    return sum(read(one.name, bytes_of(one.type)) for one in parameters)


def _writes(body: Computation) -> int:
    """Returns the bytes that a fused computation writes; of an update in place, the update."""
    by_name = {instruction.name: instruction for instruction in body}

    def written(instruction: Instruction) -> int:
        inner = [by_name[name] for name in instruction.operands if name in by_name]
        if instruction.op == "dynamic-update-slice":
            return bytes_of(by_name[instruction.operands[1]].type)
        if instruction.op == "bitcast" and inner:
            return written(inner[0])
        if instruction.op == "tuple":
            return sum(map(written, inner))
        return bytes_of(instruction.type)

    return written(next((one for one in body if one.is_root), body[-1]))


# sums


def seconds(kernel: Kernel, rates: Rates) -> float:
    """Returns the modelled time of one run of a kernel.

    Where the compiler estimates cycles these are it, and transfers that it starts early are free;
    else it is the dearer of FLOPs and bytes, and the start.
    """
    if rates.clock and kernel.label in ("copy-start", "slice-start"):
        return 0.0
    if kernel.cycles and rates.clock:
        return kernel.cycles / rates.clock
    rate = rates.matmul.get(kernel.dtype, rates.matmul["f32"])
    if "fmha" in kernel.label:
        rate = rates.attention["Backward" in kernel.label]
    if kernel.name.startswith("splash"):
        rate = rates.attention["_fwd_" not in kernel.name]
    return max(kernel.flops / rate, kernel.bytes / rates.bandwidth) + rates.start


class Summary(NamedTuple):
    """Holds the sums over all kernels of one call of a program."""

    kernels: int
    bytes: int
    flops: int
    seconds: float
    cycles: int
    kernels_a_turn: int  # of the two loops that run most kernels: the layers, forward and backward
    by_label: dict[str, dict[str, float]]


def summary(found: Iterable[Kernel], rates: Rates) -> Summary:
    """Returns the sums over kernels, the slowest kind first."""
    found = list(found)
    by_label: dict[str, dict[str, float]] = {}
    loops: Counter[str] = Counter()
    a_turn: dict[str, int] = {}
    for kernel in found:
        sums = by_label.setdefault(
            kernel.label, {"kernels": 0, "bytes": 0, "flops": 0, "seconds": 0.0}
        )
        sums["kernels"] += kernel.times
        sums["bytes"] += kernel.times * kernel.bytes
        sums["flops"] += kernel.times * kernel.flops
        sums["seconds"] += kernel.times * seconds(kernel, rates)
        if kernel.loop:
            loops[kernel.loop] += kernel.times
            a_turn[kernel.loop] = a_turn.get(kernel.loop, 0) + kernel.times // kernel.turns
    by_label = dict(sorted(by_label.items(), key=lambda item: -item[1]["seconds"]))
    total = {key: sum(sums[key] for sums in by_label.values()) for key in ("bytes", "flops")}
    return Summary(
        sum(kernel.times for kernel in found),
        int(total["bytes"]),
        int(total["flops"]),
        sum(sums["seconds"] for sums in by_label.values()),
        sum(kernel.times * kernel.cycles for kernel in found),
        sum(a_turn[loop] for loop, _ in loops.most_common(2)),
        by_label,
    )


def conditionals(text: str) -> int:
    """Returns how many branches on data one call of a program takes, loops multiplied."""
    program = parse(text)

    def inside(body: Computation, times: int) -> int:
        total = 0
        for one in body:
            if one.op == "while":
                turns = trip_count(program, one)
                total += inside(program.of(one, "body"), times * turns)
            elif one.op == "call":
                total += inside(program.of(one, "to_apply"), times)
            total += times * (one.op == "conditional")
        return total

    return inside(program.computations[program.entry], 1)
