"""Cerebra as an encoder and in training: padding, exact top-k, controls, expected cost, losses."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import config, trees
from cerebra_jax.config import NetCfg, RouteCfg
from cerebra_jax.cost import count
from cerebra_jax.cost.units import FLOPS
from cerebra_jax.models import registry
from cerebra_jax.models.model import Pricing, build, cost_of, dense_of, kept_cost, neutral_knobs
from cerebra_jax.models.shapes import layer_shapes
from cerebra_jax.routing import decision_cost

V, B, L = 20, 3, 24
IDS = np.random.RandomState(0).randint(0, V, (B, L)).astype(np.int32)
OTHER = (IDS + 7) % V
MASK = np.array([[24], [11], [0]]) > np.arange(L)[None]
EVERYONE = np.ones_like(MASK)
RUN = config.parse({"task": {"seq_len": L}})


def net_of(causal=False, **changes) -> NetCfg:
    route = RouteCfg(**({"mode": "topk", "rate": 0.25} | changes.pop("route", {})))
    sizes = {"depth": 2, "width": 16, "heads": 2, "ffn_width": 32}
    return NetCfg(**{"name": "cerebra", "causal": causal, "route": route} | sizes | changes)


def pricing(length: int = L) -> Pricing:
    return Pricing(length, V, FLOPS, "cpu")


def batch_of(ids, mask=None):
    batch = {"inputs_BxL": ids, "ex_B": jnp.arange(len(ids))}
    return batch if mask is None else batch | {"mask_BxL": mask}


class Made:
    """A model with random parameters; run(ids, mask, key) -> (features, aux)."""

    def __init__(self, net: NetCfg):
        self.net, self.model = net, build(dataclasses.replace(RUN, net=net), V)
        self.routing = registry.init_routing(net)
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), batch_of(IDS))
        rng = np.random.RandomState(1)

        def fill(path, s):
            centre = float(path[-1].key == "scale")
            return jnp.asarray(centre + 0.2 * rng.standard_normal(s.shape), jnp.float32)

        self.params = jax.tree_util.tree_map_with_path(fill, shapes["params"])
        self.jitted = jax.jit(self.forward)

    def run(self, ids, mask=None, key=None, **batch):
        return self.jitted(self.params, ids, mask, key, **batch)

    def forward(self, params, ids, mask=None, key=None, **batch):
        rngs = None if key is None else {"route": key}
        given = batch_of(ids, mask) | batch
        module = self.model.module
        own = {"params": params}
        out, aux = module.apply(own, given, neutral_knobs(), self.routing, rngs=rngs)
        return out.h, aux


made = functools.cache(Made)
RECONSTRUCTS = dataclasses.replace(net_of().compress, reconstruct=0.1)
ENCODERS = {
    "topk": {},
    "topk-kv-routed": {"route": {"kv": "routed"}},
    "topk-masked": {"route": {"kv": "routed", "dispatch": False}},
    "threshold": {"route": {"mode": "threshold", "kv": "routed"}},
    "random": {"route": {"mode": "random"}},
    "soft": {"route": {"mode": "soft"}},
    "local": {"local": 5},
    "always_full": {"route": {"mode": "always_full"}},
    "always_compressed": {"route": {"mode": "always_compressed"}},
}
DIRECTION = np.random.RandomState(3).standard_normal((B, L, 16)).astype(np.float32)


@functools.cache
def encoder(name: str):
    """The model of a case, and one program: ids, mask -> features, aux, gradients."""
    m = Made(net_of(**{"compress": RECONSTRUCTS} | ENCODERS[name]))

    @jax.jit
    def run(ids, mask):
        def loss(params):
            h, aux = m.forward(params, ids, mask)
            # no z-loss: the gates alone must teach the router
            lost = [x.sum() for name, x in aux.losses.items() if name != "z_loss"]
            return (h * DIRECTION * mask[..., None]).sum() + sum(lost), (h, aux)

        grads, (h, aux) = jax.grad(loss, has_aux=True)(m.params)
        return h, aux, grads

    return run


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_changes_nothing_and_every_token_sees_every_token(name):
    run = encoder(name)
    h, aux, _ = run(IDS, MASK)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((h, aux)))
    after = run(np.where(MASK, IDS, OTHER), MASK)[0]
    np.testing.assert_array_equal(np.asarray(h)[MASK], np.asarray(after)[MASK])

    full = run(IDS, EVERYONE)[0]
    changed = run(np.where(np.arange(L)[None] == L - 1, OTHER, IDS), EVERYONE)[0]
    assert (np.abs(full - changed).max(-1)[:, : L - 1] > 0).all()  # the last token is seen by all
    alone = run(np.concatenate([IDS[:1], (IDS[1:] + 3) % V]), EVERYONE)[0]
    np.testing.assert_allclose(full[0], alone[0], rtol=1e-5, atol=1e-5)  # batch mates are not


@pytest.mark.parametrize("name", ENCODERS)
def test_every_parameter_of_an_encoder_gets_a_gradient(name):
    grads = encoder(name)(IDS, MASK)[2]
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all(), jax.tree_util.keystr(path)
        assert np.abs(g).max() > 0, jax.tree_util.keystr(path)


def test_the_dense_encoder_ignores_padding_too():
    m = made(net_of(name="transformer"))
    h = m.run(IDS, MASK)[0]
    padded = m.run(np.where(MASK, IDS, OTHER), MASK)[0]
    np.testing.assert_array_equal(np.asarray(h)[MASK], np.asarray(padded)[MASK])
    assert np.isfinite(h).all()


@pytest.mark.parametrize("kv", ["all", "routed"])
def test_topk_keeps_exactly_k_in_every_layer_with_and_without_dispatch(kv):
    m = made(net_of(route={"kv": kv, "k": 8}))
    masked = made(net_of(route={"kv": kv, "k": 8, "dispatch": False}))
    h, aux = m.run(IDS)
    np.testing.assert_allclose(aux.stats["kept"], 8 / L)
    np.testing.assert_array_equal(aux.stats["overflow"], 0)
    np.testing.assert_allclose(h, masked.run(IDS)[0], rtol=2e-4, atol=2e-4)


def priced(p_RxL, cost, net: NetCfg) -> float:
    """What decisions with these probabilities cost in all layers, beyond what is fixed."""
    each = zip(jnp.asarray(p_RxL, jnp.float32), cost.layers, strict=True)
    kv, causal = net.route.kv, net.causal
    return sum(float(decision_cost.cost_of(p[None], one, kv, causal)[0]) for p, one in each)


@pytest.mark.parametrize("kv", ["all", "routed"])
def test_a_layer_keeps_and_pays_for_its_own_share(kv):
    """As rates of layers say, with and without dispatch; rates of 1 are no rates at all."""
    route = {"kv": kv, "by_layer": (0.5, 2.0)}
    m = made(net_of(route=route))
    h, aux = m.run(IDS)
    np.testing.assert_allclose(aux.stats["kept"], np.repeat([[3 / L], [12 / L]], B, 1))
    masked = made(net_of(route=route | {"dispatch": False}))
    np.testing.assert_allclose(h, masked.run(IDS)[0], rtol=2e-4, atol=2e-4)

    cost = pricing().decisions(m.net)
    own = priced(np.repeat([[0.125], [0.5]], L, 1), cost, m.net)
    np.testing.assert_allclose(kept_cost(m.net, pricing(), 0.25), cost.fixed + own, rtol=1e-5)
    even = priced(np.full((2, L), 0.25), cost, m.net)
    assert own > even or kv == "all"  # a square is convex

    alike, plain = (
        made(net_of(route=route | {"by_layer": (1.0, 1.0)})),
        made(net_of(route={"kv": kv})),
    )
    np.testing.assert_array_equal(alike.run(IDS)[0], plain.run(IDS)[0])
    assert kept_cost(alike.net, pricing(), 0.25) == kept_cost(plain.net, pricing(), 0.25)


@pytest.mark.parametrize("tau", ["running", "learned"])
def test_thresholds_floors_and_ceilings_follow_the_rate_of_a_layer(tau):
    route = {"mode": "threshold", "tau": tau, "by_layer": (0.4, 2.0), "floor": 0.1, "ceiling": 0.6}
    net = net_of(True, route=route)
    first, second = (shape.route for shape in layer_shapes(net))
    assert (first.rate, first.floor, first.ceiling) == pytest.approx((0.1, 0.04, 0.24))
    assert (second.rate, second.floor, second.ceiling) == pytest.approx((0.5, 0.2, 1.0))
    start = [0, 0] if tau == "learned" else [1.2816, 0.0]
    np.testing.assert_allclose(registry.init_routing(net)["tau"], start, atol=1e-4)
    greedy = net_of(True, route={"mode": "threshold", "rate": 0.9, "by_layer": (9.0, 1.0)})
    assert layer_shapes(greedy)[0].route.rate < 1


def test_noise_is_off_at_evaluation_and_moves_topk_in_training():
    m = made(net_of())
    still, key = m.run(IDS)[0], jax.random.key(0)
    np.testing.assert_array_equal(still, m.run(IDS)[0])
    noisy = m.run(IDS, None, key, ex_B=jnp.arange(B))[0]
    assert (noisy != still).any()
    # the noise follows the example, not its place in the batch
    turned = m.run(IDS[::-1], None, key, ex_B=jnp.arange(B)[::-1])[0]
    np.testing.assert_allclose(turned[::-1], noisy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "encoder"])
@pytest.mark.parametrize("kv", ["all", "routed"])
def test_expected_cost_is_the_mean_of_hard_costs_over_all_outcomes(kv, causal):
    net = net_of(causal, route={"mode": "threshold", "kv": kv})
    p = np.array([0.2, 0.9, 0.5, 0.7])
    one = pricing(4).decisions(net).layers[0]

    def cost(p_L) -> float:
        p_1xL = jnp.asarray(p_L, jnp.float32)[None]
        return float(decision_cost.cost_of(p_1xL, one, kv, causal)[0])

    outcomes = itertools.product([0, 1], repeat=4)
    mean = sum(np.prod(np.where(keep, p, 1 - p)) * cost(keep) for keep in outcomes)
    np.testing.assert_allclose(cost(p), mean, rtol=1e-5)

    whole = pricing().decisions(net)
    even = whole.fixed + priced(np.full((2, L), 0.3), whole, net)
    np.testing.assert_allclose(kept_cost(net, pricing(), 0.3), even, rtol=1e-5)


def test_hard_cost_at_the_ceiling_is_the_model_cost():
    for kv, causal in itertools.product(("all", "routed"), (True, False)):
        net = net_of(causal, route={"mode": "threshold", "kv": kv})
        cost = pricing().decisions(net)
        own, dense = (cost_of(each, L, V, "cpu").model_flops for each in (net, dense_of(net)))
        routed = priced(np.ones((2, L)), cost, net)
        np.testing.assert_allclose(cost.fixed + routed, own / dense, rtol=1e-6)
        np.testing.assert_allclose(kept_cost(net, pricing(), 1.0), own / dense, rtol=1e-12)


def test_the_controls_run_the_weights_of_the_routed_model():
    """always_full and always_compressed take a routed model's parameters; gates may be shut."""
    m = made(net_of(route={"mode": "soft"}))
    for mode in ("always_full", "always_compressed"):
        control = made(net_of(route={"mode": mode}))
        assert np.isfinite(control.jitted(m.params, IDS)[0]).all()
    shut = jax.tree.map(lambda x: x, m.params)
    for layer in ("layer_00", "layer_01"):
        shut[layer]["router"]["score"]["kernel"] *= 0
    np.testing.assert_allclose(m.jitted(shut, IDS)[1].stats["gate"], 0.5)


def test_auxiliary_losses_carry_their_weights():
    compress = dataclasses.replace(net_of().compress, reconstruct=2.0)
    aux = made(net_of(route={"z_loss": 0.5}, compress=compress)).run(IDS)[1]
    for name, weight in (("z_loss", 0.5), ("reconstruct", 2.0)):
        np.testing.assert_allclose(aux.losses[name], weight * aux.stats[name].mean(0), rtol=1e-6)
    square = jnp.square(aux.scores["score"]).mean(2)
    np.testing.assert_allclose(aux.stats["z_loss"], square, rtol=1e-5)


@pytest.mark.parametrize("name", ["cerebra", "transformer"])
@pytest.mark.parametrize(("features", "outputs"), [(0, 5), (3, 0), (3, 1)])
def test_feature_inputs_and_pooled_heads_for_classes_and_regressions(name, features, outputs):
    net = net_of(name=name, features=features, outputs=outputs)
    model = build(dataclasses.replace(RUN, net=net), V)
    x = np.random.RandomState(0).standard_normal((B, L, 3)).astype(np.float32)

    def batch(x, ids):
        return batch_of(ids, MASK) | ({"features_BxLxN": x} if features else {})

    def logits(params, x, ids):
        own = {"params": params, "routing": {}}
        return model.apply(own, batch(x, ids), neutral_knobs())[0].logits()

    @jax.jit
    def run(params, x, ids):
        def loss(params):
            found = logits(params, x, ids)
            return jnp.square(found - 1).sum(), found

        return jax.grad(loss, has_aux=True)(params)

    params = model.init(jax.random.key(0), batch(x, IDS))["params"]
    grads, got = run(params, x, IDS)
    assert got.shape == (B, 1 if outputs else L, outputs or V) and np.isfinite(got).all()
    other = run(params, np.where(MASK[..., None], x, 9.0), np.where(MASK, IDS, 0))[1]
    seen = slice(None) if outputs else MASK
    # padding is not pooled
    np.testing.assert_array_equal(np.asarray(got)[seen], np.asarray(other)[seen])
    lost = [p for p, g in trees.named_leaves(grads).items() if not np.abs(g).max() > 0]
    assert not lost
    assert count.count(logits, params, x, IDS).flops == B * model.cost.executed_flops


def test_the_penalty_stops_at_the_floor():
    """Expected cost has a gradient while more than the floor's share is kept, and none below it."""

    def steepest(floor: float) -> float:
        m = made(net_of(True, route={"mode": "threshold", "rate": 0.9, "floor": floor}))
        slope = jax.jit(jax.grad(lambda params: m.forward(params, IDS)[1].expected_B.sum()))
        return max(float(np.abs(g).max()) for g in jax.tree.leaves(slope(m.params)))

    assert steepest(0.0) > 1e-4
    assert steepest(1.0) == 0
