"""Forms of products: the same numbers, without a contraction over two axes in the backward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.kernels.matmul import on_rows


def test_a_function_of_rows_sees_matrices_and_keeps_the_axes():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    gate = jax.random.normal(jax.random.key(1), (2, 3, 1))
    w = jnp.arange(20.0).reshape(4, 5)
    seen = []

    def product(x_NxD, gate_Nx1):
        seen.append((x_NxD.shape, gate_Nx1.shape))
        return gate_Nx1 * (x_NxD @ w)

    np.testing.assert_allclose(on_rows(product, x, gate), gate * (x @ w), rtol=1e-6)
    assert seen == [((6, 4), (6, 1))]


def contracted(loss):
    """Returns over how many axes the products of a gradient contract."""
    program = jax.make_jaxpr(jax.grad(loss))(jnp.ones((4, 5)))
    products = [eqn for eqn in program.eqns if eqn.primitive.name == "dot_general"]
    return {len(eqn.params["dimension_numbers"][0][0]) for eqn in products}


def test_the_gradient_of_a_weight_contracts_one_axis():
    x = jnp.ones((2, 3, 4))
    assert contracted(lambda w: on_rows(lambda x: x @ w, x).sum()) == {1}
    assert contracted(lambda w: (x @ w).sum()) == {1, 2}
