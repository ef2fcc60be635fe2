"""budget=: the plan pays for no more than the budget, the multiplier lands the cost on it, and what
is out of reach is refused with the interval.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebra_jax.config import NetCfg, ObjectiveCfg, RouteCfg
from cerebra_jax.errors import UserError
from cerebra_jax.policies import budget
from cerebra_jax.policies.schedule import Length
from cerebra_jax.training.sizes import plan_budget
from cerebra_jax.types import Knobs

TOTAL = 1000
LENGTH = Length(TOTAL, TOTAL)


def priced(light: float, heavy: float, L: int, capacity: float):
    """The prices of a model that costs `light` with no slots and `heavy` with L."""

    def executed(rate: float) -> float:
        return (
            light + (heavy - light) * min(L, int(np.ceil(min(1.0, rate * capacity) * L - 1e-9))) / L
        )

    def hard(share: float) -> float:
        return 0.9 * light + (0.95 * heavy - 0.9 * light) * share

    return budget.Prices(executed, hard)


def plan_of(wanted=0.6, light=0.3, heavy=1.0, L=256, capacity=1.25, mode="threshold", **extra):
    cfg = ObjectiveCfg(budget=wanted, **extra)
    net = NetCfg(route=RouteCfg(mode=mode, capacity=capacity))
    return cfg, budget.plan(cfg, net, L, priced(light, heavy, L, capacity), LENGTH)


@given(
    st.floats(0.05, 0.6),
    st.floats(0.2, 1.2),
    st.integers(64, 2048),
    st.floats(0.7, 3.0),
    st.floats(0.02, 0.98),
    st.integers(1, 6),
)
def test_the_last_program_spends_the_budget_and_no_more(light, more, L, capacity, where, buckets):
    heavy = light + more
    wanted = light + more / L + where * (more - more / L) * min(1.0, capacity * (1 - 2 / L))
    _, plan = plan_of(wanted, light, heavy, L, capacity, buckets=buckets)
    assert (
        wanted - 1.01 * more / L <= plan.levels[-1] <= wanted + 1e-9
    )  # one slot more would be too much
    assert (
        list(plan.levels) == sorted(set(plan.levels), reverse=True) and len(plan.levels) <= buckets
    )
    assert list(plan.rates) == sorted(set(plan.rates), reverse=True) and 0 < plan.rates[-1] < 1
    assert (np.diff(plan.table) >= 0).all()


@given(st.floats(0.05, 0.6), st.floats(0.2, 1.2), st.integers(5, 64), st.floats(0.1, 0.9))
def test_a_budget_that_whole_slots_miss_has_a_program_on_either_side(light, more, L, where):
    """One slot more is the next program; between the two there is none."""
    wanted = light + more / L + where * (more - 2 * more / L)
    _, plan = plan_of(wanted, light, light + more, L, capacity=1.0)
    assert plan.next == pytest.approx(plan.levels[-1] + more / L)
    assert plan.levels[-1] <= wanted + 1e-9 and wanted <= plan.next + 1e-9
    assert plan.misses(wanted) == (plan.levels[-1] < 0.98 * wanted)


def test_programs_shrink_as_the_target_falls_and_never_below_it():
    _, plan = plan_of(buckets=4, warm="100 steps", ramp="400 steps")
    found = [plan.bucket(step) for step in range(TOTAL)]
    assert found[0] == 0 and found[-1] == len(plan.rates) - 1 == 3
    assert (
        all(b in (a, a + 1) for a, b in zip(found, found[1:], strict=False))
        and found[499] < found[501]
    )
    for step, at in enumerate(found):
        assert plan.levels[at] >= plan.executed_at(step) - 1e-9
    assert plan.executed_at(99) == plan.levels[0] == pytest.approx(1.0, abs=0.01)
    assert plan.executed_at(500) == plan.executed_at(TOTAL) == plan.levels[-1]
    np.testing.assert_allclose(plan.executed_at(jnp.float32(300)), plan.executed_at(300), rtol=1e-6)


@given(st.integers(1, 6), st.integers(0, 500), st.integers(0, 400), st.integers(1, 1000))
def test_the_steps_of_each_program_are_counted_as_they_are_taken(buckets, warm, ramp, total):
    cfg, plan = plan_of(buckets=buckets, warm=f"{warm} steps", ramp=f"{ramp / 1000} frac")
    over = plan.over(cfg, Length(total, 0))
    taken = [over.bucket(step) for step in range(total)]
    assert over.counts(total) == [taken.count(i) for i in range(len(plan.rates))]
    longest = plan.over(cfg, LENGTH)
    assert (longest.warm, longest.ramp) == (plan.warm, plan.ramp) == (warm, max(1, ramp))


def ascend(cfg, plan, plant, carry, steps=3000):
    """The loop of a run: `plant(carry, knobs, step) -> (carry, hard cost)`.

    (hard, target, λ) of every step.
    """
    control = budget.Budget(plan, len(plan.rates) - 1, 1.25, cfg)
    dual = control.init({}, jax.random.key(0))

    def body(state, step):
        dual, carry = state
        knobs = control.knobs(dual, step, Knobs(jnp.float32(0), jnp.float32(1), jnp.float32(1)))
        carry, hard = plant(carry, knobs, step)
        return (control.ascend(dual, step, hard), carry), (
            hard,
            control.target(step),
            dual["multiplier"],
            knobs.lam,
        )

    return jax.jit(lambda: jax.lax.scan(body, (dual, carry), jnp.arange(steps)))()[1]


@pytest.mark.parametrize("taste", [0.5, 3.0, 30.0])
@pytest.mark.parametrize("wanted", [0.5, 0.75])
def test_a_penalty_lands_on_the_budget(wanted, taste):
    """A learner that gains from every token it keeps, more or less: only the price can hold it."""
    cfg, plan = plan_of(wanted, mode="hard")

    def plant(theta, knobs, step):
        def J(theta):
            p = jax.nn.sigmoid(theta)
            cost = 0.27 + (0.95 - 0.27) * p
            return knobs.lam * cost - taste * jnp.log1p(3 * p)

        theta = theta - 0.05 * jnp.clip(jax.grad(J)(theta), -1, 1)
        return theta, 0.27 + (0.95 - 0.27) * jax.nn.sigmoid(theta)

    hard, target, lam, weight = ascend(cfg, plan, plant, jnp.float32(2.0))
    assert abs(hard[-300:].mean() / target[-1] - 1) < 0.02
    assert (lam >= 0).all() and (weight >= 0).all() and lam[-1] > 0


@pytest.mark.parametrize("bias", [0.85, 1.0, 1.2])
def test_a_rate_lands_on_the_budget_whatever_the_threshold_misses(bias):
    cfg, plan = plan_of(0.7)

    def plant(
        kept, knobs, step
    ):  # a running quantile lags, misses by `bias`, and cannot keep more than the slots
        rate = plan.rates[-1]
        kept = 0.95 * kept + 0.05 * bias * knobs.rate * rate
        noise = 0.03 * jax.random.normal(jax.random.fold_in(jax.random.key(0), step))
        return kept, 0.27 + (0.95 - 0.27) * jnp.clip(kept + noise, 0, 1.25 * rate)

    hard, target, lam, weight = ascend(cfg, plan, plant, jnp.float32(0.9))
    assert abs(hard[-300:].mean() / target[-1] - 1) < 0.02
    assert (lam >= 0).all() and (weight == 0).all()


def test_a_policy_that_wants_less_is_not_pushed():
    cfg, plan = plan_of(0.7, mode="hard", lam=2.0)
    *_, lam, weight = ascend(cfg, plan, lambda c, k, s: (c, jnp.float32(0.3)), 0.0)
    assert lam[0] == 2.0 and lam[-1] == weight[-1] == 0.0


@pytest.mark.parametrize("wanted", [0.05, 1.5])
def test_out_of_reach_is_refused_with_the_interval(wanted):
    with pytest.raises(UserError) as e:
        plan_of(wanted)
    low, high = map(float, re.search(r"choose ([\d.]+) .* to ([\d.]+) ", str(e.value)).groups())
    for inside in (low, high):
        assert plan_of(inside)[1].levels[-1] <= inside + 1e-9
    for outside in (low - 0.01, high + 0.01):
        with pytest.raises(UserError, match="reach"):
            plan_of(outside)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"net.route.mode": "soft"}, "both branches"),
        ({"net.route.dispatch": False}, "at any rate"),
        ({"net.route.tau": "calibrated"}, "stays where it is"),
        ({"net.depth": 2}, "at any rate"),
        ({"net.route.mode": "hard", "net.route.capacity": 1.0}, "more than 1"),
        ({"objective.budget": 0.2}, "choose 0."),
    ],
)
def test_models_that_cannot_follow_are_refused(tiny_cfg, extra, words):
    with pytest.raises(UserError, match=words):
        plan_budget(tiny_cfg({"objective.budget": 0.8} | extra), 260, Length(8, 8))


def test_a_dense_model_is_refused_before_jax(tiny_cfg):
    with pytest.raises(UserError, match="objective.budget is set for a dense model"):
        tiny_cfg({"net.name": "transformer", "objective.budget": 0.8})


@pytest.mark.parametrize(
    ("mode", "kv", "unit", "wanted"),  # every pair of these
    [
        ("threshold", "all", "flops", 0.65),
        ("hard", "routed", "flops", 0.75),
        ("threshold", "routed", "bytes", 0.75),
        ("hard", "all", "bytes", 0.65),
        ("threshold", "all", "seconds", 0.75),
        ("hard", "routed", "seconds", 0.65),
    ],
)
def test_the_real_prices_land_within_two_percent(tiny_cfg, mode, kv, unit, wanted):
    keys = {
        "net": {"depth": 6, "width": 64},
        "net.route": {"mode": mode, "kv": kv},
        "task.seq_len": 256,
    }
    budget = {
        "objective.budget": wanted,
        "objective.unit": unit,
        "objective.device": "t4",
    }
    plan = plan_budget(tiny_cfg(keys | budget), 260, Length(100, 100))
    assert abs(plan.levels[-1] / wanted - 1) < 0.02
    assert plan.table[2][0] < plan.table[2][-1] and plan.light < plan.table[2][0]
    assert plan_budget(tiny_cfg(keys), 260, Length(100, 100)) is None
