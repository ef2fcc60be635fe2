"""One routed layer: gathered, masked and moved by products are the same; without a light path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.layers.attention import Attention
from cerebra_jax.layers.gla import GatedLinearAttention
from cerebra_jax.layers.rows import ranks, tokens
from cerebra_jax.layers.ssm import SelectiveStateSpace
from cerebra_jax.routing import dispatch
from cerebra_jax.routing.routed import Capacity, Decided, Routed, carry_out, select
from cerebra_jax.routing.routers import Route

B, L, D = 2, 24, 8
HEAVY = {
    "attention": Attention(D, 2, 4),
    "gla": GatedLinearAttention(D, 2, 4),
    "ssm": SelectiveStateSpace(D, 3, 3),
}
KINDS = [("attention", "all"), ("attention", "routed"), ("gla", "routed"), ("ssm", "routed")]


def features(seed=0):
    return jnp.float32(np.random.RandomState(seed).standard_normal((B, L, D)))


def route_of(causal, rate=0.4):
    """Returns a decision drawn at random; in an encoder the second example has padding."""
    rng = np.random.RandomState(1)
    mask = None if causal else jnp.arange(L)[None] < jnp.array([[L], [L - 7]])
    wanted = jnp.asarray(rng.random((B, L)) < rate)
    if mask is not None:
        wanted &= mask
    gate = jnp.float32(rng.random((B, L)))
    return Route(wanted, gate, gate, gate), mask


def room(kv, gathers, lowering="gather", share=1.0):
    return Capacity(L, dispatch.layout(L, share), gathers, lowering, kv)


@pytest.fixture(scope="module")
def compute():
    """Returns a function that runs a routed layer with fixed random parameters of its heavy one."""
    made = {}

    def run(name, capacity, causal, light, x=None):
        layer = HEAVY[name]
        if name not in made:
            rows = tokens(features(), ranks(L, causal), causal)
            make = functools.partial(layer.init, jax.random.key(0), rows, rows)
            shapes = jax.eval_shape(make)["params"]
            rng = np.random.RandomState(2)

            def fill(s):
                return jnp.float32(0.4 * rng.standard_normal(s.shape))

            made[name] = {"params": jax.tree.map(fill, shapes)}

        def heavy(queries, keys):
            return layer.apply(made[name], queries, keys)

        @jax.jit
        def routed(x):
            route, mask = route_of(causal)
            rows = tokens(x, ranks(L, causal, mask), causal, mask)
            decided = carry_out(route, capacity)
            y = Routed(heavy, capacity).apply({}, rows, decided, light)
            return y, decided.kept_BxL, mask

        return routed(features() if x is None else x)

    return run


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "encoder"])
@pytest.mark.parametrize(("name", "kv"), KINDS)
def test_gathered_moved_by_products_and_masked_are_the_same(compute, name, kv, causal):
    """For the same decisions, with a light path and without; padding's results are nobody's."""
    for light in (features(3), None):
        want, kept, mask = compute(name, room(kv, gathers=False), causal, light)
        real = np.ones((B, L), bool) if mask is None else np.asarray(mask)
        for lowering in ("gather", "onehot"):
            got, same, _ = compute(name, room(kv, True, lowering), causal, light)
            np.testing.assert_array_equal(same, kept)
            np.testing.assert_allclose(
                np.asarray(got)[real], np.asarray(want)[real], rtol=1e-4, atol=1e-5
            )
        passed = np.asarray(want)[~np.asarray(kept)]
        light_there = (
            np.zeros_like(passed) if light is None else np.asarray(light)[~np.asarray(kept)]
        )
        np.testing.assert_array_equal(passed, light_there)
        assert 0 < np.asarray(kept).mean() < 1


@pytest.mark.parametrize(("name", "kv"), [kind for kind in KINDS if kind[1] == "routed"])
@pytest.mark.parametrize("gathers", [True, False], ids=["gathered", "masked"])
def test_a_kept_token_sees_kept_ones_alone(compute, name, kv, gathers):
    want, kept, _ = compute(name, room(kv, gathers), True, None)
    other = jnp.where(kept[..., None], features(), features(7))
    got, _, _ = compute(name, room(kv, gathers), True, None, other)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_what_finds_no_slot_stays_on_the_light_path(compute):
    light = features(3)
    y, kept, _ = compute("attention", room("routed", True, share=0.2), True, light)
    wanted = np.asarray(route_of(True)[0].wanted)
    lost = wanted & ~np.asarray(kept)
    assert lost.any()
    np.testing.assert_array_equal(np.asarray(y)[lost], np.asarray(light)[lost])


@pytest.mark.parametrize("gathers", [True, False], ids=["gathered", "masked"])
def test_padding_that_is_kept_is_no_key(gathers):
    """Top-k keeps padding where real tokens run out; recurrences and attention skip it."""
    mask = jnp.arange(L)[None] < jnp.array([[L], [3]])
    rows = tokens(features(), ranks(L, False, mask), False, mask)
    everyone = jnp.ones((B, L), bool)
    route = Route(everyone, *(jnp.ones((B, L)),) * 3)
    capacity = room("routed", gathers)
    queries, keys = select(rows, carry_out(route, capacity), capacity)
    assert keys is queries
    np.testing.assert_array_equal(keys.mask, mask)
    np.testing.assert_array_equal(keys.rank == L, ~mask)


def test_the_gate_weighs_heavy_against_light():
    """g · heavy + (1 − g) · light, and its gradient goes to the gate, the heavy and the light."""
    route, _ = route_of(True)
    rows = tokens(features(), ranks(L, True), True)
    heavy, light = features(4), features(5)
    decided = Decided(route.wanted, route.gate * route.wanted)
    routed = Routed(lambda queries, keys: heavy, room("all", gathers=False))
    g = (route.gate * route.wanted)[..., None]
    want = g * heavy + (1 - g) * light
    np.testing.assert_allclose(routed.apply({}, rows, decided, light), want, atol=1e-6)
