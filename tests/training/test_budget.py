"""A budget inside the training step of a real model: it lands, on any number of devices, in one
trace a program.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models import model as build
from cerebra_jax.models.shapes import layer_shapes
from cerebra_jax.models.stack import capacity_of
from cerebra_jax.policies import budget
from cerebra_jax.policies.schedule import Length
from cerebra_jax.training import optimizer as optim
from cerebra_jax.training import parallel, state, step
from cerebra_jax.training.experiment import policies
from cerebra_jax.training.objective import Objective
from cerebra_jax.training.sizes import plan_budget

V, L, B, TOTAL = 40, 32, 8, 160
LENGTH = Length(TOTAL, TOTAL)


class Task:
    def loss(self, out, batch, chunk):
        nats = chunked_xent(out.h, out.head_VxD, batch["labels_BxL"], batch["w_BxL"], chunk)
        return nats, {"loss": (nats, batch["w_BxL"].sum())}


def batch_at(i: int) -> dict:
    ids = np.random.RandomState(i).randint(0, V, (B, L + 1)).astype(np.int32)
    return {
        "inputs_BxL": ids[:, :-1],
        "labels_BxL": ids[:, 1:],
        "w_BxL": np.ones((B, L), np.float32),
        "ex_B": np.arange(B, dtype=np.int32),
    }


def last_program(cfg):
    """The plan of a budget, and objective, training step and fresh state of its last program."""
    plan = plan_budget(cfg, V, LENGTH)
    cfg = build.at_rate(cfg, plan.rates[-1])
    cfg = dataclasses.replace(
        cfg, objective=dataclasses.replace(cfg.objective, dual_rate=0.05, lam_max=1e3)
    )
    control = budget.Budget(plan, len(plan.rates) - 1, cfg.net.route.capacity, cfg.objective)
    objective = Objective(build.build(cfg, V), Task(), (*policies(cfg), control))
    optimizer = optim.make(cfg.train, LENGTH)
    pure = step.make_train_step(objective, optimizer, cfg, LENGTH)
    fresh = state.init(
        objective.model, optimizer, batch_at(0), jax.random.key(0), objective.policies
    )
    return plan, objective, pure, fresh


def train(cfg, steps: int, devices: int = 1, traces: list | None = None):
    """(state, metrics of each step, plan) with the last program of the plan."""
    plan, objective, pure, fresh = last_program(cfg)

    def counted(*args, **kwargs):
        if traces is not None:
            traces.append(1)
        return pure(*args, **kwargs)

    eval_step = step.make_eval_step(objective.model, Task())
    dp = parallel.DataParallel(counted, eval_step, jax.devices()[:devices])
    s = dp.place(fresh)
    history = []
    for i in range(steps):
        s, sums = dp.step(s, dp.shard(batch_at(i)), jax.random.key(7))
        history.append({k: np.asarray(a) / np.asarray(n) for k, (a, n) in sums.items()})
    return s, history, plan


def config(tiny_cfg, **extra):
    base = {
        "task.seq_len": L,
        "train.batch_size": B,
        "net.depth": 4,
        "objective.budget": 0.75,
        "train.lr": 1e-3,
    }
    return tiny_cfg(base | {"objective.warm": "0 steps", "objective.ramp": "10 steps"} | extra)


@pytest.fixture(scope="module")
def landed(tiny_cfg):
    traces = []
    return *train(config(tiny_cfg), TOTAL, traces=traces), traces


def test_a_threshold_lands_on_the_budget_in_one_trace(landed):
    s, history, plan, traces = landed
    assert len(traces) == 1
    assert abs(plan.levels[-1] / 0.75 - 1) < 0.02
    target = history[-1]["budget_target"]
    assert abs(np.mean([m["hard"] for m in history[-40:]]) / target - 1) < 0.02
    assert all(m["multiplier"] >= 0 for m in history) and float(s.dual["multiplier"]) >= 0
    np.testing.assert_allclose(history[-1]["budget_gap"], history[-1]["hard"] - target, atol=1e-6)


def test_a_budget_scales_the_slots_of_layers_with_rates_of_their_own(tiny_cfg):
    """The last program still spends all of it, and its slots stand as net.route.by_layer says."""
    cfg = config(
        tiny_cfg,
        **{"net.name": "cerebra", "net.route.by_layer": "0.25,0.25,0.5,3", "task.seq_len": 128},
    )
    plan = plan_budget(cfg, V, LENGTH)
    assert 0.98 * 0.75 < plan.levels[-1] <= 0.75
    net = build.at_rate(cfg, plan.rates[-1]).net
    routes = [shape.route for shape in layer_shapes(net)]
    slots = np.array([capacity_of(net, route, 128, True).layout.K for route in routes])
    assert (
        abs(slots - np.minimum(128, slots[3] / 3 * np.array([0.25, 0.25, 0.5, 3]))) <= 2
    ).all() and slots[3] < 128
    even = build.pricing(config(tiny_cfg, **{"net.name": "cerebra", "task.seq_len": 128}), V)[1]
    assert build.pricing(cfg, V)[1](0.3) == pytest.approx(
        even(0.3), rel=0.02
    )  # a mean of 1, every token a key


def test_two_devices_are_one(tiny_cfg):
    cfg = config(tiny_cfg, **{"net.route.mode": "hard", "objective.lam": 1.0, "net.depth": 3})
    (one, a, _), (two, b, _) = train(cfg, 4), train(cfg, 4, devices=2)
    assert a[1]["multiplier"] != a[3]["multiplier"]  # it moves
    for name in ("multiplier", "gap"):
        np.testing.assert_allclose(one.dual[name], two.dual[name], rtol=1e-4, atol=1e-6)
    for x, y in zip(a, b, strict=True):
        for name in ("lam", "multiplier", "budget_target", "budget_gap", "rate"):
            np.testing.assert_allclose(x[name], y[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_step_that_is_not_finite_leaves_the_multiplier(tiny_cfg):
    cfg = config(tiny_cfg)
    _, _, pure, s = last_program(cfg)
    run = jax.jit(pure)
    bad = batch_at(0)
    bad["w_BxL"] = np.full_like(bad["w_BxL"], np.inf)
    after, _ = run(s, bad, jax.random.key(7))
    assert int(after.skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, after.dual, s.dual)
    moved, _ = run(s, batch_at(0), jax.random.key(7))
    assert float(moved.dual["multiplier"]) != float(s.dual["multiplier"])
