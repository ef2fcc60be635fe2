"""What a cost is counted in: FLOPs, bytes of memory traffic, or seconds at a device's roofline. Imports no JAX.

An operation has FLOPs and bytes. A unit is a price for each, and an operation costs the dearer of the two, so that the
three units are one formula:

    flops    1 a FLOP
    bytes    1 a byte
    seconds  max(FLOPs / peak, bytes / bandwidth) of the device (`cost/device.py`), operation by operation

Bytes by convention, as `cost/count.py` counts them: operands and results of matmuls, convolutions and FFTs, what
softmax and LayerNorm reduce, features gathered or scattered (read and written). Elementwise work is fused into those
and moves nothing; what has one number per token (positions, decisions) is left out. Weights are read once for all the
examples of a micro-batch (train.batch_size / train.accum), on however many devices it runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cerebra_jax.config import ObjectiveCfg
from cerebra_jax.cost import device, prices

FLOAT = 4  # bytes of a float32


class Op(NamedTuple):
    """One operation of a program, in the conventions of `cost/prices.py`."""

    flops: int = 0
    bytes: int = 0  # operands and results that are no weights
    weights: int = 0  # bytes of weights, which the examples of a micro-batch share
    int8: int = 0  # products of integers, by the prices of FLOPs, which they are not

    def times(self, n: int) -> Op:
        """Returns the same weights applied to n times as many rows."""
        return Op(n * self.flops, n * self.bytes, self.weights, n * self.int8)


class Unit(NamedTuple):
    """Prices of a FLOP and of a byte; `examples` share one reading of the weights."""

    name: str
    flop: float
    byte: float
    examples: int = 1

    @property
    def label(self) -> str:
        return LABELS[self.name]

    def price(self, ops: Iterable[Op]) -> float:
        """Of one example; in FLOPs an exact integer."""
        return sum(
            max(self.flop * op.flops, self.byte * (op.bytes + op.weights / self.examples))
            for op in ops
        )

    def marginal(self, ops: Iterable[Op]) -> float:
        """The same without the weights: of rows that join others."""
        return self.price(op._replace(weights=0) for op in ops)


LABELS = {"flops": "FLOPs", "bytes": "bytes moved", "seconds": "seconds at the roofline"}
FLOPS = Unit("flops", 1, 0)


def unit(cfg: ObjectiveCfg, dtype: str, examples: int) -> Unit:
    """The unit of a configuration, for matmuls in `dtype`; UserError where a device is not known."""
    if cfg.unit == "seconds":
        chip = device.given(cfg.device)
        return Unit("seconds", 1 / chip.peak(dtype), 1 / chip.bandwidth, examples)
    return FLOPS if cfg.unit == "flops" else Unit("bytes", 0, 1, examples)


def linear(a: int, b: int, size: int, out: int | None = None) -> Op:
    """Linear layer a -> b of one row, numbers of `size` bytes; results of `out` bytes where they are others."""
    return Op(prices.linear_flops(a, b), a * size + b * (out or size), a * b * size)


def norm(D: int) -> Op:
    """LayerNorm of one row: mean and mean square, in float32."""
    return Op(bytes=2 * D * FLOAT)


def moved(D: int, size: int) -> Op:
    """One row of features gathered or scattered: read and written."""
    return Op(bytes=2 * D * size)


def pair(width: int, heads: int, size: int, fused: bool = False) -> Op:
    """One visible (query, key) pair over all heads. The scores are written and read twice (maximum, sum) in float32,
    the probabilities read once; a fused kernel (cuDNN) keeps them on the chip."""
    return Op(prices.attention_pairs_flops(1, width), 0 if fused else heads * (3 * FLOAT + size))


def streamed(width: int, size: int) -> Op:
    """One query of attention (q in, result out), or one key (k and v in) each time it is read."""
    return Op(bytes=2 * width * size)
