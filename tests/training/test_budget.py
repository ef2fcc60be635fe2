"""A budget inside the training step of a real model: it lands, on any number of devices, in one trace a program."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.layers import shapes
from cerebra_jax.models import model as build
from cerebra_jax.policies import budget
from cerebra_jax.routing import routers as router
from cerebra_jax.training import optimizer as optim
from cerebra_jax.training import parallel, state, step

V, L, B, TOTAL = 40, 32, 8, 160


class Task:
    def loss(self, out, batch, chunk):
        nats = chunked_xent(out.h, out.head_VxD, batch["labels_BxL"], batch["w_BxL"], chunk)
        return nats, {"loss": (nats, batch["w_BxL"].sum())}


def batch_at(i: int) -> dict:
    ids = np.random.RandomState(i).randint(0, V, (B, L + 1)).astype(np.int32)
    return {"inputs_BxL": ids[:, :-1], "labels_BxL": ids[:, 1:], "w_BxL": np.ones((B, L), np.float32),
            "ex_B": np.arange(B, dtype=np.int32)}  # fmt: skip


def train(cfg, steps: int, devices: int = 1, traces: list | None = None):
    """(state, metrics of each step, plan) with the last program of the plan."""
    plan = step.plan_budget(cfg, V, TOTAL, TOTAL)
    cfg = build.at_rate(cfg, plan.rates[-1])
    model, optimizer = build.build(cfg, V), optim.make(cfg.train, TOTAL, TOTAL)
    control = budget.Control(plan, len(plan.rates) - 1, cfg.net.route.capacity, 0.05, 1e3)
    pure = step.make_train_step(model, Task(), optimizer, cfg, TOTAL, TOTAL, control)

    def counted(*args, **kwargs):
        if traces is not None:
            traces.append(1)
        return pure(*args, **kwargs)

    dp = parallel.DataParallel(counted, step.make_eval_step(model, Task()), jax.devices()[:devices])
    s = dp.place(state.init(model, optimizer, batch_at(0), jax.random.key(0), cfg.objective))
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
    plan = step.plan_budget(cfg, V, TOTAL, TOTAL)
    assert 0.98 * 0.75 < plan.levels[-1] <= 0.75
    net = build.at_rate(cfg, plan.rates[-1]).net
    slots = np.array([router.layout(each, 128).K for each in shapes.each(net)])
    assert (
        abs(slots - np.minimum(128, slots[3] / 3 * np.array([0.25, 0.25, 0.5, 3]))) <= 2
    ).all() and slots[3] < 128
    even = build.pricing(config(tiny_cfg, **{"net.name": "cerebra", "task.seq_len": 128}), V)[1]
    assert build.pricing(cfg, V)[1](0.3) == pytest.approx(
        even(0.3), rel=0.02
    )  # a mean of 1, every token a key


@pytest.mark.parametrize("mode", ["threshold", "hard"])
def test_two_devices_are_one(tiny_cfg, mode):
    cfg = config(tiny_cfg, **{"net.route.mode": mode, "objective.lam": 1.0})
    (one, a, _), (two, b, _) = train(cfg, 4), train(cfg, 4, devices=2)
    assert float(one.dual["multiplier"]) != float(train(cfg, 1)[0].dual["multiplier"])  # it moves
    for name in ("multiplier", "gap"):
        np.testing.assert_allclose(one.dual[name], two.dual[name], rtol=1e-4, atol=1e-6)
    for x, y in zip(a, b, strict=True):
        for name in ("lam", "multiplier", "budget_target", "budget_gap", "rate"):
            np.testing.assert_allclose(x[name], y[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_step_that_is_not_finite_leaves_the_multiplier(tiny_cfg):
    cfg = config(tiny_cfg)
    plan = step.plan_budget(cfg, V, TOTAL, TOTAL)
    cfg = build.at_rate(cfg, plan.rates[-1])
    model, optimizer = build.build(cfg, V), optim.make(cfg.train, TOTAL, TOTAL)
    control = budget.Control(plan, len(plan.rates) - 1, cfg.net.route.capacity, 0.05, 1e3)
    run = jax.jit(step.make_train_step(model, Task(), optimizer, cfg, TOTAL, TOTAL, control))
    s = state.init(model, optimizer, batch_at(0), jax.random.key(0), cfg.objective)
    bad = batch_at(0)
    bad["w_BxL"] = np.full_like(bad["w_BxL"], np.inf)
    after, _ = run(s, bad, jax.random.key(7))
    assert int(after.skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, after.dual, s.dual)
    moved, _ = run(s, batch_at(0), jax.random.key(7))
    assert float(moved.dual["multiplier"]) != float(s.dual["multiplier"])
