"""ListOps with the rules of the Long Range Arena: the result of nested lists of digits.

Nangia & Bowman 2018, arXiv:1804.06028; Tay et al. 2021, arXiv:2011.04006. Made on the fly from a
seed, once, and kept.

A node at depth < 10 is an operator with probability 1/4, else a digit; at depth 10 always a digit
(the root has depth 1). Operators and their number of arguments, 2 to 10, are uniform. Trees of
length in (low, high) are kept, copies are not. MED is the integer part of the median, SM the sum
modulo 10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cerebra_jax.checks import Problem
from cerebra_jax.config import RunCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import scores
from cerebra_jax.tasks.examples import Arrays, Examples, digest
from cerebra_jax.tasks.registry import register
from cerebra_jax.tasks.task import Log, Pairs, Shape
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

MAX_DEPTH = 10
ARGUMENTS = (2, 10)  # of an operator, both included
OPERATOR = 0.25  # probability that a node is one
MIN, MAX, MED, SM, END, PAD = 10, 11, 12, 13, 14, 15  # after the ten digits
NAMES = [*map(str, range(10)), "[MIN", "[MAX", "[MED", "[SM", "]"]
HELD_OUT = (
    0.02  # share of the expressions for validation, and for the test, as of the Arena's 100,000
)


def value(op: int, arguments: Sequence[int]) -> int:
    """Returns the result of one operator."""
    if op == MIN:
        return min(arguments)
    if op == MAX:
        return max(arguments)
    if op == SM:
        return sum(arguments) % 10
    ordered = sorted(arguments)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) // 2


def evaluate(tokens: Sequence[int]) -> int:
    """Returns the result of an expression; raises ValueError where it is none."""
    stack: list[tuple[int, list[int]]] = [(END, [])]
    for token in tokens:
        if token < 10:
            stack[-1][1].append(int(token))
        elif token < END:
            stack.append((int(token), []))
        elif len(stack) > 1 and stack[-1][1]:
            op, arguments = stack.pop()
            stack[-1][1].append(value(op, arguments))
        else:
            raise ValueError("a list ends that has not begun, or is empty")
    if len(stack) != 1 or len(stack[0][1]) != 1:
        raise ValueError("not one expression")
    return stack[0][1][0]


def parse(text: str) -> list[int]:
    """Returns the tokens of an expression as the original files write it.

    Plain parentheses mean nothing.
    """
    return [NAMES.index(word) for word in text.split() if word not in "()"]


def draw(rng: np.random.RandomState, longest: int) -> tuple[list[int], int] | None:
    """Returns (tokens, result) of one random tree; None as soon as it has `longest` tokens."""
    tokens: list[int] = []

    def node(depth: int) -> int | None:
        if len(tokens) >= longest:
            return None
        if depth >= MAX_DEPTH or rng.random_sample() >= OPERATOR:
            digit = int(rng.randint(10))
            tokens.append(digit)
            return digit
        operator = MIN + int(rng.randint(4))
        tokens.append(operator)
        arguments = []
        for _ in range(rng.randint(ARGUMENTS[0], ARGUMENTS[1] + 1)):
            argument = node(depth + 1)
            if argument is None:
                return None
            arguments.append(argument)
        tokens.append(END)
        return value(operator, arguments)

    result = node(1)
    return None if result is None or len(tokens) >= longest else (tokens, result)


def trees(n: int, low: int, high: int, seed: int) -> list[tuple[list[int], int]]:
    """Returns n different trees whose length is between low and high, both excluded.

    Raises UserError where there are none.
    """
    rng = np.random.RandomState(seed)
    seen: set[bytes] = set()
    found = []
    misses = 0
    while len(found) < n:
        tree = draw(rng, high)
        key = None if tree is None else bytes(tree[0])
        if key is None or len(key) <= low or key in seen:
            misses += 1
            if misses > 10_000 + 1_000 * (len(found) + 1):
                what = f"hardly any ListOps tree has between {low} and {high} tokens"
                raise UserError(what, "widen the window")
            continue
        seen.add(key)
        found.append(tree)
    return found


@register("listops")
class ListOps(Examples):
    """Ten classes; a padded expression is read whole, by an encoder."""

    notice = ""
    choice = scores.ACCURACY
    metrics = (scores.ACCURACY, scores.MACRO_F1)
    padded = True

    def __init__(self, splits: dict[str, Arrays], low: int, high: int):
        super().__init__(splits)
        self.dataset = f"listops: {low} to {high} tokens"
        self.shape = Shape(splits["train"]["inputs_BxL"].shape[1], len(NAMES) + 1, outputs=10)

    @staticmethod
    def check(cfg: RunCfg) -> Iterator[Problem]:
        """Yields what ListOps forbids: a window of lengths that is empty."""
        task = cfg.task
        if task.seq_len <= task.shortest + 1:
            what = f"task.seq_len {task.seq_len} leaves no length above "
            yield f"{what}task.shortest={task.shortest}", "use more"

    @classmethod
    def build(cls, cfg: RunCfg, log: Log = print) -> ListOps:
        """Returns the task of a configuration.

        It has task.rows trees of more than task.shortest and fewer than task.seq_len tokens.
        """
        low, high = cfg.task.shortest, cfg.task.seq_len
        for problem in cls.check(cfg):
            raise UserError(*problem)
        log(f"making {cfg.task.rows:,} ListOps trees of {low} to {high} tokens")
        found = trees(cfg.task.rows, low, high, seed=0)
        held_out = max(1, round(HELD_OUT * cfg.task.rows))
        splits = {
            "train": arrays(found[: -2 * held_out], high),
            "valid": arrays(found[-2 * held_out : -held_out], high),
            "test": arrays(found[-held_out:], high),
        }
        return cls(splits, low, high)

    def loss(self, out: Out, batch: Batch, chunk: int, each: bool = False) -> tuple[Any, Pairs]:
        """Returns `scores.classify`."""
        return scores.classify(out, batch, each)

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Returns accuracy and macro-F1.

        Knowing the outermost operator alone gives 36 % at the Arena's lengths.
        """
        return scores.classes(sums)

    def info(self) -> dict[str, Any]:
        """Returns what the trees are, and what the outermost operator alone gives."""
        splits = {}
        for split, rows in self._splits.items():
            labels_N = rows["labels_BxL"][:, 0]
            shares = np.bincount(labels_N, minlength=10) / len(labels_N)
            splits[split] = {
                "examples": len(labels_N),
                "label_shares": [round(float(share), 4) for share in shares],
                "tokens": round(float(rows["mask_BxL"].sum(1).mean()), 1),
            }
        floor = outermost(self._splits["train"], self._splits["test"])
        return {
            "dataset": self.dataset,
            "sha256": digest(self._splits),
            "splits": splits,
            "outermost_operator": round(floor, 4),
        }


def outermost(train: Arrays, test: Arrays) -> float:
    """Returns the accuracy of guessing by the first token alone, a floor that no reading needs.

    The guess is its most frequent result in `train`, and is scored in `test`.
    """
    counts = np.zeros((len(NAMES), 10), np.int64)
    np.add.at(counts, (train["inputs_BxL"][:, 0], train["labels_BxL"][:, 0]), 1)
    guess_N = counts.argmax(1)[test["inputs_BxL"][:, 0]]
    return float((guess_N == test["labels_BxL"][:, 0]).mean())


def arrays(found: list[tuple[list[int], int]], L: int) -> Arrays:
    """Returns padded tokens, the mask of the real ones, and results."""
    ids = np.full((len(found), L), PAD, np.int32)
    for row, (tokens, _) in zip(ids, found, strict=True):
        row[: len(tokens)] = tokens
    labels = np.array([[result] for _, result in found], np.int32)
    return {"inputs_BxL": ids, "mask_BxL": ids != PAD, "labels_BxL": labels}
