"""Cerebra as an encoder and in training: padding, exact top-k, controls, the expected cost, the auxiliary losses."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import trees
from cerebra_jax.config import NetCfg, RouteCfg
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.layers import shapes
from cerebra_jax.models import cerebra, transformer
from cerebra_jax.models.model import neutral_knobs
from cerebra_jax.routing import routers as router
from cerebra_jax.routing.routers import init_routing

V, B, L = 20, 3, 24
IDS = np.random.RandomState(0).randint(0, V, (B, L)).astype(np.int32)
MASK = np.arange(L)[None] < np.array([[24], [11], [0]])


def net_of(causal=False, **changes):
    route = RouteCfg(**({"mode": "topk", "rate": 0.25} | changes.pop("route", {})))
    sizes = {"depth": 2, "width": 16, "heads": 2, "ffn_width": 32}
    return NetCfg(name="cerebra", causal=causal, route=route, **sizes, **changes)


class Made:
    """A model with random parameters, and its forward pass: run(ids, mask, key) -> (features, aux)."""

    def __init__(self, net, cls=cerebra.Cerebra):
        self.net, self.module, routing = net, cls(net, V), init_routing(net)
        shapes = jax.eval_shape(
            lambda: self.module.init(jax.random.key(0), _batch(IDS), neutral_knobs(), routing)
        )
        rng = np.random.RandomState(1)

        def fill(path, s):
            return jnp.asarray(
                (path[-1].key == "scale") + 0.2 * rng.standard_normal(s.shape), jnp.float32
            )

        self.params = jax.tree_util.tree_map_with_path(fill, shapes["params"])
        self.run = jax.jit(
            lambda ids, mask=None, key=None: self.forward(self.params, ids, mask, key)
        )

    def forward(self, params, ids, mask=None, key=None, **batch):
        rngs = None if key is None else {"route": key}
        variables, routing = {"params": params}, init_routing(self.net)
        out, aux = self.module.apply(
            variables, _batch(ids, mask) | batch, neutral_knobs(), routing, rngs=rngs
        )
        return out.h, aux


def _batch(ids, mask=None):
    return {"inputs_BxL": ids, "ex_B": jnp.arange(len(ids))} | (
        {} if mask is None else {"mask_BxL": mask}
    )


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


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_changes_nothing_and_every_token_sees_every_token(name):
    m = Made(net_of(**ENCODERS[name]))
    h, aux = m.run(IDS, MASK)
    assert np.isfinite(h).all() and all(np.isfinite(x).all() for x in jax.tree.leaves(aux))
    other = np.where(MASK, IDS, (IDS + 7) % V)
    after = m.run(other, MASK)[0]
    np.testing.assert_array_equal(np.asarray(h)[MASK], np.asarray(after)[MASK])
    full = m.run(IDS)[0]
    changed = m.run(np.where(np.arange(L)[None] == L - 1, (IDS + 7) % V, IDS))[0]
    assert (np.abs(full - changed).max(-1)[:, : L - 1] > 0).all()  # the last token is seen by all
    alone = m.run(np.concatenate([IDS[:1], (IDS[1:] + 3) % V]))[0]
    np.testing.assert_allclose(full[0], alone[0], rtol=1e-5, atol=1e-5)  # batch mates are not


def test_the_dense_encoder_ignores_padding_too():
    m = Made(dataclasses.replace(net_of(), name="transformer"), transformer.Transformer)
    h = m.run(IDS, MASK)[0]
    np.testing.assert_array_equal(
        np.asarray(h)[MASK], np.asarray(m.run((IDS + 7 * ~MASK) % V, MASK)[0])[MASK]
    )
    assert np.isfinite(h).all()


@pytest.mark.parametrize("kv", ["all", "routed"])
def test_topk_keeps_exactly_k_in_every_layer_with_and_without_dispatch(kv):
    m = Made(net_of(route={"kv": kv, "k": 8}))
    masked = Made(net_of(route={"kv": kv, "k": 8, "dispatch": False}))
    h, aux = m.run(IDS)
    np.testing.assert_allclose(aux.stats["kept"], 8 / L)
    np.testing.assert_array_equal(aux.stats["overflow"], 0)
    np.testing.assert_allclose(h, masked.run(IDS)[0], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kv", ["all", "routed"])
def test_a_layer_keeps_and_pays_for_its_own_share(kv):
    """As rates of layers say, with and without dispatch; with all of them 1 it is the model without."""
    m = Made(net_of(route={"kv": kv, "by_layer": "0.5,2"}))
    masked = Made(net_of(route={"kv": kv, "by_layer": "0.5,2", "dispatch": False}))
    h, aux = m.run(IDS)
    np.testing.assert_allclose(aux.stats["kept"], np.repeat([[3 / L], [12 / L]], B, 1))
    np.testing.assert_allclose(h, masked.run(IDS)[0], rtol=2e-4, atol=2e-4)
    each = cerebra.decisions(m.net, L, V)
    p_RxL = np.repeat([[0.125], [0.5]], L, 1).astype(np.float32)
    drawn = each.fixed + float(router.decided(m.net, p_RxL, L, each).sum())
    np.testing.assert_allclose(router.kept_cost(m.net, L, each, 0.25), drawn, rtol=1e-5)
    alike, plain = Made(net_of(route={"kv": kv, "by_layer": "1,1"})), Made(net_of(route={"kv": kv}))
    np.testing.assert_array_equal(alike.run(IDS)[0], plain.run(IDS)[0])
    even = np.full((1, L), 0.25, np.float32)
    assert router.kept_cost(alike.net, L, each, 0.25) == router.kept_cost(plain.net, L, each, 0.25)
    assert (
        drawn > each.fixed + 2 * float(router.decided(m.net, even, L, each)[0]) or kv == "all"
    )  # a square is convex


@pytest.mark.parametrize("tau", ["running", "learned"])
def test_thresholds_floors_and_ceilings_follow_the_rate_of_a_layer(tau):
    route = {"mode": "threshold", "tau": tau, "by_layer": "0.4,2", "floor": 0.1, "ceiling": 0.6}
    net = net_of(True, route=route)
    first, second = (each.route for each in shapes.each(net))
    assert (first.rate, first.floor, first.ceiling) == pytest.approx((0.1, 0.04, 0.24))
    assert (second.rate, second.floor, second.ceiling) == pytest.approx((0.5, 0.2, 1.0))
    np.testing.assert_allclose(
        init_routing(net)["tau"], [0, 0] if tau == "learned" else [1.2816, 0.0], atol=1e-4
    )
    assert (
        shapes.each(net_of(True, route={"mode": "threshold", "rate": 0.9, "by_layer": "9,1"}))[
            0
        ].route.rate
        < 1
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_every_parameter_of_an_encoder_gets_a_gradient(name):
    m = Made(
        net_of(compress=dataclasses.replace(net_of().compress, reconstruct=0.1), **ENCODERS[name])
    )
    v = np.random.RandomState(3).standard_normal((B, L, 16))

    @jax.jit
    def grad(params):
        def loss(params):
            h, aux = m.forward(params, IDS, MASK)
            # no z-loss: the gates alone must teach the router
            return (h * v * MASK[..., None]).sum() + sum(
                x.sum() for name, x in aux.losses.items() if name != "z_loss"
            )

        return jax.grad(loss)(params)

    for path, g in jax.tree_util.tree_leaves_with_path(grad(m.params)):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)


def test_noise_is_off_at_evaluation_and_moves_topk_in_training():
    m = Made(net_of())
    np.testing.assert_array_equal(m.run(IDS)[0], m.run(IDS)[0])
    noisy = m.run(IDS, None, jax.random.key(0))[0]
    assert (noisy != m.run(IDS)[0]).any()
    # the noise follows the example, not its place in the batch
    half = m.forward(m.params, IDS[1:], None, jax.random.key(0), ex_B=jnp.arange(1, B))[0]
    np.testing.assert_allclose(half, noisy[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "encoder"])
@pytest.mark.parametrize("kv", ["all", "routed"])
def test_expected_cost_is_the_mean_of_hard_costs_over_all_outcomes(kv, causal):
    net = net_of(causal, route={"mode": "threshold", "kv": kv})
    p = np.array([0.2, 0.9, 0.5, 0.7])
    each = cerebra.decisions(net, 4, V)
    mean = sum(
        np.prod(np.where(keep, p, 1 - p))
        * float(router.decided(net, jnp.array([keep], jnp.float32), 4, each)[0])
        for keep in itertools.product([0, 1], repeat=4)
    )
    got = router.decided(net, jnp.array(p[None], jnp.float32), 4, each)[0]
    np.testing.assert_allclose(got, mean, rtol=1e-5)
    even = each.fixed + net.depth * router.decided(net, jnp.full((1, L), 0.3), L, each)[0]
    np.testing.assert_allclose(router.kept_cost(net, L, each, 0.3), even, rtol=1e-5)


def test_hard_cost_at_the_ceiling_is_the_model_cost():
    for kv, causal in itertools.product(("all", "routed"), (True, False)):
        net = net_of(causal, route={"mode": "threshold", "kv": kv})
        each = cerebra.decisions(net, L, V)
        share = cerebra.cost(net, L, V).model_flops / transformer.cost(net, L, V).model_flops
        routed = float(router.decided(net, jnp.ones((1, L)), L, each)[0]) * net.depth
        np.testing.assert_allclose(each.fixed + routed, share, rtol=1e-6)
        np.testing.assert_allclose(router.kept_cost(net, L, each, 1.0), share, rtol=1e-12)


def test_the_controls_run_the_weights_of_the_routed_model():
    """always_full and always_compressed take a routed model's parameters; soft with gates shut is the light path."""
    m = Made(net_of(route={"mode": "soft"}))
    for mode in ("always_full", "always_compressed"):
        twin = Made(net_of(route={"mode": mode}))
        assert np.isfinite(twin.forward(m.params, IDS)[0]).all()
    shut = jax.tree.map(lambda x: x, m.params)
    for layer in ("layer_00", "layer_01"):
        shut[layer]["router"]["score"]["kernel"] *= 0
    half = m.forward(shut, IDS)[1]
    np.testing.assert_allclose(half.stats["gate"], 0.5)


def test_auxiliary_losses_carry_their_weights():
    m = Made(
        net_of(
            route={"z_loss": 0.5}, compress=dataclasses.replace(net_of().compress, reconstruct=2.0)
        )
    )
    aux = m.run(IDS)[1]
    np.testing.assert_allclose(aux.losses["z_loss"], 0.5 * aux.stats["z_loss"].mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        aux.losses["reconstruct"], 2.0 * aux.stats["reconstruct"].mean(0), rtol=1e-6
    )
    np.testing.assert_allclose(
        aux.stats["z_loss"], jnp.square(aux.scores["score"]).mean(2), rtol=1e-5
    )


@pytest.mark.parametrize("name", ["cerebra", "transformer"])
@pytest.mark.parametrize(("features", "outputs"), [(0, 5), (3, 0), (3, 1)])
def test_feature_inputs_and_pooled_heads_for_classes_and_regressions(name, features, outputs):
    net = dataclasses.replace(net_of(), name=name, features=features, outputs=outputs)
    cls = {"cerebra": cerebra, "transformer": transformer}[name]
    module = cls.Cerebra(net, V) if name == "cerebra" else cls.Transformer(net, V)
    rng = np.random.RandomState(0)
    x = rng.standard_normal((B, L, 3)).astype(np.float32)

    def batch_of(x, ids):
        return _batch(ids, MASK) | ({"features_BxLxN": x} if features else {})

    params = module.init(jax.random.key(0), batch_of(x, IDS), neutral_knobs(), {})

    @jax.jit
    def logits(params, x, ids):
        out = module.apply(params, batch_of(x, ids), neutral_knobs(), {})[0]
        return jnp.einsum("bld,vd->blv", out.h, out.head_VxD)

    got = logits(params, x, IDS)
    assert got.shape == (B, 1 if outputs else L, outputs or V) and np.isfinite(got).all()
    other = logits(params, np.where(MASK[..., None], x, 9.0), np.where(MASK, IDS, 0))
    seen = slice(None) if outputs else MASK
    np.testing.assert_array_equal(
        np.asarray(got)[seen], np.asarray(other)[seen]
    )  # padding is not pooled
    grads = jax.grad(lambda p: jnp.square(logits(p, x, IDS) - 1).sum())(params)["params"]
    lost = [p for p, g in trees.named_leaves(grads).items() if not np.abs(g).max() > 0]
    assert not lost
    counted = jaxpr.count(logits, params, x, IDS).flops
    assert counted == B * cls.cost(net, L, V).executed_flops


def test_the_penalty_stops_at_the_floor():
    """Expected cost has a gradient while more than the floor's share is kept, and none below it."""
    slopes = []
    for floor in (0.0, 1.0):
        m = Made(net_of(True, route={"mode": "threshold", "rate": 0.9, "floor": floor}))
        slope = jax.jit(jax.grad(lambda params, m=m: m.forward(params, IDS)[1].expected_B.sum()))(
            m.params
        )
        slopes.append(max(float(np.abs(g).max()) for g in jax.tree.leaves(slope)))
    assert slopes[0] > 1e-4 and slopes[1] == 0
