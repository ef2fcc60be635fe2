"""Computes the DCT-II and its inverse over the last axis, and the spectral entropy of a token.

`fft` is Makhoul's form: one real FFT of length D (Makhoul 1980, doi:10.1109/TASSP.1980.1163351);
`matmul` multiplies by the D x D basis; `folded` is a whole filter, two transforms with weights
between them, as one D x D matrix. Both transforms equal scipy.fft.dct(norm="ortho"). They are
orthogonal, so the gradient of each is the other one: that is what the custom_vjp says. bf16 input
is computed in float32 and cast back (rfft has no bf16). What a router looks at is `spectrum`, which
of bf16 input and as a matmul is two bf16 products, as precise as float32.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.kernels.remat import keep

TRANSFORMS = ("fft", "matmul")
METHODS = (*TRANSFORMS, "folded")  # of the filter


class Methods(NamedTuple):
    """Says how DCTs are computed."""

    transform: str  # one whose coefficients are looked at
    filter: str  # a whole filter whose coefficients nobody sees


# What `auto` takes up to a width D. cpu, measured (benchmarks/README.md): up to D = 256 a matmul
# alone is faster, but no whole step is by more than its noise, and such a step executes 5 to 9 %
# more FLOPs. gpu and tpu, not measured here: vendors' rates and bytes of compiled programs. Of
# bfloat16 tokens a transform is two bfloat16 products, where an FFT is six passes over float32
# arrays. Of float32 tokens it needs all of float32, 67 TFLOP/s of an H100, or six bfloat16 passes
# of a TPU, whose FFT is slow. A folded filter is one product, as precise as any linear layer.
_FFT = Methods("fft", "fft")
_MATMUL = Methods("matmul", "folded")
_AUTO = {
    "cpu": ((math.inf, _FFT),),
    "gpu": ((256, _MATMUL), (1024, Methods("fft", "folded")), (math.inf, _FFT)),
    "old_gpu": ((math.inf, _FFT),),  # its bfloat16 is no faster than its float32
    "tpu": ((math.inf, _MATMUL),),
}
_AUTO_BFLOAT16 = _AUTO | {"gpu": ((2048, _MATMUL), (math.inf, _FFT))}


def methods(choice: str, D: int, platform: str, dtype: str = "float32") -> Methods:
    """Returns what net.route.dct stands for at width D on a platform, cpu, gpu, old_gpu or tpu.

    dtype: that of the tokens. On a platform that is not known, `auto` is the FFT.
    """
    table = _AUTO_BFLOAT16 if dtype == "bfloat16" else _AUTO
    widths = table.get(platform, ((math.inf, _FFT),))
    auto = next(found for most, found in widths if most >= D)
    if choice == "folded":
        return auto._replace(filter=choice)
    return auto if choice == "auto" else Methods(choice, choice)


@functools.lru_cache(maxsize=16)
def _twiddle(D: int) -> np.ndarray:
    """Returns exp(−iπk/2D) with the orthonormal scale folded in, k = 0 … D/2."""
    k = np.arange(D // 2 + 1)
    scale = np.where(k == 0, math.sqrt(1 / D), math.sqrt(2 / D))
    return (scale * np.exp(-1j * np.pi * k / (2 * D))).astype(np.complex64)


def _last(row, ndim: int):
    """Returns a vector as the last of `ndim` axes: ranks are never promoted silently here."""
    return row.reshape((1,) * (ndim - 1) + (-1,))


@functools.lru_cache(maxsize=16)
def _basis(D: int) -> np.ndarray:
    """Returns the DCT-II basis vectors as rows: X = basis @ x."""
    k = np.arange(D)[:, None]
    n = np.arange(D)[None]
    basis = math.sqrt(2 / D) * np.cos(np.pi * (2 * n + 1) * k / (2 * D))
    basis[0] /= math.sqrt(2)
    return basis.astype(np.float32)


def _dct_fft(x):
    D = x.shape[-1]
    # indexing with a step is a gather in jax < 0.8
    even, odd = (jax.lax.slice_in_dim(x, start, D, stride=2, axis=-1) for start in (0, 1))
    v = jnp.concatenate([even, odd[..., ::-1]], axis=-1)
    z = jnp.fft.rfft(v) * _last(_twiddle(D), x.ndim)
    return jnp.concatenate([z.real, -z.imag[..., 1 : (D + 1) // 2][..., ::-1]], axis=-1)


def _idct_fft(X):
    D = X.shape[-1]
    half = D // 2 + 1
    mirrored = jnp.concatenate([jnp.zeros_like(X[..., :1]), X[..., ::-1][..., : half - 1]], axis=-1)
    w = _last(_twiddle(D), X.ndim)
    # 1/w = conj(w)/|w|² undoes rotation and scale; at k = D/2 the result is real by itself
    z = jax.lax.complex(X[..., :half], -mirrored) * np.asarray(
        np.conj(w) / np.abs(w) ** 2, np.complex64
    )
    v = jnp.fft.irfft(z, D)
    even, odd = v[..., : (D + 1) // 2], v[..., (D + 1) // 2 :][..., ::-1]
    if D % 2:
        odd = jnp.concatenate([odd, odd[..., :1]], axis=-1)
    return jnp.stack([even, odd], axis=-1).reshape(*v.shape[:-1], -1)[..., :D]


def _product(x, matrix_DxD):
    """Returns x·matrix in all of float32, on a GPU or TPU too.

    A router compares what comes of it with a threshold.
    """
    return jnp.matmul(x, matrix_DxD, precision=jax.lax.Precision.HIGHEST)


def _forward(x, method: str) -> jax.Array:
    x32 = x.astype(jnp.float32)
    X = _dct_fft(x32) if method == "fft" else _product(x32, _basis(x.shape[-1]).T)
    return X.astype(x.dtype)


def _inverse(X, method: str) -> jax.Array:
    X32 = X.astype(jnp.float32)
    x = _idct_fft(X32) if method == "fft" else _product(X32, _basis(X.shape[-1]))
    return x.astype(X.dtype)


_dct = jax.custom_vjp(_forward, nondiff_argnums=(1,))
_idct = jax.custom_vjp(_inverse, nondiff_argnums=(1,))
_dct.defvjp(
    lambda x, method: (_forward(x, method), None), lambda method, _, g: (_inverse(g, method),)
)
_idct.defvjp(
    lambda X, method: (_inverse(X, method), None), lambda method, _, g: (_forward(g, method),)
)


def dct(x, method: str = "fft") -> jax.Array:
    """Returns the orthonormal DCT-II of the last axis, in the shape and dtype of x.

    X_k = s_k Σ x_n cos(π(2n+1)k/2D).
    """
    return _dct(x, method)


def idct(X, method: str = "fft") -> jax.Array:
    """Returns the orthonormal DCT-III, the inverse of `dct`."""
    return _idct(X, method)


# a spectrum that a router looks at


class Spectrum(NamedTuple):
    """Holds DCT coefficients for a router, (B, L, D).

    kept: the same ones in bfloat16 where a backward pass is given those alone. Then they have the
    gradients, and `exact` has none.
    """

    exact: jax.Array  # float32
    kept: jax.Array | None = None


@functools.lru_cache(maxsize=16)
def _halves(D: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the basis as the sum of two bfloat16 matrices: 16 bits of each number."""
    high = _basis(D).astype(jnp.bfloat16)
    return high, (_basis(D) - high.astype(np.float32)).astype(jnp.bfloat16)


def _rows(x):
    return x.reshape(-1, x.shape[-1])


def is_split(x, method: str) -> bool:
    """Returns whether the DCT of x for a router is two bfloat16 products."""
    return method == "matmul" and x.dtype == jnp.bfloat16


def spectrum(x, method: str) -> Spectrum:
    """Returns the DCT of tokens as a router sees it."""
    if is_split(x, method):
        return Spectrum(*_split(x))
    return Spectrum(dct(x.astype(jnp.float32), method))


def _split_forward(x):
    """Returns the DCT of bfloat16 rows in float32, and in bfloat16.

    A product of bfloat16 numbers is exact in float32, so that two of them with the halves of the
    basis lose nothing but its last 8 bits.
    """
    rows = _rows(x)
    high, low = (
        jnp.matmul(rows, half.T, preferred_element_type=jnp.float32)
        for half in _halves(x.shape[-1])
    )
    X = (high + low).reshape(x.shape)
    return X, keep(X.astype(x.dtype))


_split = jax.custom_vjp(_split_forward)
_split.defvjp(
    lambda x: (_split_forward(x), None),
    lambda _, g: ((_rows(g[1]) @ _halves(g[1].shape[-1])[0]).reshape(g[1].shape),),
)


def _weighed(X, w_D):
    matrix_DxD = w_D.astype(jnp.float32)[:, None] * _basis(X.shape[-1])
    return (_rows(X) @ matrix_DxD.astype(X.dtype)).reshape(X.shape)


def _weighed_bwd(residuals, dy):
    X, w_D = residuals
    G = (_rows(dy) @ _halves(X.shape[-1])[0].T).astype(jnp.float32)
    dX = (w_D.astype(jnp.float32)[None] * G).astype(X.dtype).reshape(X.shape)
    return dX, (_rows(X).astype(jnp.float32) * G).sum(0).astype(w_D.dtype)


_weighed_vjp = jax.custom_vjp(_weighed)
_weighed_vjp.defvjp(lambda X, w_D: (_weighed(X, w_D), (X, w_D)), _weighed_bwd)


def weighed(X, w_D) -> jax.Array:
    """Returns iDCT(w ⊙ X) of bfloat16 coefficients by one product, like other linear layers."""
    return _weighed_vjp(X, w_D)


@functools.lru_cache(maxsize=16)
def _cosines(D: int) -> np.ndarray:
    """Returns (D + 1, D): s_k² cos(πjk/D), s_k the orthonormal scale."""
    j = np.arange(D + 1)[:, None]
    k = np.arange(D)[None]
    scale = np.where(k == 0, 1.0, 2.0) / D
    return (scale * np.cos(np.pi * (j * k % (2 * D)) / D)).astype(np.float32)


def _sliding(u) -> jax.Array:
    """Returns (D, D) whose row n is u[n : n + D], of 2D − 1 numbers.

    It is made without a gather, whose gradient is slow.
    """
    D = (u.shape[0] + 1) // 2
    rows = jnp.broadcast_to(u[None], (D, 2 * D - 1)).reshape(-1)
    return jnp.pad(rows, (0, D)).reshape(D, 2 * D)[:, :D]


def folded(w_D) -> jax.Array:
    """Returns Cᵀ diag(w) C, the symmetric (D, D) matrix of x -> iDCT(w ⊙ DCT(x)), float32.

    M_nm = (f(n + m + 1) + f(|n − m|))/2 with f(j) = Σ_k w_k s_k² cos(πjk/D): D + 1 sums instead of
    a product of matrices.
    """
    f = (_cosines(w_D.shape[0]) * w_D.astype(jnp.float32)[None]).sum(-1)  # f(2D − j) = f(j)
    far = jnp.concatenate([f[1:], f[-2:0:-1]])
    near = jnp.concatenate([f[-2:0:-1], f[:-1]])
    return (_sliding(far) + _sliding(near)[::-1]) / 2


def filtered(x, w_D, method: str, matrix_DxD=None):
    """Returns iDCT(w ⊙ DCT(x)) of the last axis, in the dtype of x.

    By two transforms in float32, or "folded" by one (D, D) matrix, a linear layer like others in
    the dtype of x. The matrix is made here unless it is given.
    """
    D = x.shape[-1]
    if method == "folded":
        matrix_DxD = folded(w_D) if matrix_DxD is None else matrix_DxD
        return (x.reshape(-1, D) @ matrix_DxD.astype(x.dtype)).reshape(x.shape)
    x32 = x.astype(jnp.float32)
    return idct(_last(w_D, x.ndim) * dct(x32, method), method).astype(x.dtype)


def published_scale(D: int) -> np.ndarray:
    """Returns what CHIAR's published code multiplies an orthonormal DCT by, (D,).

    That is 2, and 2√2 for k = 0, whose power thus counts twice in the entropy. Its inverse gives
    back 2x: the filter's weights act as 2w on orthonormal coefficients.
    """
    return np.where(np.arange(D) == 0, 2 * math.sqrt(2), 2.0).astype(np.float32)


_TINY = 1e-30  # keeps logarithms finite where a coefficient is 0, beside the largest, which is 1


def spectral_entropy(X_BxLxD, kept_BxLxD=None) -> jax.Array:
    """Returns H = −Σ p log p / log D in [0, 1] of DCT coefficients, p = X²/ΣX²; float32 (B, L).

    The scale of a token does not matter: its largest coefficient is made 1 before any is squared.
    A token of zeros has an entropy of 0, without a gradient.

    With `kept`, as in a Spectrum, the gradient is that of `kept`.
    """
    if kept_BxLxD is not None:
        return _entropy(X_BxLxD, kept_BxLxD)
    # p does not depend on the scale, so the gradient needs no term of it
    largest_BxLx1 = jax.lax.stop_gradient(_largest(X_BxLxD))
    power = jnp.square(X_BxLxD.astype(jnp.float32) / largest_BxLx1)
    p = power / _or_one(power.sum(-1, keepdims=True))
    return -(p * jnp.log(p + _TINY)).sum(-1) / math.log(X_BxLxD.shape[-1])


def _largest(X_BxLxD) -> jax.Array:
    """Returns the largest size of a token's coefficients, (B, L, 1) float32; 1 where all are 0."""
    return _or_one(jnp.abs(X_BxLxD.astype(jnp.float32)).max(-1, keepdims=True))


def _or_one(divisor) -> jax.Array:
    """Returns a divisor; 1 where it is 0, which is that of a token of zeros."""
    return jnp.where(divisor > 0, divisor, 1.0)


@jax.custom_vjp
def _entropy(X_BxLxD, kept_BxLxD):
    """Returns (log S − Σ P log P / S) / log D with P = X²/max X², S = ΣP: two sums of one pass."""
    return _entropy_fwd(X_BxLxD, kept_BxLxD)[0]


def _entropy_fwd(X_BxLxD, kept_BxLxD):
    largest_BxLx1 = _largest(X_BxLxD)
    power = jnp.square(X_BxLxD / largest_BxLx1)
    sum_BxL = _or_one(power.sum(-1))
    mean_BxL = (power * jnp.log(power + _TINY)).sum(-1) / sum_BxL  # Σ p log P
    largest_BxLx1, sum_BxL, mean_BxL = keep((largest_BxLx1, sum_BxL, mean_BxL))
    H_BxL = (jnp.log(sum_BxL) - mean_BxL) / math.log(X_BxLxD.shape[-1])
    return H_BxL, (kept_BxLxD, largest_BxLx1, sum_BxL, mean_BxL)


def _entropy_bwd(residuals, dH_BxL):
    """Returns the gradient: dH/dX = 2X (Σ p log P − log P) / (max X² S log D)."""
    kept_BxLxD, largest_BxLx1, sum_BxL, mean_BxL = residuals
    X = kept_BxLxD.astype(jnp.float32) / largest_BxLx1
    scale_BxL = 2 * dH_BxL / (sum_BxL * math.log(X.shape[-1]))
    log = jnp.log(jnp.square(X) + _TINY)
    dX = scale_BxL[..., None] * X * (mean_BxL[..., None] - log) / largest_BxLx1
    return jnp.zeros(X.shape, jnp.float32), dX.astype(kept_BxLxD.dtype)


_entropy.defvjp(_entropy_fwd, _entropy_bwd)


def gaussian_entropy(D: int) -> float:
    """Returns E[H] of an isotropic Gaussian vector, which is what noise scores.

    (ψ(D/2 + 1) − ψ(3/2))/ln D -> 1 − (ψ(3/2) + ln 2)/ln D. The power shares are
    Dirichlet(1/2, …, 1/2); ψ(x) ≈ ln x − 1/2x − 1/12x² is exact to 1e-4 from D = 2 on.
    """
    x = D / 2 + 1
    psi = math.log(x) - 1 / (2 * x) - 1 / (12 * x * x)
    psi_three_halves = 2 - 2 * math.log(2) - 0.5772156649015329
    return (psi - psi_three_halves) / math.log(D)
