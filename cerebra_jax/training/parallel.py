"""Data parallelism: the one file that knows pmap.

The state is not stacked: `in_axes=None` replicates it, so it is the same pytree, and the same
checkpoint, on any number of devices. pmap is in maintenance mode in JAX; it lives behind this class
so that another mapping can replace it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cerebra_jax.config import TrainCfg
from cerebra_jax.errors import UserError
from cerebra_jax.types import Batch

AXIS = "data"

Device = Any
"""A `jax.Device`; Any, because JAX has no types for it."""


class DataParallel:
    """Runs train_step and eval_step on one device (jit) or several (pmap).

    The training state is donated.

    train_step(state, batch, key, *, axis) -> (state, metrics); eval_step(state, batch, *, axis) ->
    metrics.
    """

    def __init__(
        self,
        train_step: Callable | None,
        eval_step: Callable,
        devices: Sequence[Device],
        look: Callable[[Any], None] | None = None,
    ):
        """look: gets the compiled training step before it runs, and may raise."""
        self.devices = list(devices)
        self._look = look
        self._compiled: Any = None
        self._mesh = Mesh(np.array(self.devices), (AXIS,))
        if len(self.devices) == 1:
            self._eval = jax.jit(eval_step)
            self._train = train_step and jax.jit(train_step, donate_argnums=0)
        else:
            many = functools.partial(jax.pmap, axis_name=AXIS, devices=self.devices)
            self._eval = many(
                functools.partial(eval_step, axis=AXIS), in_axes=(None, 0), out_axes=None
            )
            self._train = train_step and many(
                functools.partial(train_step, axis=AXIS),
                in_axes=(None, 0, None),
                out_axes=None,
                donate_argnums=0,
            )

    @property
    def programs(self) -> tuple[Any, Any]:
        """The compiled training step and evaluation step, for who counts or times them."""
        return self._train, self._eval

    def place(self, tree: Any) -> Any:
        """Replicates a pytree as the step returns it, so that the step is traced once."""
        if len(self.devices) == 1:
            return jax.device_put(tree, self.devices[0])
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def shard(self, batch: Batch) -> Batch:
        """Puts a host batch on the devices: rows split evenly, in order."""
        if len(self.devices) == 1:
            return jax.device_put(batch, self.devices[0])
        n = len(self.devices)
        split = {k: x.reshape(n, x.shape[0] // n, *x.shape[1:]) for k, x in batch.items()}
        return jax.device_put(split, NamedSharding(self._mesh, PartitionSpec(AXIS)))

    def step(self, state: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        """Takes one training step; `state` is donated: rebind it.

        With `look` all batches have the shapes of the first.
        """
        assert self._train is not None, "made to evaluate only"
        if self._look is None:
            return self._train(state, batch, key)
        if self._compiled is None:
            compiled = self._train.lower(state, batch, key).compile()
            self._look(compiled)
            self._compiled = compiled
        return self._compiled(state, batch, key)

    def eval(self, state: Any, batch: Batch) -> Any:
        """Returns the metric sums of one evaluation batch."""
        return self._eval(state, batch)


def choose_devices(wanted: int, batch_size: int, accum: int) -> list[Device]:
    """Returns the devices to use: `wanted` of the local ones (0: as many as divide the batch).

    Raises UserError where there are not so many, or they do not divide the batch.
    """
    if jax.process_count() > 1:
        raise UserError(
            f"JAX runs on {jax.process_count()} processes here, and a run is one process",
            "start one process on one machine: on a TPU pod take a slice of one host",
        )
    local = jax.local_devices()
    micro = batch_size // accum
    if wanted > len(local):
        raise UserError(
            f"train.devices is {wanted}, but there are {len(local)}", f"use at most {len(local)}"
        )
    count = wanted or max(n for n in range(1, len(local) + 1) if micro % n == 0)
    if micro % count:
        raise UserError(
            f"{micro} windows per micro-batch do not split over {count} devices",
            "change train.batch_size, train.accum or train.devices",
        )
    return local[:count]


def idle(used: Sequence[Device], train: TrainCfg) -> list[str]:
    """Returns a line where devices are left out because they do not divide the micro-batch."""
    there = len(jax.local_devices())
    if train.devices or len(used) == there:
        return []
    each = there * train.accum
    return [
        f"{len(used)} of {there} devices are used, as many as divide a micro-batch of "
        f"{train.batch_size // train.accum}: train.batch_size={-(-train.batch_size // each) * each}"
        f" and other multiples of {each} use all"
    ]
