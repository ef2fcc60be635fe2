"""What every task gives to a run: its shape, batches, a loss, and the figures that people read.

Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

import numpy as np

from cerebra_jax.checks import Problem
from cerebra_jax.config import RunCfg
from cerebra_jax.errors import UserError
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.tasks.text.reading import Reading
    from cerebra_jax.types import Out

Pairs = Mapping[str, tuple[Any, Any]]  # name -> (sum, count), arrays; "loss" is always among them
Log = Callable[[str], None]  # is told, line by line, what a person should know
SPLITS = ("train", "valid", "test")
PREPROCESSING = "preprocessing.json"  # in a run's folder: what its task learnt from the data


class Shape(NamedTuple):
    """What a task asks of a model."""

    seq_len: int
    vocab_size: int
    outputs: int = 0  # of a pooled head: classes, or 1 for a regression; 0: logits per token
    features: int = 0  # numbers per token of the input; 0: token ids
    subwords: int = 0  # n-grams per token at most (batch key `subwords_BxLxG`)
    answers: int = 0  # positions of an example that are asked for (batch key `at_BxQ`); 0: all
    causal: bool = False  # True: only a causal model may solve it
    needed: bool = False  # True: batches mark what the answers depend on (batch key `needed_BxL`)
    tasks: int = 0  # its rows are of so many tasks (batch key `task_B`); 0: one
    # batches are cut to the shortest of these that holds their rows; (): they have seq_len tokens
    lengths: tuple[int, ...] = ()


class Metric(NamedTuple):
    """A figure of `Task.report`."""

    key: str
    name: str
    digits: int
    lower: bool
    table: bool = True  # has a column in `report` tables


LOSS = Metric("loss", "loss", 4, True, table=False)


class Task(Protocol):
    """A data set with its loss.

    Batches are numpy, and a training batch is a pure function of (seed, step).

    A class may also have `sketch(cfg)`: a part of the task that can be had without its data, for
    prices. One that learns from its data has `learnt()`, which returns all of that for JSON, and
    `restored(cfg, learnt, info)`, which makes of it a task that reads and answers without the data;
    `LEARNT` is then the shape of the first (`documents`).
    """

    padded: (
        bool  # examples differ in length, so that batches of similar length (`bucket`) are shorter
    )
    dataset: str  # its name in result.json
    notice: str  # what a reader of the figures must know; "" if nothing
    shape: Shape
    metrics: tuple[Metric, ...]  # the first is the headline
    choice: Metric  # the figure of the validation line by which the checkpoint to test is chosen
    examples: int  # training examples that `pick` finds by number; 0: no end of them, no sampler
    group_N: np.ndarray | None  # which of shape.lengths, if any, holds each training example

    @staticmethod
    def check(cfg: RunCfg) -> Iterator[Problem]:
        """Yields (what is wrong, how to put it right) for settings that this task cannot have."""

    @classmethod
    def build(cls, cfg: RunCfg, log: Log = print) -> Task:
        """Returns the task of a configuration, its data ready.

        UserError says what is wrong with them.
        """

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the steps after which every training example was seen."""

    def example(self, batch_size: int) -> Batch:
        """Returns a batch of the right shapes and dtypes, for init; not cut."""

    def train_batch(
        self, seed: int, step: int, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """Returns the rows of the global batch `step` that belong to host (i, n)."""

    def pick(
        self, seed: int, step: int, index_B: np.ndarray, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """Returns host (i, n)'s rows of a global batch `step` of the training examples index_B."""

    def eval_batches(
        self, split: str, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Yields batches in which every example of the split weighs 1 exactly once.

        Padding weighs 0.

        They have one shape, or one for each of shape.lengths.
        """

    def loss(self, out: Out, batch: Batch, chunk: int, each: bool = False) -> tuple[Any, Pairs]:
        """Returns (total loss of a batch, its sums), in JAX.

        `chunk` tokens have their logits at once.

        Training minimises the total over the sum of w_BxL: nats, or squared errors in standard
        deviations. With `each` (where there are examples to pick) the sums also have "each": the
        total and the weight of every example, (B,).
        """

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Returns figures from the sums of a split, or of one "train" batch, over all devices."""

    def info(self) -> dict[str, Any]:
        """Returns what the data are, for result.json.

        A run goes on only with data of the same info["sha256"].
        """


class Reader(Task, Protocol):
    """A task whose inputs are texts."""

    def read(self, text: str) -> Reading:
        """Returns a user's text as the model reads it."""


def no_data() -> NoReturn:
    """Raises UserError: the task of a run was made without its data, and has no batches."""
    what = "the data of this run were not read: its folder has what they taught, not the data"
    raise UserError(what, "cerebra_jax.build_task(run.cfg) reads them")


def host_rows(batch_size: int, host: tuple[int, int]) -> np.ndarray:
    """Returns the rows of a global batch that belong to host (i, n): B / n neighbours, int32."""
    i, n = host
    if batch_size % n:
        what = f"train.batch_size {batch_size} cannot be shared by {n} hosts"
        raise UserError(what, f"use a multiple of {n}")
    size = batch_size // n
    return np.arange(i * size, (i + 1) * size, dtype=np.int32)


def check_language_model(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what a task forbids whose examples are windows of a text, read by a causal model."""
    net, task = cfg.net, cfg.task
    if task.seq_len < 2:
        yield f"task.seq_len is {task.seq_len}", "a text needs at least 2: 256, say"
    if task.tokenizer == "words":
        yield "task.tokenizer is words for a text", "use bpe, bytes or gpt2"
    if task.eval_context >= task.seq_len:
        what = f"task.eval_context {task.eval_context} leaves nothing to score"
        yield what, f"keep it under task.seq_len={task.seq_len}"
    if net.features or net.outputs:
        what = "net.features or net.outputs is set for a text, a language model"
        yield what, "use net.features=0 and net.outputs=0"
    if not net.causal:
        yield "net.causal is False for a language model", "use net.causal=True"


def check_vocabulary(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what a task forbids whose vocabulary is learnt from a text."""
    if cfg.task.tokenizer == "bpe" and cfg.task.vocab_size < 260:
        hint = "a BPE vocabulary holds 256 bytes first: use 260 or more"
        yield f"task.vocab_size is {cfg.task.vocab_size}", hint
