"""The gradient of a lookup is a sum over each id; on a GPU nothing adds in an order of its own."""

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.kernels.lookup import lookup, sum_by_id

V, D = 30, 8


def _case():
    rng = np.random.default_rng(0)
    ids_BxL = np.minimum(rng.zipf(1.3, (4, 25)) - 1, V - 1).astype(np.int32)  # they collide
    assert len(np.unique(ids_BxL)) < V
    return rng.standard_normal((V, D)).astype(np.float32), ids_BxL, rng


def test_sums_are_those_of_each_id_and_zero_where_there_is_none():
    _, ids_BxL, rng = _case()
    rows_NxD = rng.standard_normal((ids_BxL.size, D)).astype(np.float32)
    want_VxD = np.zeros((V, D))
    np.add.at(want_VxD, ids_BxL.reshape(-1), np.float64(rows_NxD))
    got_VxD = jax.jit(sum_by_id, static_argnums=2)(rows_NxD, ids_BxL.reshape(-1), V)
    np.testing.assert_allclose(got_VxD, want_VxD, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(got_VxD).any(1), np.isin(np.arange(V), ids_BxL))


def test_rows_and_gradient_are_those_of_indexing():
    table_VxD, ids_BxL, rng = _case()
    w_BxLxD = rng.standard_normal((*ids_BxL.shape, D)).astype(np.float32)
    grads = [
        jax.value_and_grad(lambda t, f=f: (jnp.sin(f(t)) * w_BxLxD).sum())(table_VxD)
        for f in (lambda t: lookup(t, ids_BxL), lambda t: t[ids_BxL])
    ]
    np.testing.assert_array_equal(*(g[1] for g in grads))
    assert grads[0][0] == grads[1][0]


def test_only_a_gpu_gets_the_sum_without_a_scatter():
    table_VxD, ids_BxL, _ = _case()
    grad = jax.jit(jax.grad(lambda t: lookup(t, ids_BxL).sum())).trace(table_VxD)
    scatters = {
        platform: "stablehlo.scatter" in grad.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert scatters == {"cpu": True, "cuda": False, "tpu": True}
