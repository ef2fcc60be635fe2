"""The compiled steps of an experiment.

There is one for each size, length, kind of batch and precision that it meets.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from cerebra_jax.cost import count
from cerebra_jax.policies.division import Division
from cerebra_jax.policies.sampler import Each
from cerebra_jax.training import parallel, step
from cerebra_jax.training.experiment import Experiment, Serving
from cerebra_jax.training.memory import Room
from cerebra_jax.training.objective import Objective
from cerebra_jax.types import Batch


class Program(NamedTuple):
    """Which of the compiled steps; what stands here is static in it."""

    size: int
    tokens: int  # of each example
    draws: bool = False  # its batches are the sampler's
    quantized: bool = False
    by_layer: Division = ()  # how its slots are divided


class Programs:
    """Compiles each program when it is first asked for."""

    def __init__(
        self,
        experiment: Experiment,
        devices: Sequence[parallel.Device] = (),
        room: Room | None = None,
    ):
        """Makes the programs for these devices; without any, for those that the run uses here.

        With `room`, a training step that does not fit is refused before it runs.
        """
        train = experiment.cfg.train
        self.experiment = experiment
        self.room = room
        self.devices = list(devices) or parallel.choose_devices(
            train.devices, train.batch_size, train.accum
        )
        self.of = functools.cache(self._make)
        self._first = self.serving(experiment.first)

    def _make(self, program: Program) -> parallel.DataParallel:
        e = self.experiment
        serving = Serving(program.size, program.quantized, by_layer=program.by_layer)
        model = e.model_of(serving, program.tokens)
        objective = Objective(model, e.task, e.policies(serving, program.draws))
        train = step.make_train_step(objective, e.optimizer, e.cfg, e.length)
        look = None
        if self.room:
            look = functools.partial(self.room.require_room, like=e.like)
        return parallel.DataParallel(train, step.make_eval_step(model, e.task), self.devices, look)

    def serving(self, serving: Serving, tokens: int = 0) -> parallel.DataParallel:
        """Returns the program that evaluates, for batches of examples of `tokens` tokens (0: L)."""
        tokens = tokens or self.experiment.sizes.tokens
        return self.of(Program(serving.size, tokens, False, serving.quantized, serving.by_layer))

    def place(self, tree: Any) -> Any:
        """Puts a pytree on all devices, as every program takes and returns it."""
        return self._first.place(tree)

    def shard(self, batch: Batch) -> Batch:
        """Puts a host batch on the devices: rows split evenly, in order."""
        return self._first.shard(batch)


def sampler_flops(experiment: Experiment) -> int:
    """Returns what the sampler adds to a step, each elementwise operation and comparison a FLOP.

    0 without one.
    """
    sampling = experiment.sampling
    if sampling is None:
        return 0

    def work(table, index_B, loss_B, cost_B):
        learned = sampling.learn(table, index_B, Each(loss_B, cost_B, loss_B > 0))
        return sampling.advance(learned, experiment.key, 0)

    index_B = jax.ShapeDtypeStruct((sampling.batch_size,), "int32")
    value_B = jax.ShapeDtypeStruct((sampling.batch_size,), "float32")
    table = experiment.like.sampler
    return count.count(work, table, index_B, value_B, value_B).elementwise
