"""Tells what a training step will cost before it runs.

It is counted from shapes, and compiled and timed where that is quick. Nothing is trained.
Parameters are only allocated (as zeros) for small models; a large one is known by its shapes alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cerebra_jax.cost import count
from cerebra_jax.cost.device import Device, roofline_seconds
from cerebra_jax.types import Cost

SMALL_PARAMS = 30_000_000  # up to here a step is compiled and timed
TIMED_SECONDS = 0.25  # the timed batch is cut until its matmuls alone should take less than this
EFFICIENCY = 0.4
"""Fraction of the roofline that an untimed step is assumed to reach: a guess, and printed as one.

Large dense models report 0.3 to 0.6 (PaLM 0.46: Chowdhery et al. 2022, arXiv:2204.02311).
"""


class Row(NamedTuple):
    """Holds one part of a model, summed over `count` equal blocks; forward FLOPs per example."""

    block: str
    part: str
    count: int
    model: int
    executed: int
    dense: int  # of the dense Transformer's part of the same name, 0 where it has none


class Step(NamedTuple):
    """Holds what one optimizer step costs on one device."""

    flops: int  # forward and backward, executed
    elementwise: int
    bytes: int
    activations: int  # bytes
    seconds: float
    timed: int  # examples that were compiled and timed, and scaled to the step
    # 0: seconds and activations are estimates


class Batches(NamedTuple):
    """Describes the micro-batches of an optimizer step on one device."""

    shapes_of: Callable[[int], Any]  # the shapes of a batch of n examples
    size: int  # examples of a micro-batch
    accum: int = 1  # micro-batches of a step


def rows(cost: Cost, dense: Cost) -> list[Row]:
    """Returns the parts of a cost in order.

    Neighbouring blocks with equal parts are one row, such as `layer_01-04`.
    """
    # the parts of each block
    blocks: dict[str, dict[str, tuple[int, int, int]]] = {}
    for name, model in cost.model.items():
        block, _, part = name.partition("/")
        price = (model, cost.executed[name], dense.executed.get(name, 0))
        blocks.setdefault(block, {})[part] = price

    # equal neighbours
    groups: list[tuple[list[str], dict[str, tuple[int, int, int]]]] = []
    for block, parts in blocks.items():
        if groups and groups[-1][1] == parts:
            groups[-1][0].append(block)
        else:
            groups.append(([block], parts))

    out = []
    for names, parts in groups:
        span = names[0] if len(names) == 1 else f"{names[0]}-{names[-1].rpartition('_')[2]}"
        out += [
            Row(span, part, len(names), *(len(names) * x for x in price))
            for part, price in parts.items()
        ]
    return out


def tree_bytes(tree: Any) -> int:
    """Returns the bytes of all arrays (or shapes) of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def step(
    loss: Callable, params: Any, batches: Batches, device: Device, dtype: str, deadline: float
) -> Step:
    """Returns the cost of the gradients of loss(params, batch) that an optimizer step takes.

    params are `jax.ShapeDtypeStruct`s. Small models are compiled and timed, unless it is past
    `deadline` (time.monotonic); the batch is cut to stay quick and its figures are scaled. For
    others it is the roofline at `EFFICIENCY`, and what the backward pass keeps: residuals as
    traced, of which XLA may drop or recompute some.
    """
    shapes_of, size, accum = batches
    gradient = jax.value_and_grad(loss)
    counts = count.count(gradient, params, shapes_of(size))
    flops = accum * counts.flops
    elementwise = accum * counts.elementwise
    moved = accum * counts.bytes
    kept = _residuals(loss, params, shapes_of(size))

    # an estimate, if timing takes too long
    params_size = sum(leaf.size for leaf in jax.tree.leaves(params))
    if params_size > SMALL_PARAMS or time.monotonic() >= deadline:
        seconds = roofline_seconds(flops, moved, device, dtype) / EFFICIENCY
        return Step(flops, elementwise, moved, kept, seconds, 0)

    # a part of the batch that is quick enough
    cut = size
    while cut > 1 and counts.flops * cut / size / device.peak(dtype) > TIMED_SECONDS:
        cut = -(-cut // 2)
    seconds, temporary = _timed(gradient, params, shapes_of(cut), deadline)
    if cut < size:  # temporaries are a constant and a part that grows as the residuals do
        temporary += kept - _residuals(loss, params, shapes_of(cut))
    return Step(flops, elementwise, moved, temporary, accum * seconds * size / cut, cut)


def _residuals(loss: Callable, params: Any, batch: Any) -> int:
    """Returns the bytes that the backward pass of loss keeps, beside the parameters."""
    backward = jax.eval_shape(lambda p, b: jax.vjp(lambda p: loss(p, b), p)[1], params, batch)
    return max(0, tree_bytes(backward) - tree_bytes(params))


def _timed(gradient: Callable, params: Any, batch: Any, deadline: float) -> tuple[float, int]:
    """Returns the best seconds of at most four runs on zeros, and the bytes of temporaries."""
    compiled = jax.jit(gradient).lower(params, batch).compile()
    analysis = compiled.memory_analysis()
    temporary = analysis.temp_size_in_bytes if analysis is not None else 0
    args = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (params, batch))
    best = float("inf")
    for _ in range(4):
        start = time.monotonic()
        jax.block_until_ready(compiled(*args))
        best = min(best, time.monotonic() - start)
        if time.monotonic() > deadline:
            break
    return best, temporary
