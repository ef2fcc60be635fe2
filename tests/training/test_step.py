"""The training step: one device equals many, micro-batches equal one batch, one trace, and the
guards.
"""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cerebra_jax.errors import UserError
from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models.model import build, neutral_knobs
from cerebra_jax.policies.schedule import Length
from cerebra_jax.training import optimizer as optim
from cerebra_jax.training import parallel, state, step
from cerebra_jax.training.experiment import policies
from cerebra_jax.training.objective import Conditions, Objective

V, L, B = 40, 16, 8
LENGTH = Length(total=20, per_epoch=20)


class Task:
    """The smallest task: a loss over given batches."""

    def loss(self, out, batch, chunk):
        nats = chunked_xent(out.h, out.head_VxD, batch["labels_BxL"], batch["w_BxL"], chunk)
        return nats, {"loss": (nats, batch["w_BxL"].sum())}


def batch_at(i: int) -> dict:
    rng = np.random.RandomState(i)
    ids = rng.randint(0, V, (B, L + 1)).astype(np.int32)
    w = np.ones((B, L), np.float32)
    w[0, rng.randint(1, L) :] = 0  # uneven token counts: a mean of device means would be wrong
    w[B - 1] = 0  # a row of padding only
    return {
        "inputs_BxL": ids[:, :-1],
        "labels_BxL": ids[:, 1:],
        "w_BxL": w,
        "ex_B": np.arange(B, dtype=np.int32),
    }


def step_of(cfg):
    """The model, optimizer and training step of a configuration."""
    model = build(cfg, V)
    optimizer = optim.make(cfg.train, LENGTH)
    objective = Objective(model, Task(), policies(cfg))
    pure = step.make_train_step(objective, optimizer, cfg, LENGTH)
    return model, optimizer, pure


def train(cfg, devices: int, steps: int = 3, traces: list | None = None):
    model, optimizer, pure = step_of(cfg)

    def counted(*args, **kwargs):
        if traces is not None:
            traces.append(1)
        return pure(*args, **kwargs)

    dp = parallel.DataParallel(counted, step.make_eval_step(model, Task()), jax.devices()[:devices])
    s = dp.place(state.init(model, optimizer, batch_at(0), jax.random.key(cfg.seed)))
    history = []
    for i in range(steps):
        s, metrics = dp.step(s, dp.shard(batch_at(i)), jax.random.key(7))
        history.append(jax.tree.map(np.asarray, metrics))
    sums = jax.tree.map(np.asarray, dp.eval(s, dp.shard(batch_at(99))))
    return s, history, sums


def config(tiny_cfg, **extra):
    base = {
        "task.seq_len": L,
        "train.batch_size": B,
        "net.dropout": 0.2,
        "objective.lam": 0.5,
        "train.lr": 0.01,
    }
    return tiny_cfg(base | {"objective.warm": "1 steps", "objective.ramp": "2 steps"} | extra)


def assert_same_run(a, b):
    """Metrics, the gradient norm among them, to 5e-4.

    Parameters as a whole to 2e-3 of their norm (they moved by a third of it): Adam divides
    gradients that are nearly zero by their own size, which magnifies rounding.
    """
    (sa, ha, ea), (sb, hb, eb) = a, b
    apart = optax.tree.norm(
        jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), sa.params, sb.params)
    )
    assert apart < 2e-3 * optax.tree.norm(sa.params)
    np.testing.assert_allclose(sa.routing["tau"], sb.routing["tau"], rtol=1e-5)
    for ma, mb in zip([*ha, ea], [*hb, eb], strict=True):
        for name in ma:
            np.testing.assert_allclose(ma[name][0], mb[name][0], rtol=5e-4, atol=1e-4, err_msg=name)
            np.testing.assert_array_equal(ma[name][1], mb[name][1], err_msg=name)


@pytest.fixture(scope="module")
def single(tiny_cfg):
    traces = []
    return train(config(tiny_cfg), 1, traces=traces), traces


def test_n_devices_are_one_device(tiny_cfg, single):
    """Dropout on, uneven token counts, a device with nothing but padding."""
    assert_same_run(train(config(tiny_cfg), 8), single[0])


def test_micro_batches_are_one_batch(tiny_cfg, single):
    """Of one device; policies/test_sampled_runs.py has two of them with micro-batches."""
    assert_same_run(train(config(tiny_cfg, **{"train.accum": 4}), 1), single[0])


def test_one_trace_for_all_phases_and_knobs_move(single):
    (_, history, _), traces = single
    assert len(traces) == 1
    assert [float(m["lam"][0]) for m in history] == [0.0, 0.0, 0.25]
    assert history[0]["temperature"][0] > history[2]["temperature"][0]


def test_metrics_are_sums_over_real_tokens_and_rows(single):
    (_, history, _), _ = single
    for i, m in enumerate(history):
        w = batch_at(i)["w_BxL"]
        assert m["task/loss"][1] == w.sum() and m["expected"][1] == B - 1
        assert 2 < m["task/loss"][0] / m["task/loss"][1] < 6
        assert 0 < m["hard"][0] / m["hard"][1] < 1.1
        assert m["kept"][0].shape == (1,)


def test_the_penalty_lowers_the_expected_cost_of_a_learned_router(tiny_cfg):
    extra = {
        "net.route.mode": "hard",
        "net.dropout": 0.0,
        "net.route.capacity": 4.0,
        "objective.warm": "0 steps",
    }
    free = train(config(tiny_cfg, **extra, **{"objective.lam": 0.0}), 1, steps=12)
    paid = train(config(tiny_cfg, **extra, **{"objective.lam": 30.0}), 1, steps=12)
    assert paid[1][-1]["expected"][0] < 0.98 * free[1][-1]["expected"][0]


def test_a_step_that_is_not_finite_changes_nothing_but_the_count(tiny_cfg):
    cfg = config(tiny_cfg)
    model, optimizer, pure = step_of(cfg)
    run = jax.jit(pure)
    s = state.init(model, optimizer, batch_at(0), jax.random.key(0))
    s, _ = run(s, batch_at(0), jax.random.key(7))
    bad = batch_at(1)
    bad["w_BxL"] = np.where(bad["w_BxL"] > 0, np.inf, 0).astype(np.float32)
    after, _ = run(s, bad, jax.random.key(7))
    assert int(after.skipped) == 1 and int(after.step) == 2
    for name in ("params", "opt_state", "routing"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(s, name))
    again, _ = run(after, batch_at(2), jax.random.key(7))
    assert int(again.skipped) == 0


def test_gradient_matches_finite_differences(tiny_cfg):
    """The objective, penalty included, along a random direction, of the smooth (soft) model."""
    cfg = config(tiny_cfg, **{"net.route.mode": "soft", "net.dropout": 0.0})
    model = build(cfg, V)
    objective = Objective(model, Task())
    variables = model.init(jax.random.key(0), batch_at(0))
    knobs = neutral_knobs()._replace(lam=jnp.float32(0.5))

    @jax.jit
    def J(params):
        one = jnp.float32(100.0)
        conditions = Conditions(knobs, None, one, one)
        return objective(variables | {"params": params}, batch_at(0), conditions)[0]

    def moved(p):
        noise = np.random.RandomState(p.size).standard_normal(p.shape)
        return p + 0.05 * noise.astype(np.float32)

    params = jax.tree.map(moved, variables["params"])
    g = jax.jit(jax.grad(J))(params)
    flat, unravel = jax.flatten_util.ravel_pytree(g)
    d = flat / jnp.linalg.norm(flat)
    p0, unravel = jax.flatten_util.ravel_pytree(params)
    eps = 2e-2
    slope = (J(unravel(p0 + eps * d)) - J(unravel(p0 - eps * d))) / (2 * eps)
    np.testing.assert_allclose(slope, flat @ d, rtol=1e-2)


def test_a_penalty_that_can_move_nothing_is_refused(tiny_cfg):
    cfg = config(
        tiny_cfg, **{"net.depth": 2}
    )  # first and last layer only: no routed layer, constant cost
    model, optimizer = build(cfg, V), optim.make(cfg.train, LENGTH)
    s = state.init(model, optimizer, batch_at(0), jax.random.key(0))
    with pytest.raises(UserError, match="lam"):
        step.check_cost_gradient(model, s, batch_at(0), 0.5)
    step.check_cost_gradient(model, s, batch_at(0), 0.0)
    live = config(tiny_cfg)
    model = build(live, V)
    s = state.init(model, optimizer, batch_at(0), jax.random.key(0))
    step.check_cost_gradient(model, s, batch_at(0), 0.5)


def test_a_router_that_keeps_no_more_than_its_floor_is_not_refused(tiny_cfg):
    """Its cost is flat where it stands; the task may move it to where it is not."""
    route = {"mode": "threshold", "tau": "learned", "floor": 0.2}
    cfg = config(tiny_cfg, net={"name": "cerebra", "depth": 2, "route": route})
    model, optimizer = build(cfg, V), optim.make(cfg.train, LENGTH)
    s = state.init(model, optimizer, batch_at(0), jax.random.key(0))

    def low(path, p):
        return p - 20.0 * (path[-2].key == "score" and path[-1].key == "bias")

    params = jax.tree_util.tree_map_with_path(low, s.params)

    def cost(params):
        return model.apply({"params": params, "routing": s.routing}, batch_at(0), neutral_knobs())[
            1
        ].expected_B.sum()

    assert all(not g.any() for g in jax.tree.leaves(jax.jit(jax.grad(cost))(params)))
    step.check_cost_gradient(model, s.replace(params=params), batch_at(0), 0.5)


def test_devices_are_chosen_to_divide_the_batch():
    assert len(parallel.choose_devices(0, 12, 1)) == 6
    assert len(parallel.choose_devices(2, 8, 2)) == 2
    for wanted, batch, accum in [(9, 16, 1), (3, 16, 1)]:
        with pytest.raises(UserError):
            parallel.choose_devices(wanted, batch, accum)


def test_the_first_step_learns(tiny_cfg, single):
    cfg = tiny_cfg({"train": {"warmup": "4 steps", "duration": "8 steps"}}).train
    lr_at = optim.learning_rate(cfg, Length(8, 8))
    np.testing.assert_allclose(
        [float(lr_at(i)) for i in range(4)], [cfg.lr * n / 4 for n in (1, 2, 3, 4)], rtol=1e-6
    )
    np.testing.assert_allclose(float(lr_at(7)), cfg.lr * cfg.lr_end, rtol=1e-5)


def test_decay_reaches_matrices_only_and_every_parameter_has_one_rule(tiny_cfg):
    for name in ("transformer", "chiar"):
        model = build(tiny_cfg({"net.name": name, "task.seq_len": L}), V)
        params = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), batch_at(0)))["params"]
        labels = optim.trees.label(params, optim.DECAY_RULES)
        kinds = {
            (lab, len(p.shape))
            for lab, p in zip(jax.tree.leaves(labels), jax.tree.leaves(params), strict=True)
        }
        assert kinds <= {("decay", 2), ("keep", 1)}
