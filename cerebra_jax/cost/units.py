"""Says what a cost is counted in: FLOPs, bytes of traffic, or seconds at a device's roofline.

An operation has FLOPs and bytes. A unit is a price for each, and an operation costs the dearer of
the two, so that the three units are one formula:

    flops    1 a FLOP
    bytes    1 a byte
    seconds  max(FLOPs / peak, bytes / bandwidth) of the device (`cost/device.py`), by operation

The bytes are those that `cost/count.py` counts: operands and results of matmuls, convolutions and
FFTs, what softmax and LayerNorm reduce, and features gathered or scattered (read and written).
Elementwise work is fused into those and moves nothing. Weights are read once for all the examples
of a micro-batch (train.batch_size / train.accum), on however many devices it runs. This module
imports no JAX.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cerebra_jax.config import ObjectiveCfg
from cerebra_jax.cost import device


class Op(NamedTuple):
    """Holds one operation of a program, by the conventions of `cost/prices.py`."""

    flops: int = 0
    bytes: int = 0  # operands and results that are no weights
    weights: int = 0  # bytes of weights, which the examples of a micro-batch share
    int8: int = 0  # products of integers, by the prices of FLOPs, which they are not

    def times(self, n: int) -> Op:
        """Returns the same weights applied to n times as many rows."""
        return Op(n * self.flops, n * self.bytes, self.weights, n * self.int8)


class Unit(NamedTuple):
    """Holds the prices of a FLOP and of a byte; `examples` share one reading of the weights."""

    name: str
    flop: float
    byte: float
    examples: int = 1

    @property
    def label(self) -> str:
        """Returns the name that reports print."""
        return LABELS[self.name]

    def price(self, ops: Iterable[Op]) -> float:
        """Returns the price of one example; in FLOPs it is an exact integer."""
        return sum(
            max(self.flop * op.flops, self.byte * (op.bytes + op.weights / self.examples))
            for op in ops
        )

    def marginal(self, ops: Iterable[Op]) -> float:
        """Returns the price without the weights: that of rows which join others."""
        return self.price(op._replace(weights=0) for op in ops)


LABELS = {"flops": "FLOPs", "bytes": "bytes moved", "seconds": "seconds at the roofline"}
FLOPS = Unit("flops", 1, 0)


def unit(cfg: ObjectiveCfg, dtype: str, examples: int) -> Unit:
    """Returns the unit of a configuration, for matmuls in `dtype`.

    Raises UserError where a device is not known.
    """
    if cfg.unit == "seconds":
        chip = device.given(cfg.device)
        return Unit("seconds", 1 / chip.peak(dtype), 1 / chip.bandwidth, examples)
    return FLOPS if cfg.unit == "flops" else Unit("bytes", 0, 1, examples)
