"""The depthwise convolution beside attention: what each token sees of its neighbours."""

import jax
import numpy as np
import pytest
from cerebra_jax.layers.block import Local

from cerebra_jax.config import NetCfg

B, L, D = 2, 9, 6


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "encoder"])
def test_local_is_the_sum_over_the_taps(taps, causal):
    h = np.random.RandomState(0).standard_normal((B, L, D)).astype(np.float32)
    layer = Local(NetCfg(local=taps, causal=causal))
    w = np.random.RandomState(1).standard_normal((taps, D)).astype(np.float32)
    before = taps - 1 if causal else taps - 1 - (taps - 1) // 2
    want = np.zeros_like(h)
    for t in range(L):
        for i in range(taps):
            if 0 <= t - before + i < L:
                want[:, t] += w[i] * h[:, t - before + i]
    np.testing.assert_allclose(layer.apply({"params": {"w": w}}, h), want, rtol=1e-5, atol=1e-6)


def test_padding_is_not_seen():
    h = np.random.RandomState(0).standard_normal((B, L, D)).astype(np.float32)
    mask = np.arange(L)[None] < np.array([[9], [5]])
    layer = Local(NetCfg(local=5, causal=False))
    variables = layer.init(jax.random.key(0), h)
    y, other = (
        layer.apply(variables, x, mask)
        for x in (h, np.where(mask[..., None], h, 100.0).astype(np.float32))
    )
    np.testing.assert_array_equal(np.asarray(y)[mask], np.asarray(other)[mask])
