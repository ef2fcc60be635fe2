"""Slots divided by demand: all of them and no more, where they are wanted, and no layer without."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebra_jax.policies import division
from cerebra_jax.policies.demand import Demand
from cerebra_jax.policies.policy import Outcome

DEMANDS = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6)


def slots_of(divided, share: float, L: int) -> list[int]:
    """Returns the slots of each layer of a program that has `share` of L in an even one."""
    return [min(L, math.ceil(share * n * L - 1e-9)) for n in divided]


def divide(wanted, share: float, L: int, now=()):
    """Returns the division of a model whose slots cost alike."""
    even = sum(slots_of([1.0] * len(wanted), share, L))
    return division.divided(wanted, now, 1.0 / share, lambda n: sum(slots_of(n, share, L)) <= even)


@settings(deadline=None)  # a busy machine proves nothing
@given(DEMANDS, st.floats(0.1, 0.9), st.integers(64, 1024))
def test_all_slots_are_divided_and_no_more(wanted, share, L):
    found = divide(wanted, share, L) or (1.0,) * len(wanted)
    slots, even = slots_of(found, share, L), slots_of([1.0] * len(wanted), share, L)
    # a division has two decimals: a hundredth of the even share of each layer may be left
    left = len(wanted) * (1 + 0.01 * share * L)
    assert sum(even) - left <= sum(slots) <= sum(even)
    assert all(n <= L for n in slots)


@settings(deadline=None)  # a busy machine proves nothing
@given(DEMANDS, st.floats(0.1, 0.9), st.integers(64, 1024))
def test_who_wants_more_has_no_less_and_everybody_has_some(wanted, share, L):
    found = divide(wanted, share, L) or (1.0,) * len(wanted)
    by_demand = [n for _, n in sorted(zip(wanted, found, strict=True))]
    assert by_demand == sorted(by_demand)
    # a division has two decimals: a hundredth may be lost
    assert min(found) > division.LEAST - 1.5 * 10**-division.DIGITS


@given(st.floats(0.0, 1.0), st.integers(1, 6), st.floats(0.1, 0.9), st.integers(16, 512))
def test_a_flat_demand_leaves_an_even_division(wanted, layers, share, L):
    assert divide([wanted] * layers, share, L) == ()


@settings(deadline=None)  # a busy machine proves nothing
@given(DEMANDS, st.floats(0.1, 0.9), st.integers(64, 1024))
def test_a_demand_that_stays_leaves_its_division(wanted, share, L):
    once = divide(wanted, share, L)
    assert divide(wanted, share, L, once) == once


def test_a_layer_that_nobody_wants_keeps_a_tenth_and_a_full_one_leaves_the_rest():
    assert division.by_demand([0.0, 0.8]) == pytest.approx((division.LEAST, 2 - division.LEAST))
    assert divide([0.0, 0.8], 0.4, 1000) == (0.1, 1.9)
    # every token has a slot in the second layer, and what it cannot use stands in the first
    assert divide([0.0, 0.8], 0.75, 1000) == pytest.approx((0.667, 1.333), abs=0.01)
    assert divide([0.5, 0.56], 0.4, 1000) == ()  # too little moves
    assert divide([0.5, 0.56], 0.4, 1000, (0.1, 1.9)) == ()  # it comes back


@settings(deadline=None)  # a busy machine proves nothing
@given(DEMANDS, st.floats(0.1, 0.9))
def test_a_division_is_read_as_it_was_stored(wanted, share):
    found = divide(wanted, share, 256)
    stored = np.asarray(found or (1.0,) * len(wanted), np.float32)
    assert division.stored(stored.tolist()) == found


def outcome(step: int, wanted, finite: bool = True) -> Outcome:
    examples = jnp.float32(4)
    metrics = {"wanted": (4 * jnp.asarray(wanted, jnp.float32), examples)}
    step = jnp.int32(step)
    return Outcome(step, None, {}, None, examples, metrics, jnp.asarray(finite))


def test_the_demand_is_that_of_the_training_steps_and_forgets():
    policy = Demand(2)
    own = policy.init({}, None)
    for step in range(200):
        wanted = [0.1, 0.3] if step < 100 else [0.4, 0.2]
        own, _ = policy.after(own, None, outcome(step, wanted))
        if step == 0:
            assert own["wanted_R"].tolist() == pytest.approx([0.1, 0.3])
    assert own["wanted_R"].tolist() == pytest.approx([0.4, 0.2], abs=0.01)
    same, _ = policy.after(own, None, outcome(200, [math.nan, 1.0], finite=False))
    assert same["wanted_R"].tolist() == own["wanted_R"].tolist()
    assert own["by_layer_R"].tolist() == [1.0, 1.0]
