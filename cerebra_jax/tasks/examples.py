"""Rows of arrays in three splits, as batches: the data half of every task whose examples are independent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from cerebra_jax.errors import UserError
from cerebra_jax.tasks.task import host_rows
from cerebra_jax.types import Batch

SPLITS = ("train", "valid", "test")
Arrays = dict[str, np.ndarray]  # batch key -> (N, …)


class Examples:
    """Each epoch takes every training row once, in an order of its own; an evaluation takes every row once, in order.

    A training batch is a pure function of (seed, step): example step * B + j of the run is number (step * B + j) % N of
    its epoch's permutation.
    """

    def __init__(self, splits: dict[str, Arrays]):
        self._splits = splits
        self._orders: dict[tuple[int, int], np.ndarray] = {}  # (seed, epoch) -> its last two
        self.size = {split: len(next(iter(arrays.values()))) for split, arrays in splits.items()}
        self.examples = self.size["train"]

    def steps_per_epoch(self, batch_size: int) -> int:
        """Steps after which every row was seen; the last may reach into the next epoch."""
        return -(-self.size["train"] // batch_size)

    def example(self, batch_size: int) -> Batch:
        """A batch of the right shapes and dtypes, for init."""
        return self.train_batch(0, 0, batch_size)

    def train_batch(self, seed: int, step: int, batch_size: int, host: tuple[int, int] = (0, 1)) -> Batch:
        """The rows of the global batch `step` that belong to host (i, n)."""
        N = self.size["train"]
        index_B = step * batch_size + np.arange(batch_size)
        row_B = np.empty_like(index_B)
        for epoch in np.unique(index_B // N):
            mine = index_B // N == epoch
            row_B[mine] = self._order(seed, int(epoch))[index_B[mine] % N]
        return self.pick(seed, step, row_B, host)

    def pick(self, seed: int, step: int, row_B: np.ndarray, host: tuple[int, int] = (0, 1)) -> Batch:
        """The rows of host (i, n) of the global batch `step` that is made of the training rows row_B."""
        ex_B = host_rows(len(row_B), host)
        return self._batch("train", row_B[ex_B], np.ones(len(ex_B), np.float32), ex_B)

    def eval_batches(self, split: str, batch_size: int, host: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Batches of one shape in which every row of the split weighs 1 exactly once; what fills the last weighs 0."""
        N, ex_B = self.size[split], host_rows(batch_size, host)
        for first in range(0, N, batch_size):
            row_B = first + ex_B.astype(np.int64)
            yield self._batch(split, np.minimum(row_B, N - 1), (row_B < N).astype(np.float32), ex_B)

    def _batch(self, split: str, row_B: np.ndarray, w_B: np.ndarray, ex_B: np.ndarray) -> Batch:
        rows = {name: x[row_B] for name, x in self._splits[split].items()}
        return rows | {"w_BxL": w_B[:, None], "ex_B": ex_B}

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        """The order of an epoch. numpy has frozen RandomState's stream."""
        key = (seed, epoch)
        if key not in self._orders:
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            self._orders[key] = np.random.RandomState([seed, epoch]).permutation(self.size["train"])
        return self._orders[key]


def cut(n: int, valid: float, test: float) -> dict[str, np.ndarray]:
    """Row numbers of the three splits of n rows: slices of RandomState(42)'s permutation, in its order.

    train int((1 − valid − test) n), test the last rows, or (test = 0) none: then valid is the last. UserError where a
    split that is asked for gets no row.
    """
    perm = np.random.RandomState(42).permutation(n)
    first = int(round(1.0 - valid - test, 9) * n)
    second = first + int(round(valid, 9) * n) if test else n
    parts = {"train": perm[:first], "valid": perm[first:second], "test": perm[second:]}
    for split, rows in parts.items():
        if not len(rows) and (split != "test" or test):
            raise UserError(f"{n} rows are too few: no row is left for {split}", "give more rows, or other shares")
    return parts


def digest(splits: dict[str, Arrays]) -> str:
    """One sha256 for all arrays of all splits."""
    found = hashlib.sha256()
    for split in sorted(splits):
        for name, x in sorted(splits[split].items()):
            found.update(f"{split}/{name} {x.dtype.str} {x.shape}\0".encode() + np.ascontiguousarray(x).tobytes())
    return found.hexdigest()
