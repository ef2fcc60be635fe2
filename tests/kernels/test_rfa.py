"""The random-feature kernel estimates the Gaussian one, and its chunks sum over the past."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.cost import count, prices
from cerebra_jax.kernels import rfa as rbf

B, H, C = 2, 3, 8


def drawn(N: int, seed: int = 0, width: int = C) -> np.ndarray:
    """Returns vectors of length 1."""
    x = np.random.RandomState(seed).standard_normal((B, H, N, width))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_features_estimate_the_gaussian_kernel_ever_better():
    q, k = drawn(12), drawn(12, 1)
    want = np.exp(-((q[:, :, :, None] - k[:, :, None]) ** 2).sum(-1) / 2)
    apart = {}
    for M in (64, 4096):
        fq, fk = (np.asarray(rbf.features(jnp.float32(x), M), np.float64) for x in (q, k))
        assert fq.shape == (B, H, 12, 2 * M)
        np.testing.assert_allclose((fq * fq).sum(-1), 1.0, atol=1e-5)  # κ(q, q)
        apart[M] = np.abs(np.einsum("bhnf,bhmf->bhnm", fq, fk) - want).max()
    assert apart[4096] < 0.06 and apart[4096] < apart[64] < 0.6


@pytest.mark.parametrize("N", [1, 7, 64, 65, 200])
def test_chunks_are_the_sum_over_all_keys_so_far(N):
    """Against all pairs in float64, with some keys left out; also split in two by a state."""
    rng = np.random.RandomState(N)
    fq, fk, v = (rng.standard_normal((B, H, N, n)) for n in (6, 6, 5))
    key = rng.random((B, N)) < 0.7
    pairs = np.einsum("bhnf,bhmf->bhnm", fq, fk) * np.tril(np.ones((N, N))) * key[:, None, None]
    want = np.einsum("bhnm,bhme->bhne", pairs, v)
    v_kept = jnp.float32(np.where(key[:, None, :, None], v, 0))
    q32, k32 = jnp.float32(fq), jnp.float32(fk)
    got = rbf.prefix(q32, k32, v_kept)
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
    cut = N // 3
    state, parts = jnp.zeros((B, H, 6, 5)), []
    for part in (slice(0, cut), slice(cut, N)):
        if part.stop > part.start:
            y, state = rbf.prefix(q32[:, :, part], k32[:, :, part], v_kept[:, :, part], state)
            parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=2), want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("N", [1, 64, 150])
def test_the_price_of_the_sums_is_what_is_counted(N, carried):
    """Of features of width F and values of width E: pairs inside chunks of c tokens, 2 c² (F + E);
    additions to and readings of the state, 2 c F E each."""
    F, E = 6, 5
    c = min(N, rbf.CHUNK)
    chunks = -(-N // c)
    inside = chunks * 2 * c * c * (F + E)
    across = (chunks - (not carried)) * 2 * 2 * c * F * E
    shapes = [(B, H, N, F), (B, H, N, F), (B, H, N, E), (B, H, F, E)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes[: 3 + carried]]
    assert count.count(rbf.prefix, *args).flops == B * H * (inside + across)
    x = jax.ShapeDtypeStruct((B, H, N, C), jnp.float32)
    features = count.count(lambda x: rbf.features(x, 9), x)
    assert features.flops == B * prices.matmul_flops(N, H * C, 9)


def test_an_average_stays_among_its_values_and_is_zero_without_keys():
    """The estimate of Σκ is at least e⁻² per key: few features cannot blow the quotient up."""
    N, M = 40, 4
    q, k, v = (jnp.float32(drawn(N, seed)) for seed in (3, 4, 5))
    key = np.random.RandomState(6).random((B, N)) < 0.5
    key[:, :5] = False
    got = np.asarray(rbf.average(rbf.features(q, M), rbf.features(k, M), v, key))
    np.testing.assert_array_equal(got[:, :, :5], 0.0)
    assert np.isfinite(got).all() and np.abs(got).max() < np.exp(2)
    ones = rbf.average(rbf.features(q, 2048), rbf.features(k, 2048), jnp.ones_like(v), key)
    np.testing.assert_allclose(np.asarray(ones)[key[:, None, :].repeat(H, 1)], 1.0, atol=1e-4)
