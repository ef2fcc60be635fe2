"""Parameters that are computed operation by operation."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.models.initialization import by_operation
from cerebra_jax.models.model import build, neutral_knobs

BATCH = {"inputs_BxL": np.zeros((1, 32), np.int32), "ex_B": np.zeros(1, np.int32)}


def given_away(tree):
    """Donates all arrays of a tree, each of which may be in it once."""
    jax.block_until_ready(jax.jit(lambda x: jax.tree.map(jnp.square, x), donate_argnums=0)(tree))


def test_a_model_draws_what_one_program_draws_and_again_after_it_was_donated(tiny_cfg):
    model, key = build(tiny_cfg({"net.name": "cerebra"}), 260), jax.random.key(3)
    found = model.init(key, BATCH)
    kept = jax.tree.map(np.array, found)
    args = {"params": key}, BATCH, neutral_knobs(), found["routing"]
    flax = jax.jit(model.module.init)(*args)["params"]
    chex.assert_trees_all_close(found["params"], flax, rtol=1e-5)
    chex.assert_trees_all_equal_shapes(found, jax.eval_shape(model.init, key, BATCH))
    given_away(found)
    chex.assert_trees_all_equal(kept, model.init(key, BATCH))


def test_what_the_result_does_not_need_is_left_out_and_constants_stay_with_the_function():
    constant = jnp.arange(3.0)

    def never(x):
        raise AssertionError("not needed")

    @jax.jit
    def drawn(key, x):
        jax.pure_callback(never, x, x)
        draw = jax.random.normal(key, (2,))
        return {"constant": constant, "given": x, "draws": (draw, draw), "scalar": jnp.float32(1)}

    x = jnp.ones(3)
    for _ in range(2):
        given_away(by_operation(drawn, jax.random.key(0), x))
    np.testing.assert_array_equal(constant, np.arange(3))
    np.testing.assert_array_equal(x, np.ones(3))
