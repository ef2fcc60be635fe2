"""LayerNorm is Flax's, with its gradient, and keeps its input and two numbers per row."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.kernels.layer_norm import layer_norm


def _case(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x_NxD, dy_NxD = rng.standard_normal((2, 6, 16)) * 3 + 1
    scale_D, bias_D = rng.standard_normal((2, 16)) + 1
    weights = (jnp.float32(scale_D), jnp.float32(bias_D))
    return (jnp.asarray(x_NxD, dtype), *weights), jnp.asarray(dy_NxD, dtype)


def _flax(x, scale_D, bias_D):
    norm = nn.LayerNorm(dtype=jnp.float32, epsilon=1e-5)
    return norm.apply({"params": {"scale": scale_D, "bias": bias_D}}, x).astype(x.dtype)


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 3e-6), (jnp.bfloat16, 1e-2)])
def test_values_and_gradients_are_those_of_flax(dtype, bound):
    inputs, dy_NxD = _case(dtype)
    got, back = jax.vjp(lambda *a: layer_norm(*a, 1e-5), *inputs)
    want, flax_back = jax.vjp(_flax, *inputs)
    for g, w in zip((got, *back(dy_NxD)), (want, *flax_back(dy_NxD)), strict=True):
        assert g.dtype == w.dtype
        g, w = np.float32(g), np.float32(w)
        assert np.abs(g - w).max() <= bound * np.abs(w).max()


def test_it_keeps_its_input_and_two_numbers_per_row():
    (x_NxD, *weights), _ = _case(jnp.bfloat16)
    _, back = jax.vjp(lambda x: layer_norm(x, *weights, 1e-5), x_NxD)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(back) if leaf.ndim == 2)
    assert kept == x_NxD.nbytes + 2 * 4 * x_NxD.shape[0]
