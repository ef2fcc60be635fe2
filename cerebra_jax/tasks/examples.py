"""Rows of arrays in three splits, as batches: the data half of tasks with independent examples."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cerebra_jax.errors import UserError
from cerebra_jax.tasks.task import Shape, host_rows, no_data
from cerebra_jax.types import Batch

MULTIPLE = 8  # lengths are rounded up to a multiple of so many tokens …
MULTIPLE_FROM = 64  # … where L is so large or larger
GIVEN = "given"  # the split of rows that a user asks about
Arrays = dict[str, np.ndarray]  # batch key -> (N, …)


class Examples:
    """Each epoch takes every training row once, in an order of its own.

    An evaluation takes every row once, in order.

    A training batch is a pure function of (seed, step): example step * B + j of the run is number
    (step * B + j) % N of its epoch's permutation.

    In buckets (`bucket`), the steps of an epoch take the rows that they would take without, sorted
    by the bucket of their length, as batches in a random order: a batch is of one bucket, but for
    one at each border. It is cut to the shortest of shape.lengths that holds its rows. Nothing but
    (seed, step) and the data decides, on any host.
    """

    shape: Shape
    group_N: np.ndarray | None = None
    padded = False
    kept_info: dict[str, Any] | None = None  # of a task without its data: what it was trained on

    def __init__(self, splits: dict[str, Arrays]):
        self._splits = splits
        self.size = {split: _n_rows(arrays) for split, arrays in splits.items()}
        self.examples = self.size["train"]
        # (seed, epoch) -> its order; the last two
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        # (seed, epoch, batch size) -> its batches of similar length; the last two
        self._batches: dict[tuple[int, int, int], np.ndarray] = {}

    def given(self, rows: Arrays) -> Examples:
        """Returns the same task with these rows, in order, as its only split, called `given`.

        The rows are inputs without answers.
        """
        other = copy.copy(self)
        other._splits = {GIVEN: rows}
        other.size = {GIVEN: _n_rows(rows)}
        other.shape = self.shape._replace(lengths=())
        other.group_N = None
        return other

    def asked(self, split: str) -> tuple[Examples, np.ndarray]:
        """Returns (the rows of a split without their answers, the answers (N,))."""
        arrays = self._splits[split]
        rows = {name: array for name, array in arrays.items() if name != "labels_BxL"}
        return self.given(rows), arrays["labels_BxL"][:, 0]

    def without_data(self, info: dict[str, Any]) -> None:
        """Makes a task whose only row stands for its data the one that `info` tells of."""
        self.kept_info = info
        self.size = {split: about["rows"] for split, about in info["splits"].items()}
        self.examples = self.size["train"]
        lengths = tuple(info.get("lengths", ()))
        if lengths:
            self.shape = self.shape._replace(lengths=lengths)
            self.group_N = np.zeros(self.examples, np.int32)

    def bucket(self, buckets: int, batch_size: int) -> None:
        """Makes batches of similar length from here on: of at most so many `lengths`, and of L."""
        tokens_N = _tokens(self._splits["train"])
        found = lengths(tokens_N, buckets, self.shape.seq_len, batch_size + 1)
        self.shape = self.shape._replace(lengths=found)
        self.group_N = self._groups("train")

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the steps after which every row was seen.

        The last may reach into the next epoch.
        """
        return -(-self.size["train"] // batch_size)

    def example(self, batch_size: int) -> Batch:
        """Returns a batch of the right shapes and dtypes, for init; not cut."""
        row_B = self._stream(0, 0, batch_size)
        if self.kept_info:
            row_B = np.zeros_like(row_B)
        w_B = np.ones(batch_size, np.float32)
        return self._batch("train", row_B, w_B, host_rows(batch_size, (0, 1)))

    def train_batch(
        self, seed: int, step: int, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """Returns the rows of the global batch `step` that belong to host (i, n)."""
        return self.pick(seed, step, self.rows(seed, step, batch_size), host)

    def rows(self, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Returns the numbers of the training rows of the global batch `step`."""
        if self.group_N is None:
            return self._stream(seed, step * batch_size, batch_size)
        epoch, i = divmod(step, self.steps_per_epoch(batch_size))
        key = (seed, epoch, batch_size)
        if key not in self._batches:
            _keep_last(self._batches)
            self._batches[key] = self._regrouped(seed, epoch, batch_size)
        return self._batches[key][i]

    def _regrouped(self, seed: int, epoch: int, batch_size: int) -> np.ndarray:
        """Returns an epoch as batches of rows of similar length, in random order, (steps, B)."""
        steps = self.steps_per_epoch(batch_size)
        row_N = self._stream(seed, epoch * steps * batch_size, steps * batch_size)
        by_group_N = np.argsort(self.group_N[row_N], kind="stable")
        row_SxB = row_N[by_group_N].reshape(steps, batch_size)
        return np.random.RandomState([seed, epoch, batch_size]).permutation(row_SxB)

    def pick(
        self, seed: int, step: int, row_B: np.ndarray, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """Returns the rows of host (i, n) of the global batch `step` of the training rows row_B."""
        if self.kept_info:
            no_data()
        ex_B = host_rows(len(row_B), host)
        w_B = np.ones(len(ex_B), np.float32)
        return self._batch("train", row_B[ex_B], w_B, ex_B, self.length(row_B))

    def length(self, row_B: np.ndarray) -> int | None:
        """Returns the tokens of the program that a batch of these training rows runs in.

        It is None without buckets.
        """
        return None if self.group_N is None else self.shape.lengths[self.group_N[row_B].max()]

    def eval_batches(
        self, split: str, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Yields batches in which every row of the split weighs 1 exactly once.

        What fills the last weighs 0.

        They have one shape, or one for each of shape.lengths.
        """
        if self.kept_info and split != GIVEN:
            no_data()
        rows_of: dict[int | None, np.ndarray] = {None: np.arange(self.size[split])}
        if self.group_N is not None:
            group_N = self._groups(split)
            rows_of = {L: np.flatnonzero(group_N == i) for i, L in enumerate(self.shape.lengths)}
        ex_B = host_rows(batch_size, host)
        for length, row_N in rows_of.items():
            for first in range(0, len(row_N), batch_size):
                index_B = first + ex_B.astype(np.int64)
                w_B = (index_B < len(row_N)).astype(np.float32)
                row_B = row_N[np.minimum(index_B, len(row_N) - 1)]
                yield self._batch(split, row_B, w_B, ex_B, length)

    def _batch(
        self,
        split: str,
        row_B: np.ndarray,
        w_B: np.ndarray,
        ex_B: np.ndarray,
        length: int | None = None,
    ) -> Batch:
        rows = {name: array[row_B] for name, array in self._splits[split].items()}
        if length:  # one answer an example: labels are (B, 1)
            rows = {
                name: array if array.ndim == 1 else array[:, :length]
                for name, array in rows.items()
            }
        return rows | {"w_BxL": w_B[:, None], "ex_B": ex_B}

    def _groups(self, split: str) -> np.ndarray:
        tokens_N = _tokens(self._splits[split])
        return np.searchsorted(self.shape.lengths, tokens_N).astype(np.int32)

    def _stream(self, seed: int, first: int, n: int) -> np.ndarray:
        """Returns the rows first, first + 1, … of the run, epoch after epoch, (n,)."""
        N = self.size["train"]
        index_n = first + np.arange(n)
        row_n = np.empty_like(index_n)
        for epoch in np.unique(index_n // N):
            in_epoch = index_n // N == epoch
            row_n[in_epoch] = self._order(seed, int(epoch))[index_n[in_epoch] % N]
        return row_n

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        """Returns the order of an epoch. numpy has frozen RandomState's stream."""
        key = (seed, epoch)
        if key not in self._orders:
            _keep_last(self._orders)
            self._orders[key] = np.random.RandomState([seed, epoch]).permutation(self.size["train"])
        return self._orders[key]


def _keep_last(cache: dict) -> None:
    """Removes all entries but the last, so that there is room for a second."""
    while len(cache) > 1:
        del cache[next(iter(cache))]


def _n_rows(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def lengths(tokens_N: np.ndarray, buckets: int, L: int, least: int) -> tuple[int, ...]:
    """Returns at most `buckets` lengths that hold equal shares of the rows, and L as the last.

    tokens_N has the tokens of each row. The lengths ascend; they are quantiles, rounded up to a
    multiple of MULTIPLE where L >= MULTIPLE_FROM. A length that fewer than `least` rows would take
    joins the next, or the one before it where there is none.
    """
    # quantiles, rounded up
    quantiles = np.arange(1, buckets + 1) / buckets
    tokens_n = np.quantile(tokens_N, quantiles, method="higher").astype(int).tolist()
    multiple = MULTIPLE if L >= MULTIPLE_FROM else 1
    candidates = sorted({min(L, -(-tokens // multiple) * multiple) for tokens in tokens_n})

    # those that enough rows take
    found: list[int] = []
    below = 0
    for length in candidates:
        if ((tokens_N > below) & (tokens_N <= length)).sum() >= least:
            found.append(length)
            below = length
    if candidates[-1] not in found:
        found[-1:] = [candidates[-1]]

    return tuple(found if found[-1] == L else (*found, L))


def _tokens(arrays: Arrays) -> np.ndarray:
    """Returns the tokens of each row, which is padded at its end."""
    return arrays["mask_BxL"].sum(axis=1)


def cut(
    n: int, valid: float, test: float, order_N: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Returns the row numbers of the three splits of n rows.

    They are slices of an order, in that order: RandomState(42)'s permutation unless it is given.

    train int((1 − valid − test) n), test the last rows, or (test = 0) none: then valid is the last.
    Raises UserError where a split that is asked for gets no row.
    """
    if order_N is None:
        order_N = np.random.RandomState(42).permutation(n)
    first = int(round(1.0 - valid - test, 9) * n)
    second = first + int(round(valid, 9) * n) if test else n
    splits = {
        "train": order_N[:first],
        "valid": order_N[first:second],
        "test": order_N[second:],
    }
    for split, rows in splits.items():
        if not len(rows) and (split != "test" or test):
            what = f"{n} rows are too few: no row is left for {split}"
            raise UserError(what, "give more rows, or other shares")
    return splits


def digest_of_texts(texts: Sequence[str]) -> str:
    """Returns one sha256 for texts in order."""
    found = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        found.update(b"%d:" % len(data) + data)
    return found.hexdigest()


def digest(splits: dict[str, Arrays]) -> str:
    """Returns one sha256 for all arrays of all splits."""
    found = hashlib.sha256()
    for split in sorted(splits):
        for name, array in sorted(splits[split].items()):
            found.update(f"{split}/{name} {array.dtype.str} {array.shape}\0".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
