"""Synthetic recall: an independent reading of each sequence finds every answer, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from cerebra_jax.tasks.long_sequence import generate
from cerebra_jax.tasks.long_sequence.generate import KINDS, Rules

SIZES = [
    Rules(64, 300, 8, 1.0, "random"),
    Rules(97, 64, 16, 0.01, "zero"),
    Rules(200, 40, 1, 0.5, "random"),
]


def made(kind: str, r: Rules, n: int = 40):
    return [KINDS[kind](np.random.RandomState([3, i]), r) for i in range(n)]


def solve(kind: str, e: generate.Example, r: Rules) -> list[int]:
    """The answers, read off the tokens by another way than they were made."""
    tokens = e.tokens_L.tolist()
    if kind == "mqar":
        book = dict(zip(tokens[0 : 2 * r.pairs : 2], tokens[1 : 2 * r.pairs : 2], strict=True))
        return [book[tokens[at]] for at in e.at_Q]
    if kind == "selective":
        return [x for x in tokens if x > 1]
    if kind == "induction":
        return [tokens[tokens.index(0) + 1]]
    n = r.L // 2
    return [tokens[at - n] if kind == "masked" else tokens[i] for i, at in enumerate(e.at_Q)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", SIZES, ids=["plain", "odd", "one"])
def test_every_answer_follows_from_what_stands_before_it(kind, r):
    generate.check(kind, r)
    for e in made(kind, r):
        assert (
            len(e.at_Q) == len(e.answers_Q) == generate.answers(kind, r)
            and (np.diff(e.at_Q) > 0).all()
        )
        assert e.tokens_L.shape == (r.L,) and 0 <= e.tokens_L.min() and e.tokens_L.max() < r.V
        assert solve(kind, e, r) == e.answers_Q.tolist()
        source_Q = e.at_Q - e.distance_Q
        assert (source_Q >= 0).all() and (
            e.tokens_L[source_Q] == e.answers_Q
        ).all()  # it stands where it is said to
        assert e.needed_L[source_Q].all() and e.needed_L[e.at_Q].all()


def test_keys_and_values_are_different_tokens_and_are_drawn_from_their_halves():
    r = Rules(128, 100, 20, 1.0, "random")
    for e in made("mqar", r):
        keys, values = e.tokens_L[0:40:2], e.tokens_L[1:40:2]
        assert len(set(keys)) == len(set(values)) == 20
        assert 1 <= keys.min() and keys.max() < 50 <= values.min() and values.max() < 100
        assert ((e.at_Q - 40) % 2 == 0).all() and e.at_Q.min() >= 40
        assert ((e.tokens_L[:, None] == keys).sum(0) == 2).all()  # once with its value, once asked


def test_skew_crowds_queries_at_the_front():
    def far(skew):
        r = Rules(256, 500, 8, skew, "zero")
        return np.mean([e.at_Q.mean() for e in made("mqar", r, 100)])

    assert far(0.01) < 90 < 120 < far(1.0)


def test_the_floor_of_skewed_queries_is_what_a_rule_without_recall_gives():
    """The rule answers each query of an example with the value in the same place."""
    r = Rules(40, 100, 8, 0.1, "zero")
    right = [e.answers_Q == e.tokens_L[1:16:2] for e in made("mqar", r, 1000)]
    assert generate.in_order(r) == pytest.approx(np.mean(right), abs=0.015)
    assert generate.in_order(r) > 1.2 / 8 > generate.in_order(r._replace(skew=1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_without_an_example_are_refused(kind):
    too_short, too_few_symbols = Rules(3, 30, 5, 1.0, "random"), Rules(64, 2, 5, 1.0, "random")
    for rules, words in ((too_short, "too short"), (too_few_symbols, "too small")):
        assert [words in what for what, _ in generate.check(kind, rules)] == [True]
    assert not list(generate.check(kind, Rules(64, 30, 5, 1.0, "random")))
