"""Generation with a cache writes what it writes without one, and draws from what it should."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.models import sampling
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
    return {"params": params, "routing": jax.jit(lambda: model.init(key, batch)["routing"])()}


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
