"""What every task gives to a run: its shape, batches, a loss, and the figures that people read. Imports no JAX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from cerebra_jax.errors import UserError
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

Pairs = Mapping[str, tuple[Any, Any]]  # name -> (sum, count), arrays; "loss" is always among them


class Shape(NamedTuple):
    """What a task asks of a model."""

    seq_len: int
    vocab_size: int
    outputs: int = 0  # of a pooled head: classes, or 1 for a regression; 0: logits per token
    features: int = 0  # numbers per token of the input; 0: token ids
    subwords: int = 0  # n-grams per token at most (batch key `subwords_BxLxG`)
    answers: int = 0  # positions of an example that are asked for (batch key `at_BxQ`); 0: all
    causal: bool = False  # True: only a causal model may solve it
    needed: bool = (
        False  # its batches mark the tokens that the answers depend on (batch key `needed_BxL`)
    )
    tasks: int = 0  # its rows are of so many tasks (batch key `task_B`); 0: one
    lengths: tuple[
        int, ...
    ] = ()  # of its batches, which are cut to the shortest that holds their rows; (): seq_len


class Metric(NamedTuple):
    """A figure of `Task.report`: its key there, what a person reads, and whether less of it is better."""

    key: str
    name: str
    digits: int
    lower: bool
    table: bool = True  # has a column in `report` tables


LOSS = Metric("loss", "loss", 4, True, table=False)


class Task(Protocol):
    """A data set with its loss. Batches are numpy, and a training batch is a pure function of (seed, step)."""

    dataset: str  # its name in result.json
    notice: str  # what a reader of the figures must know; "" if nothing
    shape: Shape
    metrics: tuple[Metric, ...]  # the first is the headline
    examples: int  # training examples, which `pick` finds by number; 0: there is no end of them, and no sampler
    choice: (
        Metric  # the figure of the validation line by which the checkpoint to be tested is chosen
    )
    group_N: np.ndarray | None  # which of shape.lengths, if any, holds each training example

    def steps_per_epoch(self, batch_size: int) -> int: ...

    def example(self, batch_size: int) -> Batch:
        """A batch of the right shapes and dtypes, for init; not cut."""

    def train_batch(
        self, seed: int, step: int, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """The rows of the global batch `step` that belong to host (i, n)."""

    def pick(
        self, seed: int, step: int, index_B: np.ndarray, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """The rows of host (i, n) of a global batch `step` made of the training examples of these numbers."""

    def eval_batches(
        self, split: str, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Batches of one shape (one for each of shape.lengths) in which every example of the split weighs 1 exactly
        once; padding weighs 0."""

    def loss(self, out: Out, batch: Batch, chunk: int, each: bool = False) -> tuple[Any, Pairs]:
        """(total loss of a batch, its sums), in JAX; `chunk` tokens have their logits at once.

        The total is what training minimises, over the sum of w_BxL: nats, or squared errors in standard deviations.
        `each` (where there are examples to pick): the sums have "each" too, total and weight of every example, (B,).
        """

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Figures from sums over all devices and batches: of the whole split, or of one batch of "train"."""

    def info(self) -> dict[str, Any]:
        """What the data are, for result.json; info["sha256"] names what a run must find again to go on."""


def host_rows(batch_size: int, host: tuple[int, int]) -> np.ndarray:
    """The rows of a global batch that belong to host (i, n): a run of B / n of them."""
    i, n = host
    if batch_size % n:
        raise UserError(
            f"train.batch_size {batch_size} cannot be shared by {n} hosts", f"use a multiple of {n}"
        )
    size = batch_size // n
    return np.arange(i * size, (i + 1) * size, dtype=np.int32)
