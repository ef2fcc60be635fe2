"""The order in which units go, how far a round goes, and when rounds are."""

import dataclasses

import numpy as np
import pytest

from cerebra_jax.config import PruneCfg
from cerebra_jax.errors import UserError
from cerebra_jax.policies import pruning
from cerebra_jax.policies.schedule import Length

FLOPS = {"a": 10, "b": 1}


def price(left):
    return 100 + sum(FLOPS[name] * n for name, n in left.items())


def ones(**n):
    return {name: np.ones(k, np.float32) for name, k in n.items()}


def choose(worth, alive, target, tile=1, per_flop=True):
    """The masks after a round; units of "a" save ten times as much as those of "b"."""
    groups = {
        name: pruning.Candidates(worth[name], alive[name], FLOPS[name] if per_flop else 1.0, tile)
        for name in worth
    }
    return pruning.choose(groups, price, target)


def test_worth_per_flop_decides_or_worth_alone():
    worth = {"a": np.array([3.0, 5.0, 9.0]), "b": np.array([1.0, 2.0, 9.0])}
    masks = choose(worth, ones(a=3, b=3), 124.0)
    # 3/10 < 5/10 < 1/1
    assert masks["a"].tolist() == [0, 1, 1]
    assert masks["b"].tolist() == [1, 1, 1]
    masks = choose(worth, ones(a=3, b=3), 124.0, per_flop=False)
    assert masks["a"].tolist() == [0, 1, 1] and masks["b"].tolist() == [0, 0, 1]


def test_targets_are_met_within_one_unit_and_nothing_comes_back():
    rng = np.random.RandomState(0)
    worth = {"a": rng.rand(40), "b": rng.rand(70)}
    alive, full = ones(a=40, b=70), price({"a": 40, "b": 70})
    for share in (0.9, 0.7, 0.5, 0.4):
        new = choose(worth, alive, share * full)
        cost = price({name: int(m.sum()) for name, m in new.items()})
        assert share * full - 10 < cost <= share * full
        assert all((new[name] <= alive[name]).all() for name in new)
        alive, worth = new, {name: rng.rand(len(w)) for name, w in worth.items()}
    assert all(mask.sum() >= 1 for mask in choose(worth, alive, 0.0).values())


def test_what_is_left_is_a_multiple_of_the_tile():
    worth = {"a": np.arange(37.0), "b": np.arange(16.0)[::-1].copy()}
    for target in (480, 400, 300, 0):
        masks = choose(worth, ones(a=37, b=16), target, tile=8)
        assert masks["a"].sum() in (37, 32, 24, 16, 8) and masks["b"].sum() in (16, 8)
        gone = int(37 - masks["a"].sum())
        assert not masks["a"][:gone].any() and masks["a"][gone:].all()


def test_least_keeps_what_is_gone():
    worth = np.array([[5.0, 1.0], [3.0, 2.0]])
    alive = np.array([[0.0, 1.0], [1.0, 1.0]], np.float32)
    assert pruning.least(worth, alive, 0.5).tolist() == [[0, 0], [1, 1]]
    assert pruning.least(worth, alive, 0.0).tolist() == alive.tolist()
    assert pruning.least(worth, alive, 1.0).sum() == 0


def test_rounds_stand_from_start_to_end_and_fall_cubically():
    c = PruneCfg(keep=0.5, start="0.2 frac", end="0.6 frac", rounds=5)
    plan = pruning.plan(c, Length(100, 10))
    assert plan.steps == (20, 30, 40, 50, 60)
    assert plan.ends == (20, 60)
    progress = [plan.progress(at) for at in plan.steps]
    np.testing.assert_allclose(progress, [1 - (1 - t / 5) ** 3 for t in (1, 2, 3, 4, 5)])
    assert pruning.plan(dataclasses.replace(c, keep=1.0), Length(100, 10)).steps == ()
    assert pruning.plan(dataclasses.replace(c, rounds=1), Length(100, 10)).steps == (60,)
    for wrong in ({"start": "0 steps"}, {"end": "1 frac"}, {"end": "3 steps"}, {"rounds": 60}):
        with pytest.raises(UserError):
            pruning.plan(dataclasses.replace(c, **wrong), Length(100, 10))


def test_slopes_are_means_then_a_memory():
    taylor = {"a": np.zeros(2, np.float32)}
    for step, slope in enumerate(([-1.0, 2.0], [3.0, -4.0], [2.0, 0.0])):
        taylor = pruning.follow(taylor, {"a": np.array(slope, np.float32)}, step)
    np.testing.assert_allclose(taylor["a"], [2.0, 2.0], rtol=1e-6)
