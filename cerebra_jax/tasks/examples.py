"""Rows of arrays in three splits, as batches: the data half of every task whose examples are independent."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from cerebra_jax.errors import UserError
from cerebra_jax.tasks.task import Shape, host_rows
from cerebra_jax.types import Batch

SPLITS = ("train", "valid", "test")
MULTIPLE, FROM = 8, 64  # lengths are rounded up to a multiple of 8 tokens where L is 64 or more
Arrays = dict[str, np.ndarray]  # batch key -> (N, …)


class Examples:
    """Each epoch takes every training row once, in an order of its own; an evaluation takes every row once, in order.

    A training batch is a pure function of (seed, step): example step * B + j of the run is number (step * B + j) % N of
    its epoch's permutation.

    In buckets (`bucket`), the steps of an epoch take the rows that they would take without, sorted by the bucket of
    their length, as batches in a random order: a batch is of one bucket, but for one at each border. It is cut to the
    shortest of shape.lengths that holds its rows. Nothing but (seed, step) and the data decides, on any host.
    """

    shape: Shape
    group_N: np.ndarray | None = None

    def __init__(self, splits: dict[str, Arrays]):
        self._splits = splits
        self._orders: dict[tuple[int, int], np.ndarray] = {}  # (seed, epoch) -> its last two
        self._batches: dict[
            tuple[int, int, int], np.ndarray
        ] = {}  # (seed, epoch, batch size) -> its last two
        self.size = {split: len(next(iter(arrays.values()))) for split, arrays in splits.items()}
        self.examples = self.size["train"]

    def of(self, rows: Arrays) -> Examples:
        """The same task with these rows, in order, as its only split, `given`: batches of inputs without answers."""
        other = copy.copy(self)
        other._splits, other.size = {"given": rows}, {"given": len(next(iter(rows.values())))}
        other.shape, other.group_N = self.shape._replace(lengths=()), None
        return other

    def bucket(self, buckets: int, batch_size: int) -> None:
        """From here on batches are of similar length: at most so many `lengths` of the training rows, and L."""
        tokens_N = _tokens(self._splits["train"])
        self.shape = self.shape._replace(
            lengths=lengths(tokens_N, buckets, self.shape.seq_len, batch_size + 1)
        )
        self.group_N = self._groups("train")

    def steps_per_epoch(self, batch_size: int) -> int:
        """Steps after which every row was seen; the last may reach into the next epoch."""
        return -(-self.size["train"] // batch_size)

    def example(self, batch_size: int) -> Batch:
        """A batch of the right shapes and dtypes, for init; not cut."""
        ex_B = host_rows(batch_size, (0, 1))
        return self._batch(
            "train", self._stream(0, 0, batch_size), np.ones(batch_size, np.float32), ex_B
        )

    def train_batch(
        self, seed: int, step: int, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """The rows of the global batch `step` that belong to host (i, n)."""
        return self.pick(seed, step, self.rows(seed, step, batch_size), host)

    def rows(self, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Numbers of the training rows of the global batch `step`."""
        if self.group_N is None:
            return self._stream(seed, step * batch_size, batch_size)
        steps = self.steps_per_epoch(batch_size)
        epoch, i = divmod(step, steps)

        def regrouped():
            row_N = self._stream(seed, epoch * steps * batch_size, steps * batch_size)
            row_SxB = row_N[np.argsort(self.group_N[row_N], kind="stable")].reshape(
                steps, batch_size
            )
            return np.random.RandomState([seed, epoch, batch_size]).permutation(row_SxB)

        return _last_two(self._batches, (seed, epoch, batch_size), regrouped)[i]

    def pick(
        self, seed: int, step: int, row_B: np.ndarray, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """The rows of host (i, n) of the global batch `step` that is made of the training rows row_B."""
        ex_B = host_rows(len(row_B), host)
        return self._batch(
            "train", row_B[ex_B], np.ones(len(ex_B), np.float32), ex_B, self.length(row_B)
        )

    def length(self, row_B: np.ndarray) -> int | None:
        """Tokens of the program that a batch of these training rows runs in; None without buckets."""
        return None if self.group_N is None else self.shape.lengths[self.group_N[row_B].max()]

    def eval_batches(
        self, split: str, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Batches of one shape (one for each of shape.lengths) in which every row of the split weighs 1 exactly once;
        what fills the last weighs 0."""
        parts: dict[int | None, np.ndarray] = {None: np.arange(self.size[split])}
        if self.group_N is not None:
            group_N = self._groups(split)
            parts = {L: np.flatnonzero(group_N == i) for i, L in enumerate(self.shape.lengths)}
        ex_B = host_rows(batch_size, host)
        for length, row_N in parts.items():
            for first in range(0, len(row_N), batch_size):
                at_B = first + ex_B.astype(np.int64)
                w_B = (at_B < len(row_N)).astype(np.float32)
                yield self._batch(split, row_N[np.minimum(at_B, len(row_N) - 1)], w_B, ex_B, length)

    def _batch(
        self, split: str, row_B: np.ndarray, w_B: np.ndarray, ex_B: np.ndarray, length=None
    ) -> Batch:
        rows = {name: x[row_B] for name, x in self._splits[split].items()}
        if length:  # one answer an example: labels are (B, 1)
            rows = {name: x if x.ndim == 1 else x[:, :length] for name, x in rows.items()}
        return rows | {"w_BxL": w_B[:, None], "ex_B": ex_B}

    def _groups(self, split: str) -> np.ndarray:
        return np.searchsorted(self.shape.lengths, _tokens(self._splits[split])).astype(np.int32)

    def _stream(self, seed: int, first: int, n: int) -> np.ndarray:
        """Rows first, first + 1, … of the run, epoch after epoch."""
        N = self.size["train"]
        index_n = first + np.arange(n)
        row_n = np.empty_like(index_n)
        for epoch in np.unique(index_n // N):
            mine = index_n // N == epoch
            row_n[mine] = self._order(seed, int(epoch))[index_n[mine] % N]
        return row_n

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        """The order of an epoch. numpy has frozen RandomState's stream."""
        order = lambda: np.random.RandomState([seed, epoch]).permutation(self.size["train"])  # noqa: E731
        return _last_two(self._orders, (seed, epoch), order)


def _last_two(cache: dict, key: tuple, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What `make` gives, kept under `key` beside the one before it."""
    if key not in cache:
        while len(cache) > 1:
            del cache[next(iter(cache))]
        cache[key] = make()
    return cache[key]


def lengths(tokens_N: np.ndarray, buckets: int, L: int, least: int) -> tuple[int, ...]:
    """At most `buckets` lengths, ascending, that hold equal shares of rows of so many tokens, and L as the last.

    Quantiles, rounded up to a multiple of MULTIPLE where L >= FROM. A length that fewer than `least` rows would take
    joins the next, or the one before it where there is none.
    """
    step, found, below = MULTIPLE if L >= FROM else 1, [], 0
    quantiles_n = np.quantile(
        tokens_N, np.arange(1, buckets + 1) / buckets, method="higher"
    ).astype(int)
    wanted = sorted({min(L, -(-int(q) // step) * step) for q in quantiles_n})
    for length in wanted:
        if ((tokens_N > below) & (tokens_N <= length)).sum() >= least:
            found.append(length)
            below = length
    if wanted[-1] not in found:
        found[-1:] = [wanted[-1]]
    return tuple(found if found[-1] == L else (*found, L))


def _tokens(arrays: Arrays) -> np.ndarray:
    """Tokens of each row, which is padded at its end."""
    return arrays["mask_BxL"].sum(axis=1)


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
            raise UserError(
                f"{n} rows are too few: no row is left for {split}",
                "give more rows, or other shares",
            )
    return parts


def digest(splits: dict[str, Arrays]) -> str:
    """One sha256 for all arrays of all splits."""
    found = hashlib.sha256()
    for split in sorted(splits):
        for name, x in sorted(splits[split].items()):
            found.update(
                f"{split}/{name} {x.dtype.str} {x.shape}\0".encode()
                + np.ascontiguousarray(x).tobytes()
            )
    return found.hexdigest()
