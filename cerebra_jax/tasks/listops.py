"""ListOps with the rules of the Long Range Arena: the result of nested lists of digits under MIN, MAX, MED, SM.

Nangia & Bowman 2018, arXiv:1804.06028; Tay et al. 2021, arXiv:2011.04006. Made on the fly from a seed, once, and kept.

A node at depth < 10 is an operator with probability 1/4, else a digit; at depth 10 always a digit (the root has depth
1). Operators and their number of arguments, 2 to 10, are uniform. Trees of length in (low, high) are kept, copies are
not. MED is the integer part of the median, SM the sum modulo 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cerebra_jax.config import RunCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import scores
from cerebra_jax.tasks.examples import Arrays, Examples, digest
from cerebra_jax.tasks.task import Pairs, Shape
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

DEPTH, ARGUMENTS, OPERATOR = 10, (2, 10), 0.25
MIN, MAX, MED, SM, END, PAD = 10, 11, 12, 13, 14, 15  # after the ten digits
NAMES = [*map(str, range(10)), "[MIN", "[MAX", "[MED", "[SM", "]"]
SHARES = {"train": 0.96, "valid": 0.02, "test": 0.02}  # of the Arena's 100,000


def value(op: int, arguments: Sequence[int]) -> int:
    """The result of one operator."""
    if op == MIN:
        return min(arguments)
    if op == MAX:
        return max(arguments)
    if op == SM:
        return sum(arguments) % 10
    ordered, n = sorted(arguments), len(arguments)
    return ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) // 2


def evaluate(tokens: Sequence[int]) -> int:
    """The result of an expression; ValueError where it is none."""
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
    """Tokens of an expression as the original files write it; plain parentheses mean nothing."""
    return [NAMES.index(word) for word in text.split() if word not in "()"]


def draw(rng: np.random.RandomState, longest: int) -> tuple[list[int], int] | None:
    """(tokens, result) of one random tree; None as soon as it has `longest` tokens."""
    tokens: list[int] = []

    def node(depth: int) -> int | None:
        if len(tokens) >= longest:
            return None
        if depth >= DEPTH or rng.random_sample() >= OPERATOR:
            digit = int(rng.randint(10))
            tokens.append(digit)
            return digit
        op = MIN + int(rng.randint(4))
        tokens.append(op)
        found = []
        for _ in range(rng.randint(ARGUMENTS[0], ARGUMENTS[1] + 1)):
            if (x := node(depth + 1)) is None:
                return None
            found.append(x)
        tokens.append(END)
        return value(op, found)

    result = node(1)
    return None if result is None or len(tokens) >= longest else (tokens, result)


def trees(n: int, low: int, high: int, seed: int) -> list[tuple[list[int], int]]:
    """n different trees whose length is between low and high, both excluded."""
    rng, seen, found = np.random.RandomState(seed), set(), []
    misses = 0
    while len(found) < n:
        made = draw(rng, high)
        key = None if made is None else bytes(made[0])
        if key is None or len(key) <= low or key in seen:
            misses += 1
            if misses > 10_000 + 1_000 * (len(found) + 1):
                raise UserError(
                    f"hardly any ListOps tree has between {low} and {high} tokens",
                    "widen the window",
                )
            continue
        seen.add(key)
        found.append(made)
    return found


class ListOps(Examples):
    """Ten classes; a padded expression is read whole, by an encoder."""

    notice = ""
    choice = scores.ACCURACY
    metrics = (scores.ACCURACY, scores.MACRO_F1)

    def __init__(self, splits: dict[str, Arrays], low: int, high: int):
        super().__init__(splits)
        self._window = (low, high)
        self.dataset = f"listops: {low} to {high} tokens"
        self.shape = Shape(splits["train"]["inputs_BxL"].shape[1], len(NAMES) + 1, outputs=10)

    def loss(self, out: Out, batch: Batch, chunk: int, each: bool = False) -> tuple[Any, Pairs]:
        """`scores.classify`."""
        return scores.classify(out, batch, each)

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Accuracy and macro-F1. Knowing the outermost operator alone gives 36 % at the Arena's lengths."""
        return scores.classes(sums)

    def info(self) -> dict[str, Any]:
        """What the trees are, for result.json: sizes, label shares, and what the outermost operator alone gives."""
        found = {}
        for split, x in self._splits.items():
            labels = x["labels_BxL"][:, 0]
            shares = np.bincount(labels, minlength=10) / len(labels)
            found[split] = {"examples": len(labels), "label_shares": [round(float(s), 4) for s in shares],
                            "tokens": round(float(x["mask_BxL"].sum(1).mean()), 1)}  # fmt: skip
        return {"dataset": self.dataset, "sha256": digest(self._splits), "splits": found,
                "outermost_operator": round(outermost(self._splits["train"], self._splits["test"]), 4)}  # fmt: skip


def outermost(fit: Arrays, test: Arrays) -> float:
    """Accuracy on `test` of the most frequent result of `fit` for the first token: a floor that no reading needs."""
    table = np.zeros((len(NAMES), 10), np.int64)
    np.add.at(table, (fit["inputs_BxL"][:, 0], fit["labels_BxL"][:, 0]), 1)
    return float((table.argmax(1)[test["inputs_BxL"][:, 0]] == test["labels_BxL"][:, 0]).mean())


def arrays(found: list[tuple[list[int], int]], L: int) -> Arrays:
    """Padded tokens, the mask of the real ones, and results."""
    ids = np.full((len(found), L), PAD, np.int32)
    for row, (tokens, _) in zip(ids, found, strict=True):
        row[: len(tokens)] = tokens
    labels = np.array([[result] for _, result in found], np.int32)
    return {"inputs_BxL": ids, "mask_BxL": ids != PAD, "labels_BxL": labels}


def build(cfg: RunCfg, say: Callable[[str], None] = print) -> ListOps:
    """The task of a configuration: task.rows trees of more than task.shortest and fewer than task.seq_len tokens."""
    task, high = cfg.task, cfg.task.seq_len
    if high <= task.shortest + 1:
        raise UserError(
            f"task.seq_len {high} leaves no length above task.shortest={task.shortest}", "use more"
        )
    say(f"making {task.rows:,} ListOps trees of {task.shortest} to {high} tokens")
    found, splits, first = trees(task.rows, task.shortest, high, seed=0), {}, 0
    for split, share in SHARES.items():
        n = (
            max(1, round(share * task.rows))
            if split != "train"
            else task.rows - 2 * max(1, round(0.02 * task.rows))
        )
        splits[split] = arrays(found[first : first + n], high)
        first += n
    return ListOps(splits, task.shortest, high)
