"""Synthetic sequences whose answers stand far back: one example from one random generator.

NumPy only.

Every function returns an `Example`: the tokens, where answers are asked, the answers, how far back
each of them stands, and which tokens a model needs to see to give them (for an oracle router).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from cerebra_jax.checks import Problem

DRAWS = 1_000  # examples by which the accuracy of a rule is measured


class Example(NamedTuple):
    """One sequence of L tokens with Q answers."""

    tokens_L: np.ndarray
    at_Q: np.ndarray  # positions whose next token is asked, growing
    answers_Q: np.ndarray
    distance_Q: np.ndarray  # tokens between the question and what it asks for
    needed_L: np.ndarray  # bool


class Rules(NamedTuple):
    """Sizes of a task.

    `pairs` counts what is to be remembered: pairs, data tokens, or masked tokens.
    """

    L: int
    V: int
    pairs: int
    skew: float  # mqar: queries come at gap g with weight (g + 1)^(skew − 1); 1: anywhere alike
    filler: str  # mqar: "random" tokens, or "zero"


def mqar(rng: np.random.RandomState, r: Rules) -> Example:
    """Makes multi-query associative recall: key value key value …, then each key again.

    Arora et al. 2024, arXiv:2312.04927. Keys are from [1, V/2), values from [V/2, V). Key i comes
    again at slot 2K + 2g_i, the g drawn without repeat from [0, (L − 2K)/2); the answer there is
    its value. Random filler never shows a key of its example: a key with two successors would have
    no answer (in 8,192 tokens, as published, that is rare; in 256 it is not).
    """
    L, V, K = r.L, r.V, r.pairs

    # keys, their values, and the filler
    keys_K = 1 + rng.choice(V // 2 - 1, K, replace=False)
    values_K = V // 2 + rng.choice(V - V // 2, K, replace=False)
    others = np.delete(np.arange(V), keys_K)
    if r.filler == "random":
        tokens_L = others[rng.randint(0, V - K, L)]
    else:
        tokens_L = np.zeros(L, np.int64)
    tokens_L[0 : 2 * K : 2] = keys_K
    tokens_L[1 : 2 * K : 2] = values_K

    # where each key is asked for
    slot_K = 2 * K + 2 * _gaps(rng, r)
    tokens_L[slot_K] = keys_K
    distance_K = slot_K - 2 * np.arange(K) - 1  # from a question back to its value

    needed_L = np.zeros(L, bool)
    needed_L[: 2 * K] = True
    needed_L[slot_K] = True
    order = np.argsort(slot_K)
    return Example(tokens_L, slot_K[order], values_K[order], distance_K[order], needed_L)


def _gaps(rng: np.random.RandomState, r: Rules) -> np.ndarray:
    """Returns g of each key, (K,): how far behind the pairs it is asked for, in pairs of tokens."""
    gaps = (r.L - 2 * r.pairs) // 2
    weight = np.arange(1, gaps + 1, dtype=np.float64) ** (r.skew - 1)
    return rng.choice(gaps, r.pairs, replace=False, p=weight / weight.sum())


def in_order(r: Rules) -> float:
    """Returns the accuracy, in mqar, of the rule that the j-th query has the j-th value.

    It is the mean over the queries of DRAWS examples from one seed. The gaps are drawn one after
    the other, small ones first where the skew is below 1: then queries come in the order of their
    pairs more often than once in K.
    """
    rng = np.random.RandomState(0)
    asked_DxK = np.stack([np.argsort(_gaps(rng, r)) for _ in range(DRAWS)])
    return float((asked_DxK == np.arange(r.pairs)[None]).mean())


def selective(rng: np.random.RandomState, r: Rules) -> Example:
    """Makes selective copying: data tokens among noise, then as many write marks.

    Gu & Dao 2023, arXiv:2312.00752. Symbols: 0 noise, 1 the write mark, [2, V) data. The answers
    are the data tokens in their order.
    """
    L, K = r.L, r.pairs
    place_K = np.sort(rng.choice(L - K, K, replace=False))
    data_K = rng.randint(2, r.V, K)
    tokens_L = np.zeros(L, np.int64)
    tokens_L[place_K] = data_K
    tokens_L[L - K :] = 1
    at_K = np.arange(L - K, L)
    needed_L = np.zeros(L, bool)
    needed_L[place_K] = True
    needed_L[L - K :] = True
    return Example(tokens_L, at_K, data_K, at_K - place_K, needed_L)


def copy(rng: np.random.RandomState, r: Rules) -> Example:
    """Makes copying: a random string, a mark (0), then the string again.

    Each of its tokens is asked for at the one before it.
    """
    n = r.L // 2
    string_n = rng.randint(1, r.V, n)
    tokens_L = np.zeros(r.L, np.int64)
    tokens_L[:n] = string_n
    tokens_L[n + 1 : 2 * n] = string_n[: n - 1]
    at_n = np.arange(n, 2 * n)
    return Example(tokens_L, at_n, string_n, np.full(n, n), np.arange(r.L) < 2 * n)


def masked(rng: np.random.RandomState, r: Rules) -> Example:
    """Makes masked recall: a random string, then the string again with `pairs` tokens masked (0).

    What was there?
    """
    n, K = r.L // 2, r.pairs
    string_n = rng.randint(1, r.V, n)
    hidden_K = np.sort(rng.choice(n, K, replace=False))
    again_n = string_n.copy()
    again_n[hidden_K] = 0
    tokens_L = np.zeros(r.L, np.int64)
    tokens_L[:n] = string_n
    tokens_L[n : 2 * n] = again_n
    needed_L = np.zeros(r.L, bool)
    needed_L[hidden_K] = True
    needed_L[n + hidden_K] = True
    return Example(tokens_L, n + hidden_K, string_n[hidden_K], np.full(K, n), needed_L)


def induction(rng: np.random.RandomState, r: Rules) -> Example:
    """Makes a question for an induction head: a special token (0) and x after it; 0 again, last.

    What follows?

    Olsson et al. 2022, arXiv:2209.11895.
    """
    tokens_L = rng.randint(1, r.V, r.L)
    place = int(rng.randint(0, r.L - 2))
    last = r.L - 1
    tokens_L[[place, last]] = 0
    needed_L = np.zeros(r.L, bool)
    needed_L[[place, place + 1, last]] = True
    distance_1 = np.array([last - place - 1])
    return Example(tokens_L, np.array([last]), tokens_L[[place + 1]], distance_1, needed_L)


KINDS: dict[str, Callable[[np.random.RandomState, Rules], Example]] = {
    "mqar": mqar,
    "selective": selective,
    "copy": copy,
    "masked": masked,
    "induction": induction,
}


def check(kind: str, r: Rules) -> Iterator[Problem]:
    """Yields why no example can be made: too few tokens, or too few symbols."""
    K = r.pairs
    least_L = {"mqar": 4 * K, "selective": 2 * K, "copy": 4, "masked": 2 * K, "induction": 4}[kind]
    if r.L < least_L:
        what = f"task.seq_len {r.L} is too short for {kind} with task.pairs={K}"
        yield what, f"use {least_L} or more"
    least_V = 2 * K + 2 if kind == "mqar" else 3
    if r.V < least_V:
        what = f"task.vocab_size {r.V} is too small for {kind} with task.pairs={K}"
        yield what, f"use {least_V} or more"


def answers(kind: str, r: Rules) -> int:
    """Returns Q: how many answers an example has."""
    return {"copy": r.L // 2, "induction": 1}.get(kind, r.pairs)
