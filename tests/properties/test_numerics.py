"""A run does not depend on how it is computed: on how many devices, in which dtype or phase."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models import registry
from cerebra_jax.models.model import build
from cerebra_jax.policies.schedule import Length
from cerebra_jax.training import optimizer as optim
from cerebra_jax.training import parallel, state, step
from cerebra_jax.training.experiment import policies
from cerebra_jax.training.objective import Conditions, Objective
from cerebra_jax.types import Knobs

V, L, B, TOTAL = 40, 16, 8, 20
CHIAR = {"net.name": "chiar", "net.route.kv": "routed"}
CAUSAL = {
    "net": {"name": "cerebra", "depth": 1, "compress": {"kind": "hybrid", "reconstruct": 0.1}},
    "net.route": {"tau": "learned", "kv": "routed", "floor": 0.1, "ceiling": 0.6},
}
ENCODER = {"net": {"name": "cerebra", "depth": 1}, "encoder": {"mode": "topk", "rate": 0.25}}
LINEAR = {
    "net": {"name": "cerebra", "depth": 1, "heavy": "gla", "light": "gla"},
    "net.route": {"kv": "routed"},
}
DENSE = {"net.name": "transformer", "objective.lam": 0.0}


class Task:
    def loss(self, out, batch, chunk):
        nats = chunked_xent(out.h, out.head_VxD, batch["labels_BxL"], batch["w_BxL"], chunk)
        return nats, {"loss": (nats, batch["w_BxL"].sum())}


def config(tiny_cfg, what):
    """Returns the configuration of `what`; encoder: routing keys that no text task accepts."""
    what = dict(what)
    encoder = what.pop("encoder", None)
    base = {
        "task.seq_len": L,
        "train.batch_size": B,
        "net.dropout": 0.2,
        "objective.lam": 0.5,
        "train.lr": 0.01,
    }
    cfg = tiny_cfg(base | {"objective.warm": "1 steps", "objective.ramp": "2 steps"} | what)
    if encoder:
        route = dataclasses.replace(cfg.net.route, **encoder)
        cfg = dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, causal=False, route=route))
    return cfg


def batch_at(i: int, causal: bool) -> dict:
    """Returns a batch of uneven token counts, with a row of padding only."""
    rng = np.random.RandomState(i)
    ids = rng.randint(0, V, (B, L + 1)).astype(np.int32)
    w = np.ones((B, L), np.float32)
    w[0, rng.randint(1, L) :] = 0
    w[B - 1] = 0
    batch = {
        "inputs_BxL": ids[:, :-1],
        "labels_BxL": ids[:, 1:],
        "w_BxL": w,
        "ex_B": np.arange(B, dtype=np.int32),
    }
    return batch if causal else batch | {"mask_BxL": w > 0}


def train(cfg, devices: int, steps: int = 4):
    """(state, metric sums of each step, traces): warm, ramp and full phase."""
    model, optimizer, traces = build(cfg, V), optim.make(cfg.train, Length(TOTAL, TOTAL)), []
    objective = Objective(model, Task(), policies(cfg))
    pure = step.make_train_step(objective, optimizer, cfg, Length(TOTAL, TOTAL))

    def counted(*args, **kwargs):
        traces.append(1)
        return pure(*args, **kwargs)

    dp = parallel.DataParallel(counted, step.make_eval_step(model, Task()), jax.devices()[:devices])
    s = dp.place(
        state.init(model, optimizer, batch_at(0, cfg.net.causal), jax.random.key(cfg.seed))
    )
    history = []
    for i in range(steps):
        s, metrics = dp.step(s, dp.shard(batch_at(i, cfg.net.causal)), jax.random.key(7))
        history.append(jax.tree.map(np.asarray, metrics))
    return s, history, len(traces)


@pytest.mark.parametrize(
    ("what", "devices"),
    [(CAUSAL, 8), (ENCODER, 8), (LINEAR, 2)],
    ids=["causal", "encoder", "gla"],
)
def test_one_device_is_many_in_one_trace_for_all_phases(tiny_cfg, what, devices):
    """Dropout, routing noise and penalty are on. Of 8 devices one has nothing but padding.

    This is Cerebra; training/test_step.py has CHIAR.
    """
    cfg = config(tiny_cfg, what)
    one, history, traces = train(cfg, 1)
    assert traces == 1 and [float(m["lam"][0]) for m in history] == [0.0, 0.0, 0.25, 0.5]
    many, again, traces = train(cfg, devices)
    assert traces == 1
    # Adam divides gradients that are nearly zero by their own size, which magnifies rounding
    apart = optax.tree.norm(
        jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), one.params, many.params)
    )
    assert apart < 2e-3 * optax.tree.norm(one.params)
    for x, y in zip(history, again, strict=True):
        for name in x:
            np.testing.assert_allclose(x[name][0], y[name][0], rtol=1e-3, atol=2e-4, err_msg=name)
            np.testing.assert_array_equal(x[name][1], y[name][1], err_msg=name)


@pytest.mark.parametrize("what", [DENSE, CHIAR, CAUSAL], ids=["dense", "chiar", "cerebra"])
def test_bfloat16_has_the_loss_and_the_gradients_of_float32(tiny_cfg, what):
    """Loss and hard cost within 0.2 %, the direction of the gradient within a cosine of 0.9995.

    The hard cost steps by more if one token is routed otherwise.
    """
    found = {}
    cfg = config(tiny_cfg, what)
    knobs, batch = Knobs(jnp.float32(0.1), jnp.float32(1), jnp.float32(1)), batch_at(0, True)
    variables = jax.eval_shape(lambda: build(cfg, V).init(jax.random.key(0), batch))
    rng = np.random.RandomState(0)

    def fill(path, s):
        return np.float32((path[-1].key in ("scale", "w")) + 0.2 * rng.standard_normal(s.shape))

    params = jax.tree_util.tree_map_with_path(fill, variables["params"])
    routing = registry.init_routing(cfg.net)
    for dtype in ("float32", "bfloat16"):
        model = build(dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, dtype=dtype)), V)

        @jax.jit
        def both(params, model=model):
            def loss(params):
                variables = {"params": params, "routing": routing}
                conditions = Conditions(knobs, None, 60.0, 7.0)
                total, (sums, *_) = Objective(model, Task())(variables, batch, conditions)
                return total, sums

            (total, sums), grads = jax.value_and_grad(loss, has_aux=True)(params)
            return total, sums["hard"][0], jax.flatten_util.ravel_pytree(grads)[0]

        found[dtype] = both(params)
    (loss, hard, g), (low_loss, low_hard, low) = found["float32"], found["bfloat16"]
    np.testing.assert_allclose(low_loss, loss, rtol=2e-3)
    np.testing.assert_allclose(low_hard, hard, rtol=2e-3)
    assert g @ low > 0.9995 * jnp.linalg.norm(g) * jnp.linalg.norm(low)
