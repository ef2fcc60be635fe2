"""Three operators: each token takes one, use is what it says, collapse has a slope."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.config import RouteCfg
from cerebra_jax.errors import UserError
from cerebra_jax.kernels.dct import Spectrum
from cerebra_jax.layers.rows import ranks, tokens
from cerebra_jax.models import registry
from cerebra_jax.models.controls import control
from cerebra_jax.models.model import build
from cerebra_jax.routing.entropy_router import EntropyRouter, uses
from cerebra_jax.routing.routers import Circumstances, Thresholds
from cerebra_jax.types import Knobs

V, B, L = 40, 4, 48
BASE = {"task.seq_len": L, "net.depth": 3, "net.ffn_width": 32}
ROOMY = {"kv": "routed", "capacity": 4.0, "rate": 0.25}  # nothing overflows
# a temperature other than 1: the gradient must know it
KNOBS = Knobs(jnp.float32(0), jnp.float32(2), jnp.float32(1))


def batch_of(seed: int = 0) -> dict:
    ids = np.random.RandomState(seed).randint(0, V, (B, L)).astype(np.int32)
    return {"inputs_BxL": ids, "ex_B": np.arange(B, dtype=np.int32)}


class Made:
    """A model of net.route keys with large weights, and thresholds that fit them.

    run(params, batch, routing) -> (Out, Aux).
    """

    def __init__(self, cfg):
        self.model = build(cfg, V)
        shapes = jax.eval_shape(lambda key: self.model.init(key, batch_of()), jax.random.key(0))
        rng = np.random.RandomState(1)

        def fill(path, s):
            centre = path[-1].key in ("scale", "w")
            return jnp.float32(centre + 0.2 * rng.standard_normal(s.shape))

        self.params = jax.tree_util.tree_map_with_path(fill, shapes["params"])
        self.run = jax.jit(self.forward)
        self.routing = registry.init_routing(cfg.net)
        if self.routing:
            for _ in range(3):  # a layer's thresholds depend on the decisions below it
                observed = self.run(self.params, batch_of(), self.routing)[1].observed
                self.routing = {name: x.mean(1) for name, x in observed.items()}

    def forward(self, params, batch, routing):
        return self.model.apply({"params": params, "routing": routing}, batch, KNOBS)


@pytest.fixture(scope="module")
def make(tiny_cfg):
    found = {}

    def get(**route) -> Made:
        key = tuple(sorted(route.items()))
        if key not in found:
            found[key] = Made(tiny_cfg(BASE | {"net.route": {"rbf": 0.3} | route}))
        return found[key]

    return get


@pytest.mark.parametrize("mode", ["threshold", "hard", "soft", "random"])
def test_the_uses_of_the_operators_add_up_and_are_priced(make, mode):
    """hard_B counts kept tokens, their visible keys and tokens of the mixer, not the filter's."""
    m = make(mode=mode, **ROOMY)
    aux = m.run(m.params, batch_of(1), m.routing)[1]
    names = ("dct", "rbf", "attention")
    use = {name: np.asarray(aux.stats[f"use_{name}"], np.float64) for name in names}
    np.testing.assert_allclose(sum(use.values()), 1.0, atol=1e-6)
    assert all((u >= 0).all() and u.mean() > 0.02 for u in use.values())
    if mode == "soft":
        return
    assert float(jnp.abs(aux.stats["overflow"]).max()) < 1e-6
    np.testing.assert_allclose(use["attention"], aux.stats["kept"], atol=1e-6)
    if mode in ("threshold", "random"):
        # three blocks of 48 tokens each: shares are near those asked for
        assert abs(use["attention"].mean() - 0.25) < 0.1
        assert abs(use["rbf"].mean() - 0.3) < 0.1

    cost, want_B = m.model.pricing.decisions(m.model.net), 0.0
    assert len(cost.layers) == 1
    for r, one in enumerate(cost.layers):
        kept_B, mixed_B = L * use["attention"][r], L * use["rbf"][r]
        pairs_B = kept_B * (kept_B + 1) / 2
        want_B += kept_B * one.token + pairs_B * one.pair + mixed_B * one.mixed
        assert one.mixed > 0
    np.testing.assert_allclose(aux.hard_B, cost.fixed + want_B, rtol=1e-5)


def test_a_mixer_that_runs_for_every_token_costs_no_decision(tiny_cfg):
    """With kv=all every token is a key, so that taking the mixer adds nothing."""
    model = build(tiny_cfg(BASE | {"net.route": {"rbf": 0.3, "kv": "all"}}), V)
    assert [one.mixed for one in model.pricing.decisions(model.net).layers] == [0.0]


@pytest.mark.parametrize("mode", ["threshold", "hard"])
def test_dispatch_without_overflow_equals_the_masked_model(make, mode):
    m, masked = make(mode=mode, **ROOMY), make(mode=mode, dispatch=False, **ROOMY)
    got, want = (each.run(m.params, batch_of(2), m.routing)[0].h for each in (m, masked))
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("rbf", [0.0, 0.3])
@pytest.mark.parametrize("mode", ["threshold", "hard", "soft"])
def test_the_entropy_of_mean_use_has_its_own_gradient(mode, rbf):
    """Its derivative along a direction is that of differences: a step up it spreads the use."""
    x, way = (jnp.float32(np.random.RandomState(i).standard_normal((2, 30, 16))) for i in (0, 1))
    module = EntropyRouter(RouteCfg(mode=mode, rbf=rbf), "fft")
    now = Circumstances(Thresholds(0.75, 0.6, 0.05), 0, 2.0, jnp.arange(2))

    def rows(x):
        return tokens(x, ranks(30, True), True)

    params = module.init(jax.random.key(2), rows(x), Spectrum(x), now)
    params = jax.tree.map(lambda p: 3 * p + 0.5, params)  # one operator is far ahead

    @jax.jit
    def entropy(x):
        choice = module.apply(params, rows(x), Spectrum(x), now)
        kept = choice.attention.wanted
        found = uses(choice, kept, choice.rbf and choice.rbf.wanted, mode == "soft")
        return found["use_entropy"].sum()

    slope = jax.grad(entropy)(x)
    assert float(jnp.abs(slope).max()) > 1e-4
    for towards in (slope / jnp.linalg.norm(slope), way / jnp.linalg.norm(way)):
        found = (entropy(x + 0.02 * towards) - entropy(x - 0.02 * towards)) / 0.04
        np.testing.assert_allclose(found, (slope * towards).sum(), rtol=0.02, atol=2e-4)


@pytest.mark.parametrize("mode", ["threshold", "hard"])
def test_the_reward_against_collapse_reaches_the_parameters(make, mode):
    m = make(mode=mode, collapse=0.7, kv="routed")

    @jax.jit
    def both(params):
        def loss(params):
            aux = m.forward(params, batch_of(3), m.routing)[1]
            return aux.losses["collapse"].sum(), aux.stats["use_entropy"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    (total, entropy_RxB), slope = both(m.params)
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


def test_every_unit_prices_the_mixer(tiny_cfg):
    """FLOPs, bytes and seconds are three prices, and the mixer is in each of them."""
    prices = {}
    for unit in ("flops", "bytes", "seconds"):
        objective = {"objective.unit": unit, "objective.device": "t4"}
        cfg = tiny_cfg(BASE | objective | {"net.route": {"rbf": 0.3, "kv": "routed"}})
        pricing = build(cfg, V).pricing
        (one,) = pricing.decisions(cfg.net).layers
        without = dataclasses.replace(cfg.net, route=dataclasses.replace(cfg.net.route, rbf=0.0))
        assert one.mixed > 0
        assert pricing.executed(cfg.net) > pricing.executed(without)
        prices[unit] = one.mixed
    assert len(set(prices.values())) == 3
    random = control(dataclasses.replace(cfg, twin="random"), V)
    assert random.net.route.mode == "random"
