"""Cross-entropy in chunks against the whole logits: values, gradients, memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebra_jax.cost import count
from cerebra_jax.kernels import cross_entropy
from cerebra_jax.kernels.cross_entropy import chunked_xent, chunks_of


def _plain(h, head, labels, w):
    logits = jnp.einsum("bld,vd->blv", h.astype(jnp.float32), head.astype(jnp.float32))
    right = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return (w * (jax.nn.logsumexp(logits, axis=-1) - right)).sum()


def _case(seed, dtype=jnp.float32, scale=1.0):
    """Returns features, head, labels and weights."""
    B, L, D, V = 2, 12, 8, 30
    h, head, y, w = jax.random.split(jax.random.key(seed), 4)
    return (
        scale * jax.random.normal(h, (B, L, D), dtype),
        jax.random.normal(head, (V, D), jnp.float32),
        jax.random.randint(y, (B, L), 0, V),
        jax.random.bernoulli(w, 0.7, (B, L)).astype(jnp.float32),
    )


def _assert_same(got, want, bound):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = np.float32(g), np.float32(w)
        assert np.isfinite(g).all() and np.abs(g - w).max() <= bound * np.abs(w).max()


@pytest.mark.parametrize("chunk", [1, 5, 8, 24, 1000])
def test_chunks_change_neither_loss_nor_gradients(chunk):
    h, head, y, w = _case(chunk)
    got, want = (
        jax.value_and_grad(lambda h, e, f=f: 3 * f(h, e), argnums=(0, 1))(h, head)
        for f in (lambda h, e: chunked_xent(h, e, y, w, chunk), lambda h, e: _plain(h, e, y, w))
    )
    _assert_same(got, want, 1e-5)
    assert jax.tree.map(jnp.shape, got[1]) == ((2, 12, 8), (30, 8))


def test_without_gradients_it_is_the_same_loss():
    h, head, y, w = _case(1)
    with_gradients = jax.value_and_grad(chunked_xent)(h, head, y, w, 8)[0]
    assert float(chunked_xent(h, head, y, w, 8)) == pytest.approx(float(with_gradients), rel=1e-6)


@pytest.mark.parametrize("chunk", [5, 1000])
def test_its_terms_add_up_and_stand_at_their_tokens(chunk):
    h, head, y, w = _case(3)
    one_BxLxBxL = jnp.eye(w.size).reshape(*w.shape, *w.shape)
    apart_BxL = jax.vmap(jax.vmap(lambda one: _plain(h, head, y, w * one)))(one_BxLxBxL)
    grad = jax.value_and_grad(lambda h: chunked_xent(h, head, y, w, chunk, True), has_aux=True)
    (total, terms_BxL), got = grad(h)
    without_gradients = chunked_xent(h, head, y, w, chunk, True)[1]
    _assert_same((terms_BxL, without_gradients), (apart_BxL, apart_BxL), 1e-5)
    assert float(terms_BxL.sum()) == pytest.approx(float(total), rel=1e-6)
    np.testing.assert_array_equal(got, jax.grad(lambda h: chunked_xent(h, head, y, w, chunk))(h))


def test_bfloat16_features_keep_a_float32_loss():
    h, head, y, w = _case(2, dtype=jnp.bfloat16)
    got = jax.value_and_grad(lambda h, e: chunked_xent(h, e, y, w, 8), argnums=(0, 1))(h, head)
    want = jax.value_and_grad(lambda h, e: _plain(h, e, y, w), argnums=(0, 1))(h, head)
    dtypes = [x.dtype for x in jax.tree.leaves(got)]
    assert dtypes == [jnp.float32, jnp.bfloat16, jnp.float32]
    _assert_same(got, want, 2e-2)


def test_large_logits_do_not_overflow():
    h, head, y, w = _case(3, scale=1e4)
    got = jax.value_and_grad(lambda h, e: chunked_xent(h, e, y, w, 8), argnums=(0, 1))(h, head)
    want = jax.value_and_grad(lambda h, e: _plain(h, e, y, w), argnums=(0, 1))(h, head)
    _assert_same(got, want, 1e-5)


def test_padding_has_no_gradient():
    h, head, y, w = _case(4)
    dh = jax.grad(chunked_xent)(h, head, y, w, 8)
    np.testing.assert_array_equal(np.asarray(dh).any(axis=-1), np.asarray(w) > 0)


def test_a_large_vocabulary_is_padded_to_tiles_and_nothing_is_seen_of_it(monkeypatch):
    h, head, y, w = _case(6)
    want = jax.value_and_grad(lambda h, e: _plain(h, e, y, w), argnums=(0, 1))(h, head)
    monkeypatch.setattr(cross_entropy, "_LEAST", 30)
    grad = jax.jit(jax.value_and_grad(lambda h, e: chunked_xent(h, e, y, w, 8), argnums=(0, 1)))
    traced = grad.trace(h, head)
    padded = {
        platform: "tensor<8x128xf32>" in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert padded == {"cpu": False, "cuda": True, "tpu": False}
    platforms = jax.lax.platform_dependent
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *a, cuda, **_: platforms(*a, default=cuda)
    )
    jax.clear_caches()
    _assert_same(grad(h, head), want, 1e-5)
    jax.clear_caches()


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_softmax_sums_of_a_gpu_are_those_of_two_passes(scale):
    x_TxV = scale * jax.random.normal(jax.random.key(0), (6, 50), jnp.float32)
    x_TxV = x_TxV.at[:, 40:].set(-jnp.inf)  # padding
    x_TxV = x_TxV.at[1, 1:].set(-jnp.inf)
    one, two = (
        jax.jit(f)(x_TxV) for f in (cross_entropy._both_at_once, cross_entropy._max_and_sum)
    )
    np.testing.assert_array_equal(one[0], two[0])
    _assert_same(one[1], two[1], 1e-6)


def test_the_logits_of_a_batch_never_exist_at_once():
    B, L, D, V, chunk = 4, 512, 8, 512, 256
    shapes = ((B, L, D), (V, D), (B, L), (B, L))
    dtypes = (jnp.float32, jnp.float32, jnp.int32, jnp.float32)
    args = [jax.ShapeDtypeStruct(*each) for each in zip(shapes, dtypes, strict=True)]
    grad = jax.grad(lambda h, e, y, w: chunked_xent(h, e, y, w, chunk), argnums=(0, 1))

    def temp(f):
        return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert temp(jax.grad(_plain, argnums=(0, 1))) > 4 * B * L * V > 2 * temp(grad)


def test_the_gradient_costs_no_second_forward_pass():
    h, head, y, w = _case(5)
    logits = 2 * 24 * 8 * 30
    assert count.count(lambda h, e: chunked_xent(h, e, y, w, 8), h, head).flops == logits
    grad = jax.value_and_grad(lambda h, e: chunked_xent(h, e, y, w, 8), argnums=(0, 1))
    assert count.count(grad, h, head).flops == 3 * logits


@given(st.integers(1, 500), st.integers(1, 600))
@settings(deadline=None)
def test_chunks_are_equal_and_small_enough(tokens, chunk):
    n = chunks_of(tokens, chunk)
    assert tokens % n == 0 and tokens // n <= chunk
    assert all(tokens % m or tokens // m > chunk for m in range(1, n))
