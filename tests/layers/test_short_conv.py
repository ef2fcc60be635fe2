"""The depthwise convolution beside attention: what each token sees of its neighbours."""

import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.layers.rows import ranks, tokens
from cerebra_jax.layers.short_conv import ShortConv

B, L, D = 2, 9, 6


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "encoder"])
def test_local_is_the_sum_over_the_taps(taps, causal):
    h = np.random.RandomState(0).standard_normal((B, L, D)).astype(np.float32)
    layer = ShortConv(D, taps, causal)
    w = np.random.RandomState(1).standard_normal((taps, D)).astype(np.float32)
    before = taps - 1 if causal else taps - 1 - (taps - 1) // 2
    want = np.zeros_like(h)
    for t in range(L):
        for i in range(taps):
            if 0 <= t - before + i < L:
                want[:, t] += w[i] * h[:, t - before + i]
    rows = tokens(jnp.asarray(h), ranks(L, causal), causal)
    got = layer.apply({"params": {"w": w}}, rows, rows)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_padding_is_not_seen():
    h = np.random.RandomState(0).standard_normal((B, L, D)).astype(np.float32)
    mask = np.arange(L)[None] < np.array([[9], [5]])
    layer = ShortConv(D, 5, causal=False)

    def run(h):
        rows = tokens(jnp.asarray(h), ranks(L, False, mask), False, mask)
        return layer.apply({"params": {"w": np.ones((5, D), np.float32)}}, rows, rows)

    other = np.where(mask[..., None], h, 100.0).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(run(h))[mask], np.asarray(run(other))[mask])


def test_skipping_is_the_sum_over_the_real_tokens_side_by_side():
    h = np.random.RandomState(0).standard_normal((B, L, D)).astype(np.float32)
    mask = np.random.RandomState(1).random((B, L)) < 0.6
    w = np.random.RandomState(2).standard_normal((3, D)).astype(np.float32)
    layer = ShortConv(D, 3)
    got = layer.apply({"params": {"w": w}}, h, mask, method="skipping")
    for b in range(B):
        alone = jnp.asarray(h[b : b + 1, mask[b]])
        rows = tokens(alone, ranks(alone.shape[1], True), True)
        want = layer.apply({"params": {"w": w}}, rows, rows)[0]
        np.testing.assert_allclose(got[b, mask[b]], want, rtol=1e-5, atol=1e-6)
