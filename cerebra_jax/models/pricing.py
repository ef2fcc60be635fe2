"""What a model costs, counted: each layer is traced on shapes, once for each distinct layer.

A layer's price is fixed + row · n + key · m + pair · n · m (`cost.price`). What a routed model
costs at its ceiling, by its decisions and as it runs are this one formula at different counts;
that the last one is the count of the whole program, a test shows for every model.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.cost import count
from cerebra_jax.cost.price import Ops, Price, fit
from cerebra_jax.cost.units import FLOPS, Op, Unit
from cerebra_jax.layers.rows import Rows
from cerebra_jax.routing import dispatch
from cerebra_jax.types import Cost, DecisionCost, LayerDecision

FAR = 1 << 20  # a context length beyond every position of an abstract trace


class Part(NamedTuple):
    """A layer of a model, its price, and how many rows and keys it gets."""

    name: str  # as in `Cost`, without the block
    price: Price
    rows: int = 0  # all of them: the ceiling where it is routed
    keys: int = 0
    pairs: int = 0  # visible ones
    run_rows: int = 0  # as the program runs it
    run_keys: int = 0
    run_blocks: tuple[tuple[int, ...], ...] = ()  # (rows, keys[, pairs]) of each block of scores
    decided: str = ""  # "" no decision changes it; "kept" or "mixed": tokens that take it pay
    keys_too: bool = False  # and their keys are their own
    program: Ops = ()  # counted at its real number of rows, where it works on groups of them

    def ceiling(self) -> Ops:
        """Returns the operations where every token is routed."""
        return self.price.at(self.rows, self.keys, self.pairs)

    def executed(self) -> Ops:
        """Returns the operations of the compiled program."""
        if self.program:
            return self.program
        once = self.price.at(self.run_rows, self.run_keys, 0)
        if not self.run_blocks:
            return once
        found = []
        for k, pair in enumerate(self.price.pair):
            if pair == Op():
                found.append(once[k])
                continue
            one = Price(*((side[k],) for side in self.price))
            found += [op for block in self.run_blocks for op in one.at(*block)]
        return tuple(found)


class Block(NamedTuple):
    """The parts of one block of a model, `layer_03`, or of what stands outside of them."""

    name: str
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True)
class PriceList:
    """The blocks of a model in order; of one example."""

    blocks: tuple[Block, ...]

    def flops(self) -> Cost:
        """Returns the forward FLOPs by part, exact integers; parts without any are left out."""
        model: dict[str, int] = {}
        executed: dict[str, int] = {}
        for block in self.blocks:
            for part in block.parts:
                name = f"{block.name}/{part.name}" if part.name else block.name
                sums = (_whole(FLOPS.price(ops)) for ops in (part.ceiling(), part.executed()))
                for kind, amount in zip((model, executed), sums, strict=True):
                    kind[name] = kind.get(name, 0) + amount
        idle = [name for name in model if not model[name] and not executed[name]]
        for name in idle:
            del model[name], executed[name]
        return Cost(model, executed)

    def model(self, unit: Unit) -> float:
        """Returns the price of the ceiling in a unit."""
        return math.fsum(
            unit.price(part.ceiling()) for block in self.blocks for part in block.parts
        )

    def executed(self, unit: Unit) -> float:
        """Returns the price of the compiled program in a unit."""
        return math.fsum(
            unit.price(part.executed()) for block in self.blocks for part in block.parts
        )

    def decisions(self, unit: Unit, dense: float, routed: tuple[str, ...]) -> DecisionCost:
        """Returns what decisions cost, relative to the dense model's price.

        `routed`: block names.
        """
        layers = []
        decided = 0.0
        for name in routed:
            own = [part for block in self.blocks if block.name == name for part in block.parts]
            token, pair, mixed = 0, 0, 0
            for part in own:
                rows = unit.marginal(part.price.row)
                rows += unit.marginal(part.price.key) if part.keys_too else 0
                if part.decided == "kept":
                    token += rows
                    pair += unit.marginal(part.price.pair)
                    decided += part.rows * rows + part.pairs * unit.marginal(part.price.pair)
                elif part.decided == "mixed":
                    mixed += rows
                    decided += part.rows * rows
            layers.append(LayerDecision(*(float(x) / dense for x in (token, pair, mixed))))
        return DecisionCost(float(self.model(unit) - decided) / dense, tuple(layers))


def _whole(amount: Any) -> int:
    """Returns a sum of exact numbers as an integer; a fraction of a FLOP is rounded."""
    return round(amount)


@functools.cache
def mixing(layer: nn.Module, width: int, key_width: int, dtype: str, fused: bool = False) -> Price:
    """Returns the price of layer(queries, keys) by its rows and keys.

    fused: by a fused kernel. It is traced without causality, so that the price is that of a pair.
    """

    def rows(x, index):
        return Rows(x, index, index, FAR, ((0, x.shape[1]),), causal=not fused)

    def make(x, index, memory, places):
        return layer.init(jax.random.key(0), rows(x, index), rows(memory, places))

    def run(params, x, index, memory, places):
        return layer.apply({"params": params}, rows(x, index), rows(memory, places))

    def args(n: int, m: int):
        return (*_abstract(n, width, dtype), *_abstract(m, key_width, dtype))

    params = _params(make, args(2, 2))
    return fit(lambda n, m: count.operations(run, params, *args(n, m)))


@functools.cache
def recurrent(layer: nn.Module, width: int, dtype: str) -> Price:
    """Returns the price of a layer whose keys are its queries, by its rows: layer(rows, rows)."""
    make, run = _recurrence(layer)
    params = _params(make, _abstract(layer.step, width, dtype))

    @functools.cache
    def operations_of(n: int):
        return count.operations(run, params, *_abstract(n, width, dtype))

    return fit(lambda n, _: operations_of(n), (layer.step, 1))


@functools.cache
def recurrent_program(layer: nn.Module, width: int, dtype: str, rows: int, masked: bool) -> Ops:
    """Returns the operations of such a layer on so many rows, which need not be whole groups.

    masked: some rows hold nothing, as slots may, and the layer skips them.
    """
    args = _abstract(rows, width, dtype)
    if masked:
        args = (*args, jax.ShapeDtypeStruct((1, rows), jnp.dtype("bool")))
    found = (one.op for one in _operations(*_recurrence(layer), args))
    return tuple(op for op in found if op != Op())


def _recurrence(layer: nn.Module) -> tuple[Callable, Callable]:
    """Returns (what makes the variables of a layer, what runs it) whose keys are its queries."""

    def rows(x, index, mask=None):
        return Rows(x, index, index, FAR, ((0, x.shape[1]),), mask)

    def make(*args):
        own = rows(*args)
        return layer.init(jax.random.key(0), own, own)

    def run(params, *args):
        own = rows(*args)
        return layer.apply({"params": params}, own, own)

    return make, run


@functools.cache
def by_row(layer: nn.Module, width: int, dtype: str) -> Price:
    """Returns the price of a layer that works row by row, layer(x), by its rows."""

    def run(params, x):
        return layer.apply({"params": params}, x)

    def rows(n: int):
        return _abstract(n, width, dtype)[:1]

    params = _params(lambda x: layer.init(jax.random.key(0), x), rows(2))

    @functools.cache
    def operations_of(n: int):
        return count.operations(run, params, *rows(n))

    return fit(lambda n, _: operations_of(n))


def whole(make: Callable, run: Callable, args: tuple) -> Price:
    """Returns the price of a program at its real length: all of it is fixed.

    make(*args) gives its variables, run(params, *args) runs it.
    """
    return fixed(_operations(make, run, args))


def fixed(operations: list[count.Counted]) -> Price:
    """Returns counted operations as a price that no number of rows changes."""
    ops = tuple(one.op for one in operations if one.op != Op())
    none = tuple(Op() for _ in ops)
    return Price(ops, none, none, none)


@functools.cache
def dispatching(width: int, dtype: str, lowering: str, light: bool, assigns: bool) -> Price:
    """Returns the price of moving K tokens of L into slots and back, by K and L.

    light: what comes back joins features of all tokens. assigns: the slots are found as well.
    """

    def operations_of(slots: int, tokens: int):
        layout = dispatch.Layout(((0, tokens),), ((0, slots),))

        def find(keep):
            return dispatch.assign(keep, layout, lowering)

        def move(params, found, x, y, gate, other):
            rows = dispatch.gather(x, found)
            return rows, dispatch.combine(gate, y, other if light else None, found)

        def both(params, keep, *rest):
            return move(params, find(keep), *rest)

        keep = jax.ShapeDtypeStruct((1, tokens), "bool")
        x = jax.ShapeDtypeStruct((1, tokens, width), dtype)
        y = jax.ShapeDtypeStruct((1, slots, width), dtype)
        gate = jax.ShapeDtypeStruct((1, tokens), dtype)
        if assigns:
            return count.operations(both, {}, keep, x, y, gate, x)
        return count.operations(move, {}, jax.eval_shape(find, keep), x, y, gate, x)

    return fit(operations_of)


def _abstract(rows: int, width: int, dtype: str) -> tuple:
    """Returns shapes of the features and places of rows of one example."""
    x = jax.ShapeDtypeStruct((1, rows, width), jnp.dtype(dtype))
    return x, jax.ShapeDtypeStruct((1, rows), jnp.dtype("int32"))


def _operations(make: Callable, run: Callable, args: tuple) -> list[count.Counted]:
    return count.operations(run, _params(make, args), *args)


def _params(make: Callable, args: tuple) -> Any:
    """Returns the shapes of the parameters that make(*args) gives."""
    return jax.eval_shape(make, *args).get("params", {})


def per_row(ops: Ops, rows: int) -> Price:
    """Returns the price of a program of so many rows as one that is proportional to them.

    Weights are read once, however many rows there are.
    """

    def share(op: Op) -> Op:
        return Op(*(Fraction(amount, rows) for amount in op[:2]), 0, Fraction(op.int8, rows))

    once = tuple(Op(weights=op.weights) for op in ops)
    none = tuple(Op() for _ in ops)
    return Price(once, tuple(share(op) for op in ops), none, none)
