"""Three operators: each token takes one, use is what it says, and the reward against collapse has a gradient."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.config import NetCfg, RouteCfg
from cerebra_jax.errors import UserError
from cerebra_jax.models import model as build
from cerebra_jax.routing import entropy_router as decide
from cerebra_jax.types import Knobs

V, B, L = 40, 4, 48
BASE = {"task.seq_len": L, "net.depth": 3, "net.ffn_width": 32}


def batch_of(seed: int = 0) -> dict:
    ids = np.random.RandomState(seed).randint(0, V, (B, L)).astype(np.int32)
    return {"inputs_BxL": ids, "ex_B": np.arange(B, dtype=np.int32)}


@pytest.fixture(scope="module")
def make(tiny_cfg):
    """(model, parameters, apply(params, batch, routing) -> (Out, Aux)) of net.route keys, with large weights."""

    def get(**route):
        cfg = tiny_cfg(BASE | {"net.route": {"rbf": 0.3} | route})
        model = build.build(cfg, V)
        shapes = jax.eval_shape(lambda key: model.init(key, batch_of()), jax.random.key(0))
        rng = np.random.RandomState(1)

        def fill(path, s):
            return jnp.float32(
                (path[-1].key in ("scale", "w")) + 0.2 * rng.standard_normal(s.shape)
            )

        params = jax.tree_util.tree_map_with_path(fill, shapes["params"])
        routing = build.MODELS["chiar"].routing(cfg.net)
        # a temperature other than 1: the gradient must know it
        knobs = Knobs(jnp.float32(0), jnp.float32(2), jnp.float32(1))
        run = jax.jit(
            lambda params, batch, routing: model.apply(
                {"params": params, "routing": routing}, batch, knobs
            )
        )
        for _ in (
            range(3) if routing else ()
        ):  # a layer's thresholds depend on the decisions below it
            routing = {
                name: x.mean(1) for name, x in run(params, batch_of(), routing)[1].observed.items()
            }
        return model, params, routing, run

    return get


@pytest.mark.parametrize("mode", ["threshold", "hard", "soft", "random"])
def test_the_uses_of_the_operators_add_up_and_are_priced(make, mode):
    """hard_B counts each kept token, its visible keys and each token of the mixer; nothing of the filter."""
    model, params, routing, run = make(mode=mode, kv="routed", capacity=4.0, rate=0.25)
    aux = run(params, batch_of(1), routing)[1]
    use = {
        name: np.asarray(aux.stats[f"use_{name}"], np.float64)
        for name in ("dct", "rbf", "attention")
    }
    np.testing.assert_allclose(sum(use.values()), 1.0, atol=1e-6)
    assert all((u >= 0).all() and u.mean() > 0.02 for u in use.values())
    if mode == "soft":
        return
    assert float(jnp.abs(aux.stats["overflow"]).max()) < 1e-6
    np.testing.assert_allclose(use["attention"], aux.stats["kept"], atol=1e-6)
    if mode in (
        "threshold",
        "random",
    ):  # three blocks of 48 tokens each: shares are near those asked for
        assert abs(use["attention"].mean() - 0.25) < 0.1 and abs(use["rbf"].mean() - 0.3) < 0.1
    each, n = build.decisions(model.net, L, V, model.unit), L * use["attention"]
    want_B = each.fixed + (
        n * each.token + n * (n + 1) / 2 * each.pair + L * use["rbf"] * each.mixed
    ).sum(0)
    np.testing.assert_allclose(aux.hard_B, want_B, rtol=1e-5)
    assert each.mixed > 0


@pytest.mark.parametrize("mode", ["threshold", "hard"])
def test_dispatch_without_overflow_equals_the_masked_model(make, mode):
    _, params, routing, run = make(mode=mode, kv="routed", capacity=4.0, rate=0.25)
    _, _, _, masked = make(mode=mode, kv="routed", capacity=4.0, rate=0.25, dispatch=False)
    got, want = (f(params, batch_of(2), routing)[0].h for f in (run, masked))
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("rbf", [0.0, 0.3])
@pytest.mark.parametrize("mode", ["threshold", "hard", "soft"])
def test_the_entropy_of_mean_use_has_its_own_gradient(mode, rbf):
    """Its derivative along a direction is that of differences, so a step up the gradient spreads the use."""
    net = NetCfg(width=16, route=RouteCfg(mode=mode, rbf=rbf))
    x, way = (jnp.float32(np.random.RandomState(i).standard_normal((2, 30, 16))) for i in (0, 1))
    module, args = decide.Decision(net), (2.0, 0.75, 0.6, 0.05, 0, jnp.arange(2))
    params = module.init(jax.random.key(2), x, x, *args)
    params = jax.tree.map(lambda p: 3 * p + 0.5, params)  # one operator is far ahead

    @jax.jit
    def entropy(x):
        choice = module.apply(params, x, x, *args)
        kept = choice.attention.wanted
        found = decide.uses(choice, kept, choice.rbf and choice.rbf.wanted, mode == "soft")
        return found["use_entropy"].sum()

    slope = jax.grad(entropy)(x)
    assert float(jnp.abs(slope).max()) > 1e-4
    for towards in (slope / jnp.linalg.norm(slope), way / jnp.linalg.norm(way)):
        found = (entropy(x + 0.02 * towards) - entropy(x - 0.02 * towards)) / 0.04
        np.testing.assert_allclose(found, (slope * towards).sum(), rtol=0.02, atol=2e-4)


@pytest.mark.parametrize("mode", ["threshold", "hard"])
def test_the_reward_against_collapse_reaches_the_parameters(make, mode):
    _, params, routing, run = make(mode=mode, collapse=0.7, kv="routed")

    @jax.jit
    def both(params):
        def loss(params):
            aux = run(params, batch_of(3), routing)[1]
            return aux.losses["collapse"].sum(), aux.stats["use_entropy"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    (total, entropy_RxB), slope = both(params)
    np.testing.assert_allclose(total, -0.7 * entropy_RxB.mean(0).sum(), rtol=1e-6)
    assert float(jnp.abs(slope["embed"]["table"]).max()) > 1e-6
    if mode == "hard":  # the scores themselves learn from it
        assert float(jnp.abs(slope["layer_00"]["router"]["score"]["kernel"]).max()) > 1e-5


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"net.route": {"rbf": 0.3, "mode": "always_full"}}, "net.route.rbf is set for chiar"),
        ({"net.route": {"collapse": 0.3, "mode": "random"}}, "chance takes no reward"),
        ({"net.name": "cerebra", "net.route.rbf": 0.3}, "operators of chiar"),
        ({"net.route": {"rbf": 0.8, "rate": 0.25}}, "more than all tokens"),
        ({"net.route.rbf": 0.3, "objective.budget": 0.5}, "a budget knows two paths"),
        ({"net.route": {"rbf": 0.3, "mode": "hard", "floor": 0.1}}, "choice among three"),
    ],
)
def test_what_three_operators_cannot_do_is_refused(tiny_cfg, keys, said):
    with pytest.raises(UserError, match=said):
        tiny_cfg(keys)


def test_the_bytes_of_the_mixer_are_not_priced(tiny_cfg):
    cfg = tiny_cfg(BASE | {"net.route.rbf": 0.3, "objective.unit": "bytes"})
    with pytest.raises(UserError, match="RBF mixer.*objective.unit=flops"):
        build.build(cfg, V)
    assert build.twin(dataclasses.replace(cfg, twin="random"), V).net.route.mode == "random"
