"""What a training step will cost, before it runs: counted from shapes, and compiled and timed where that is quick.

Nothing is trained. Parameters are only allocated (as zeros) for small models; a large one is known by its shapes alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cerebra_jax.cost import count as jaxpr
from cerebra_jax.cost.device import Device, roofline_seconds
from cerebra_jax.types import Cost

SMALL_PARAMS = 30_000_000  # up to here a step is compiled and timed
TIMED_SECONDS = 0.25  # the timed batch is cut until its matmuls alone should take less than this
EFFICIENCY = 0.4
"""Share of the roofline that an untimed step is assumed to reach (large dense models report 0.3 to 0.6, PaLM 0.46:
Chowdhery et al. 2022, arXiv:2204.02311); a guess, and printed as one."""


class Row(NamedTuple):
    """One part of a model, summed over `count` equal blocks; forward FLOPs per example."""

    block: str
    part: str
    count: int
    model: int
    executed: int
    dense: int  # of the dense Transformer's part of the same name, 0 where it has none


class Step(NamedTuple):
    """One optimizer step on one device."""

    flops: int  # forward and backward, executed
    elementwise: int
    bytes: int
    activations: int  # bytes
    seconds: float
    timed: int  # examples that were compiled and timed, scaled to the step; 0: seconds and activations are estimates


def rows(cost: Cost, dense: Cost) -> list[Row]:
    """The parts of a cost in order; neighbouring blocks with equal parts are one row, `layer_01-04`."""
    blocks: dict[str, dict[str, tuple[int, int, int]]] = {}
    for name, model in cost.model.items():
        block, _, part = name.partition("/")
        price = (model, cost.executed[name], dense.executed.get(name, 0))
        blocks.setdefault(block, {})[part] = price
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
    """Bytes of all arrays (or shapes) of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def step(loss: Callable, params: Any, batch_of: Callable[[int], Any], size: int, accum: int, device: Device,
         dtype: str, deadline: float) -> Step:  # fmt: skip
    """Cost of `accum` gradients of loss(params, batch) with `size` examples each; batch_of(n) gives a batch's shapes.

    params: `jax.ShapeDtypeStruct`s. Small models are compiled and timed, unless it is past `deadline` (time.monotonic);
    the batch is cut to stay quick and its figures are scaled. Otherwise the roofline at `EFFICIENCY`, and what the
    backward pass keeps: residuals as traced, of which XLA may drop or recompute some.
    """
    gradient = jax.value_and_grad(loss)
    counts = jaxpr.count(gradient, params, batch_of(size))
    flops, elementwise, size_bytes = (
        accum * n for n in (counts.flops, counts.elementwise, counts.bytes)
    )
    kept = _residuals(loss, params, batch_of(size))
    params_size = sum(leaf.size for leaf in jax.tree.leaves(params))
    if params_size <= SMALL_PARAMS and time.monotonic() < deadline:
        cut = size
        while cut > 1 and counts.flops * cut / size / device.peak(dtype) > TIMED_SECONDS:
            cut = -(-cut // 2)
        seconds, temporary = _timed(gradient, params, batch_of(cut), deadline)
        if cut < size:  # temporaries are a constant and a share that grows as the residuals do
            temporary += kept - _residuals(loss, params, batch_of(cut))
        return Step(flops, elementwise, size_bytes, temporary, accum * seconds * size / cut, cut)
    seconds = roofline_seconds(flops, size_bytes, device, dtype) / EFFICIENCY
    return Step(flops, elementwise, size_bytes, kept, seconds, 0)


def _residuals(loss: Callable, params: Any, batch: Any) -> int:
    """Bytes that the backward pass of loss keeps, beside the parameters."""
    backward = jax.eval_shape(lambda p, b: jax.vjp(lambda p: loss(p, b), p)[1], params, batch)
    return max(0, tree_bytes(backward) - tree_bytes(params))


def _timed(gradient: Callable, params: Any, batch: Any, deadline: float) -> tuple[float, int]:
    """(best seconds of at most four runs on zeros, bytes of temporaries) of the compiled gradient."""
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
