"""What all policies have in common: a field of their own, and steps that are not finite."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.config import NetCfg, ObjectiveCfg, PruneCfg, SamplerCfg
from cerebra_jax.policies.adaptive_capacity import AdaptiveCapacity
from cerebra_jax.policies.budget import Budget, Prices, plan
from cerebra_jax.policies.demand import Demand
from cerebra_jax.policies.policy import Outcome, Policy, Seen
from cerebra_jax.policies.sampler import Each, Sampling
from cerebra_jax.policies.schedule import Length
from cerebra_jax.policies.thresholds import RunningThresholds
from cerebra_jax.training.pruning_rounds import Pruning
from cerebra_jax.training.state import TrainState
from cerebra_jax.types import Knobs

KEY = jax.random.key(0)
KNOBS = Knobs(jnp.float32(0.5), jnp.float32(1), jnp.float32(1))


def budget() -> Budget:
    cfg = ObjectiveCfg(budget=0.6)
    prices = Prices(lambda rate: 0.3 + 0.7 * min(1.0, rate), lambda share: 0.2 + 0.7 * share)
    return Budget(plan(cfg, NetCfg(), 64, prices, Length(100, 100)), 0, 1.25, cfg)


def cases() -> dict[str, tuple[Policy, object, Seen]]:
    """Each policy with a state of its own, and what it has of a step."""
    ones = jnp.ones(2)
    table = Sampling(SamplerCfg(beta=1.0), examples=6, batch_size=2, first=0)
    masks = {"units": {"a": ones}, "slopes": {"a": 0 * ones}, "elements": {}}
    capacity, demand = AdaptiveCapacity((0.5, 0.25)), Demand(2)
    announced = capacity.init({}, KEY) | {"program": jnp.int32(1), "next": jnp.int32(0)}
    each = Each(3 * ones, ones / 2, ones > 0)
    return {
        "thresholds": (RunningThresholds(0.9), {"tau": ones}, Seen({"tau": 7 * ones}, (), ())),
        "budget": (budget(), budget().init({}, KEY), Seen((), (), ())),
        "adaptive capacity": (capacity, announced, Seen(0 * announced["lost_2xN"], (), ())),
        "demand": (demand, demand.init({}, KEY), Seen((), (), ())),
        "sampler": (table, table.init({}, KEY), Seen((), each, ())),
        "pruning": (Pruning(PruneCfg(keep=0.5), ()), masks, Seen((), (), {"a": 5 * ones})),
    }


def outcome(finite: bool) -> Outcome:
    """A step on two examples, half of whose cost is spent."""
    batch = {"index_B": jnp.array([4, 1]), "weight_B": jnp.ones(2)}
    metrics = {"hard": (jnp.float32(1), jnp.float32(2)), "wanted": (jnp.ones(2), jnp.float32(2))}
    two = jnp.float32(2)
    return Outcome(jnp.int32(3), KEY, batch, None, two, metrics, jnp.bool_(finite))


def changed(old, new) -> set[str]:
    """The leaves in which two states differ."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(old)]
    pairs = zip(names, jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    return {name for name, a, b in pairs if not np.array_equal(a, b)}


MOVED = {
    "thresholds": {"['tau']"},
    "budget": {"['multiplier']", "['gap']"},
    "adaptive capacity": {"['lost_2xN']", "['program']"},
    "demand": {"['wanted_R']"},
    "sampler": {".loss_N", ".cost_N", ".seen_N", ".drawn.index_B"},
    "pruning": {"['slopes']['a']"},
}
# what was announced before the step happens all the same, and the queue of draws moves on
ANYWAY = {"adaptive capacity": {"['program']"}, "sampler": {".drawn.index_B"}}


@pytest.mark.parametrize("name", MOVED)
def test_a_policy_moves_its_own_state_and_a_step_that_is_not_finite_leaves_it(name):
    policy, own, seen = cases()[name]
    after, _ = policy.after(own, seen, outcome(True))
    assert MOVED[name] <= changed(own, after)
    after, _ = policy.after(own, seen, outcome(False))
    anyway = ANYWAY[name] if name in ANYWAY else set()
    assert anyway <= changed(own, after) <= anyway | {".drawn.weight_B"}


def test_each_policy_has_a_field_of_the_state_to_itself():
    owns = [policy.owns for policy, *_ in cases().values()]
    fields = {field.name for field in dataclasses.fields(TrainState)}
    assert len(set(owns)) == len(owns) == 6
    assert set(owns) == fields - {"step", "params", "opt_state", "skipped"}


def test_a_policy_that_overrides_nothing_changes_nothing():
    policy, params = Policy(), {"w": jnp.ones(2)}
    assert policy.knobs({}, jnp.int32(0), KNOBS) is KNOBS
    assert policy.view(params, {}, policy.probe({})) is params
    assert policy.losses(changed) is changed
    assert policy.after({}, Seen((), (), ()), outcome(True)) == ({}, {})
