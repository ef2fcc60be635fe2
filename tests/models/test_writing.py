"""A model that is prepared for writing writes what it wrote, and a GPU's loop copies nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.models import sampling, writing
from cerebra_jax.models.model import build

V, L, B = 30, 24, 4
WHOLE = {"name": "cerebra", "depth": 2, "ffn": "gated", "route": {"kv": "routed", "part": "block"}}
CAST = {
    "cerebra": WHOLE,
    "float32-gates": {
        "name": "cerebra",
        "depth": 1,
        "heavy": "gla",
        "light": "ssm",
        "route": {"kv": "routed"},
    },
    "chiar": {"name": "chiar", "depth": 3, "route": {"mode": "threshold"}},
}


def made(tiny_cfg, net, platform=""):
    """Returns a model, and variables that are no initial ones."""
    model = build(tiny_cfg({"net": net, "task.seq_len": L}), V, platform=platform)
    batch = {"inputs_BxL": np.zeros((B, L), np.int32), "ex_B": np.arange(B, dtype=np.int32)}
    variables = model.init(jax.random.key(0), batch)
    rng = np.random.RandomState(0)

    def moved(x):
        return x + 0.2 * rng.standard_normal(x.shape).astype(np.float32)

    return model, variables | {"params": jax.tree.map(moved, variables["params"])}


@pytest.mark.parametrize("name", CAST)
def test_weights_rounded_once_give_the_same_bits(name, tiny_cfg):
    model, variables = made(tiny_cfg, CAST[name] | {"dtype": "bfloat16"}, "cpu")
    writer = writing.prepared(model, variables)
    weights = writer.variables
    assert writer.model is model
    dtypes = {x.dtype.name for x in jax.tree.leaves(weights["params"])}
    assert dtypes == {"bfloat16", "float32"}
    ids_LxB = np.random.RandomState(1).randint(0, V, (L, B)).astype(np.int32)

    @jax.jit
    def read(variables):
        def step(cache, token_B):
            out, cache = model.decode(variables, cache, token_B)
            return cache, out.logits()

        return jax.lax.scan(step, model.init_cache(np.arange(B)), ids_LxB)

    jax.tree.map(np.testing.assert_array_equal, read(weights), read(variables))


ALL_HEAVY = WHOLE | {"route": {"mode": "always_full"}}


@pytest.mark.parametrize(
    "net", [WHOLE, ALL_HEAVY, {"name": "mod", "depth": 5}], ids=["cerebra", "all-heavy", "mod"]
)
def test_unrolled_layers_write_the_same_tokens(net, tiny_cfg):
    net = net | {"scan": True}
    ids_BxP = np.random.RandomState(1).randint(0, V, (B, 6)).astype(np.int32)
    prompts = sampling.Prompts(ids_BxP, jnp.asarray([1, 3, 6, 6]))

    def written(platform):
        model, variables = made(tiny_cfg, net, platform)
        assert writing.prepared(model, variables).unrolled == (platform == "gpu")
        run = jax.jit(lambda variables: sampling.generate(model, variables, key, prompts, L - 6))
        return run(variables)

    key = jax.random.key(0)
    (want, cache), (got, after) = written("cpu"), written("gpu")
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(after.kept_RxBxL, cache.kept_RxBxL)
    assert (cache.kept_RxBxL.any() or not cache.kept_RxBxL.size) and len(np.unique(want)) > 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), after, cache)
