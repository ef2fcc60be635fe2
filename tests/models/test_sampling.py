"""Generation with a cache writes what it writes without one, and draws from what it should."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.layers import cache as cached
from cerebra_jax.models import registry, sampling
from cerebra_jax.models.model import build, neutral_knobs

V, L, COUNT, B, P = 30, 24, 10, 200, 14
MODELS = [
    ("transformer", "all"),
    ("window", "all"),
    *itertools.product(("chiar", "cerebra"), ("all", "routed")),
]


def drawn(model, batch, rng):
    """Variables with large weights: the likeliest token changes from step to step."""
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: model.init(key, batch)["params"])

    def draw(path, shape):
        centre = 1.0 if path[-1].key in ("scale", "w") else 0.0
        return jnp.asarray(centre + 0.3 * rng.standard_normal(shape.shape), shape.dtype)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return {"params": params, "routing": registry.init_routing(model.net)}


@pytest.mark.parametrize(("name", "kv"), MODELS)
def test_greedy_generation_with_a_cache_is_greedy_generation_without(name, kv, tiny_cfg):
    keys = {"net.name": name, "net.route.kv": kv, "net.window": 6, "task.seq_len": L}
    model = build(tiny_cfg(keys), V)
    rng = np.random.RandomState(0)
    length_B = rng.randint(1, P + 1, B).astype(np.int32)
    ids = rng.randint(0, V, (B, P)).astype(np.int32)
    ex_B = np.arange(B, dtype=np.int32)
    variables = drawn(model, {"inputs_BxL": np.zeros((B, L), np.int32), "ex_B": ex_B}, rng)

    @jax.jit
    def likeliest(ids_BxL, at_B):
        out, _ = model.apply(variables, {"inputs_BxL": ids_BxL, "ex_B": ex_B}, neutral_knobs())
        last_BxD = out.h[ex_B, at_B - 1]
        return jnp.argmax(jnp.einsum("bd,vd->bv", last_BxD, out.head_VxD), axis=-1)

    # token by token, each time from all of the text
    text = np.concatenate([ids, np.zeros((B, L - P), np.int32)], axis=1)
    at_B = length_B.copy()
    for _ in range(COUNT):
        text[ex_B, at_B] = likeliest(text, at_B)
        at_B += 1
    want = np.stack([text[b, n : n + COUNT] for b, n in enumerate(length_B)])

    run = jax.jit(lambda *args: sampling.generate(model, variables, *args, COUNT))
    got, cache = run(jax.random.key(1), sampling.Prompts(ids, length_B))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(cache.pos_B, length_B + COUNT)
    assert len(np.unique(want)) > 4


def test_a_token_is_drawn_from_the_nucleus_at_its_temperature():
    p = np.array([0.05, 0.5, 0.15, 0.3])
    logits = jnp.broadcast_to(jnp.log(p), (20_000, 4)).astype(jnp.float32)

    def shares(temperature, top_p):
        drawn = sampling.choose(jax.random.key(0), logits, temperature, top_p)
        return np.bincount(drawn, minlength=4) / len(logits)

    np.testing.assert_allclose(shares(1.0, 1.0), p, atol=0.02)
    cut = [0, 0.625, 0, 0.375]  # 0.5 + 0.3 hold 0.75
    np.testing.assert_allclose(shares(1.0, 0.75), cut, atol=0.02)
    np.testing.assert_allclose(shares(0.5, 1.0), p**2 / (p**2).sum(), atol=0.02)
    for greedy in (shares(0.0, 1.0), shares(1.0, 0.0), shares(1.0, 0.5)):
        np.testing.assert_array_equal(greedy, [0, 1, 0, 0])


def by_sorting(logits_BxV, top_p):
    """Returns which tokens are in the nucleus, of probabilities in float64."""
    z = np.float64(logits_BxV)
    p_BxV = np.exp(z - z.max(1, keepdims=True))
    p_BxV /= p_BxV.sum(1, keepdims=True)
    found = []
    for z_V, p_V in zip(z, p_BxV, strict=True):
        order_V = np.argsort(-z_V, kind="stable")
        before_V = np.cumsum(p_V[order_V]) - p_V[order_V]
        least = z_V[order_V][before_V < top_p].min(initial=z_V.max())
        found.append(z_V >= least)
    return np.stack(found)


@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_the_nucleus_is_the_one_that_sorting_finds(top_p):
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(497), 1e3 * rng.standard_normal(497), np.full(497, -7.0)]
    rows += [np.round(2 * rng.standard_normal(497)) - 40, -np.abs(rng.standard_normal(497)) * 1e-30]
    logits_BxV = np.float32(np.stack(rows))
    got_BxV = jax.jit(sampling.in_nucleus)(logits_BxV, top_p)
    np.testing.assert_array_equal(got_BxV, by_sorting(logits_BxV, top_p))
    assert "sort" not in str(jax.make_jaxpr(sampling.in_nucleus)(logits_BxV, top_p))


@pytest.mark.parametrize("name", ["cerebra", "chiar", "mod"])
def test_what_a_gpu_computes_for_nobody_changes_nothing(name, tiny_cfg, monkeypatch):
    net = {"name": name, "depth": 4, "route": {"kv": "routed"}}
    model = build(tiny_cfg({"net": net, "task.seq_len": L}), V)
    ids = np.random.RandomState(0).randint(0, V, (2, L)).astype(np.int32)
    ex_B = np.arange(2, dtype=np.int32)
    variables = drawn(model, {"inputs_BxL": ids, "ex_B": ex_B}, np.random.RandomState(1))

    def read():
        def step(cache, token_B):
            out, cache = model.decode(variables, cache, token_B)
            return cache, out.h[:, 0]

        return jax.jit(lambda: jax.lax.scan(step, model.init_cache(ex_B), ids.T))()

    cache, want = read()
    kept = np.asarray(cache.kept_RxBxL)
    assert kept.any() and not kept.all(1).all()  # some tokens are wanted by nobody
    monkeypatch.setattr(cached, "_accelerated", lambda: True)
    after, got = read()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(after.kept_RxBxL, kept)
