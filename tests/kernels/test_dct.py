"""DCT and spectral entropy against scipy in float64, and the closed form for Gaussian noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.special

from cerebra_jax.kernels import dct as spectral

# a program each: one operation at a time they would be a dozen each
dct, idct = (jax.jit(f, static_argnums=1) for f in (spectral.dct, spectral.idct))
filtered = jax.jit(spectral.filtered, static_argnums=2)
entropy_of = jax.jit(spectral.spectral_entropy)

SIZES = [2, 3, 7, 16, 33, 64, 100, 256]


@pytest.mark.parametrize("method", spectral.TRANSFORMS)
@pytest.mark.parametrize("D", SIZES)
def test_dct_is_scipy_ortho_and_idct_its_inverse(D, method):
    x = np.random.RandomState(D).standard_normal((3, 5, D)).astype(np.float32)
    X = dct(x, method)
    want = scipy.fft.dct(x.astype(np.float64), norm="ortho")
    np.testing.assert_allclose(X, want, atol=1e-5 * np.abs(want).max())
    np.testing.assert_allclose(idct(X, method), x, atol=1e-5 * np.abs(x).max())


@pytest.mark.parametrize("method", spectral.TRANSFORMS)
@pytest.mark.parametrize("transform", [dct, idct])
@pytest.mark.parametrize("D", [7, 64])
def test_gradient_is_the_transposed_transform(transform, method, D):
    rng = np.random.RandomState(0)
    x, c = (rng.standard_normal((2, D)).astype(np.float32) for _ in range(2))
    got = jax.jit(jax.grad(lambda x: (c * transform(x, method)).sum()))(x)
    basis = np.asarray(jax.vmap(lambda e: transform(e, method))(np.eye(D, dtype=np.float32)))
    np.testing.assert_allclose(got, c @ basis.T, atol=2e-5)


@pytest.mark.parametrize("method", spectral.METHODS)
@pytest.mark.parametrize("D", [2, 7, 64, 100])
def test_the_filter_and_both_its_gradients_are_those_of_scipy(method, D):
    rng = np.random.RandomState(D)
    x, c = (rng.standard_normal((3, 5, D)) for _ in range(2))
    w = 1 + 0.5 * rng.standard_normal(D)
    X, C = (scipy.fft.dct(a, norm="ortho") for a in (x, c))
    of_x, of_c = (scipy.fft.idct(w * A, norm="ortho") for A in (X, C))
    want = (of_x, of_c, (X * C).sum((0, 1)))
    y, pull = jax.vjp(lambda x, w: filtered(x, w, method), jnp.float32(x), jnp.float32(w))
    for got, exact in zip((y, *pull(jnp.float32(c))), want, strict=True):
        np.testing.assert_allclose(got, exact, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("D", [2, 7, 64])
def test_a_folded_filter_is_one_symmetric_matrix_given_or_made(D):
    w = jnp.float32(np.random.RandomState(D).standard_normal(D))
    M_DxD = spectral.folded(w)
    basis = scipy.fft.dct(np.eye(D), axis=0, norm="ortho")
    np.testing.assert_allclose(M_DxD, basis.T @ np.diag(w) @ basis, atol=1e-6)
    np.testing.assert_allclose(M_DxD, M_DxD.T, atol=1e-6)
    x = jnp.float32(np.random.RandomState(0).standard_normal((3, D)))
    given = spectral.filtered(x, jnp.zeros(D), "folded", M_DxD)
    np.testing.assert_array_equal(given, spectral.filtered(x, w, "folded"))


@pytest.mark.parametrize("method", spectral.METHODS)
def test_a_filter_keeps_bfloat16(method):
    rng = np.random.RandomState(0)
    x = jnp.asarray(rng.standard_normal((4, 64)), jnp.bfloat16)
    w = jnp.float32(1 + 0.1 * rng.standard_normal(64))
    y = filtered(x, w, method)
    assert y.dtype == jnp.bfloat16
    X = scipy.fft.dct(np.asarray(x, np.float64), norm="ortho")
    want = scipy.fft.idct(np.asarray(w) * X, norm="ortho")
    np.testing.assert_allclose(np.asarray(y, np.float64), want, atol=0.05)


def test_bfloat16_is_computed_in_float32_and_cast_back():
    x = jnp.asarray(np.random.RandomState(0).standard_normal((4, 64)), jnp.bfloat16)
    X = dct(x)
    assert X.dtype == jnp.bfloat16
    want = scipy.fft.dct(np.asarray(x, np.float64), norm="ortho")
    np.testing.assert_allclose(np.asarray(X, np.float64), want, atol=2e-2)


@pytest.mark.parametrize("D", [16, 64, 256, 1024])
def test_entropy_of_gaussian_vectors_matches_the_closed_form(D):
    tokens = min(20_000, 5_000_000 // D)
    x = np.random.RandomState(1).standard_normal((1, tokens, D)).astype(np.float32)
    got = float(entropy_of(dct(x)).mean())
    assert abs(got - spectral.gaussian_entropy(D)) < 1e-3
    assert abs(spectral.gaussian_entropy(1024) - 0.8947) < 3e-4


@pytest.mark.parametrize("D", [1024, 4096])
def test_entropy_of_gaussian_vectors_matches_the_published_limit(D):
    """That is 1 − (ψ(3/2) + ln 2)/ln D, to 3 decimals.

    And our closed form is the exact (ψ(D/2 + 1) − ψ(3/2))/ln D.
    """
    x = np.random.RandomState(3).standard_normal((1, 5_000_000 // D, D)).astype(np.float32)
    got = float(entropy_of(dct(x)).mean())
    assert abs(got - (1 - (scipy.special.psi(1.5) + np.log(2)) / np.log(D))) < 5e-4
    for n in (16, D):
        exact = (scipy.special.psi(n / 2 + 1) - scipy.special.psi(1.5)) / np.log(n)
        assert abs(spectral.gaussian_entropy(n) - exact) < 1e-4


@pytest.mark.parametrize("D", [7, 64])
def test_published_coefficients_are_those_of_the_unnormalised_dct(D):
    """The published code divides twice scipy's default DCT by √(2D), which is not orthonormal."""
    x = np.random.RandomState(4).standard_normal((1, 3, D))
    want = 2 * scipy.fft.dct(x) / np.sqrt(2 * D)
    X = spectral.published_scale(D)[None, None] * np.asarray(dct(x.astype(np.float32)))
    np.testing.assert_allclose(X, want, atol=1e-5 * np.abs(want).max())
    p = want**2 / (want**2).sum(-1, keepdims=True)
    entropy = -(p * np.log(p)).sum(-1) / np.log(D)
    np.testing.assert_allclose(entropy_of(X), entropy, rtol=1e-5)


def test_entropy_agrees_with_scipy_and_stays_in_range():
    x = np.random.RandomState(2).standard_normal((2, 50, 96))
    p = scipy.fft.dct(x, norm="ortho") ** 2
    p /= p.sum(-1, keepdims=True)
    want = -(p * np.log(p)).sum(-1) / np.log(96)
    got = entropy_of(dct(x.astype(np.float32)))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    flat = np.ones((1, 1, 8), np.float32)
    peak = np.eye(8, dtype=np.float32)[None, :1]
    assert abs(float(entropy_of(flat)[0, 0]) - 1) < 1e-6
    assert abs(float(entropy_of(peak)[0, 0])) < 1e-6


def test_entropy_gradient_is_finite_where_coefficients_vanish():
    X = jnp.zeros((1, 2, 8)).at[0, 0, 3].set(2.0)
    g = jax.grad(lambda X: entropy_of(X).sum())(X)
    assert np.isfinite(np.asarray(g)).all()


def entropies(X):
    """Returns the entropy of X as float32 coefficients alone, and as a Spectrum; same gradient."""
    return (
        (spectral.spectral_entropy, (X,)),
        (lambda kept: entropy_of(X, kept), (X,)),
    )


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1.0, 1e6, 1e18])
def test_entropy_and_its_gradient_do_not_depend_on_the_scale(scale):
    x = np.random.RandomState(3).standard_normal((1, 5, 64))
    p = x**2 / (x**2).sum(-1, keepdims=True)
    H = -(p * np.log(p)).sum(-1) / np.log(64)
    slope = -2 * p * (np.log(p) + H[..., None] * np.log(64)) / np.log(64) / x
    for entropy, args in entropies(jnp.float32(scale * x)):
        found, pull = jax.vjp(entropy, *args)
        np.testing.assert_allclose(found, H, rtol=1e-5)
        (got,) = pull(jnp.ones_like(found))
        np.testing.assert_allclose(scale * np.float64(got), slope, rtol=1e-3, atol=1e-6)


def test_a_token_of_zeros_has_no_entropy_and_a_single_coefficient_none_either():
    X = jnp.zeros((1, 2, 8)).at[0, 0, 3].set(-2.0)
    for entropy, args in entropies(X):
        found, pull = jax.vjp(entropy, *args)
        np.testing.assert_allclose(found, 0.0, atol=1e-7)
        (got,) = pull(jnp.ones_like(found))
        np.testing.assert_allclose(got, 0.0, atol=1e-6)


@pytest.mark.parametrize("D", [64, 1024])
def test_what_a_router_sees_of_bfloat16_by_two_products_is_as_precise_as_float32(D):
    """Also, at most one decision of a thousand is another one at the median."""
    x = jnp.asarray(np.random.RandomState(5).standard_normal((1, 4000, D)), jnp.bfloat16)
    want = scipy.fft.dct(np.asarray(x, np.float64), norm="ortho")
    found = spectral.spectrum(x, "matmul")
    assert found.exact.dtype == jnp.float32
    np.testing.assert_allclose(found.exact, want, atol=2**-14)  # of bfloat16 alone it is 2^-7
    np.testing.assert_array_equal(found.kept, found.exact.astype(jnp.bfloat16))
    p = want**2 / (want**2).sum(-1, keepdims=True)
    H = -(p * np.log(p)).sum(-1) / np.log(D)
    got = np.asarray(entropy_of(*found))
    np.testing.assert_allclose(got, H, rtol=1e-5)
    assert ((got > np.median(H)) != (H > np.median(H))).mean() <= 1e-3


def test_a_seen_filter_by_products_has_the_gradients_of_one_by_ffts():
    rng = np.random.RandomState(6)
    x = jnp.asarray(rng.standard_normal((2, 9, 64)), jnp.bfloat16)
    w = jnp.float32(1 + 0.3 * rng.standard_normal(64))
    c, along = rng.standard_normal((2, 9, 64)), 30 * rng.standard_normal((2, 9))

    def reference(x, w):
        X = dct(x.astype(jnp.float32))
        return idct(w[None, None] * X), entropy_of(X)

    def products(x, w):
        found = spectral.spectrum(x, "matmul")
        y = spectral.weighed(found.kept, w)
        assert y.dtype == jnp.bfloat16
        return y.astype(jnp.float32), entropy_of(*found)

    slope = jnp.asarray(c, jnp.bfloat16).astype(jnp.float32), jnp.float32(along)
    for pick in ((1, 1), (1, 0), (0, 1)):  # both results, then each alone
        pairs = []
        for made in (reference, products):

            @jax.jit
            def pulled(x, w, slopes, made=made):
                results, pull = jax.vjp(made, x, w)
                return *results, *pull(slopes)

            pairs.append(pulled(x, w, tuple(n * s for n, s in zip(pick, slope, strict=True))))
        for want, got in zip(*pairs, strict=True):
            want = np.asarray(want, np.float64)
            error = np.asarray(got, np.float64) - want
            assert np.linalg.norm(error) <= 0.01 * np.linalg.norm(want)
