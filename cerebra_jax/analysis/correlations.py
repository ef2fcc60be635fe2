"""Correlations and differences of single tokens, whose intervals are over windows.

The tokens of a window are not independent of one another; the windows are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from cerebra_jax.report.statistics import Paired, paired, t_quantile


class Interval(NamedTuple):
    """A figure and its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


UNDEFINED = Interval(math.nan, math.nan, math.nan)


def unit_ranks(x_N: np.ndarray, window_N: np.ndarray) -> list[np.ndarray]:
    """Returns the ranks of N tokens as vectors of mean 0 and length 1.

    The first vector is of all tokens. Where there are several windows, a vector for each of them
    follows, of all tokens but those of the window. Vectors of equal values are all zeros.
    """
    vectors = [_unit(rankdata(x_N))]
    windows = np.unique(window_N)
    if len(windows) > 1:
        vectors += [_unit(rankdata(x_N[window_N != window])) for window in windows]
    return vectors


def _unit(rank_N: np.ndarray) -> np.ndarray:
    centred_N = rank_N - rank_N.mean()
    length = np.linalg.norm(centred_N)
    return centred_N / length if length else np.zeros_like(centred_N)


def spearman(x: list[np.ndarray], y: list[np.ndarray]) -> Interval:
    """Returns Spearman's ρ of two `unit_ranks`, with a jackknife interval over W windows.

    Each window is left out once, on Fisher's scale z = atanh ρ, with Student's t of W − 1 degrees
    of freedom. The standard error is that of W independent windows, however the tokens in them
    depend on one another (Efron & Stein 1981).
    """
    rho = np.array([a @ b for a, b in zip(x, y, strict=True)])
    if not x[0].any() or not y[0].any():
        return UNDEFINED
    z, *z_without = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    W = len(z_without)
    if W == 0:
        return Interval(float(rho[0]), math.nan, math.nan)
    error = math.sqrt((W - 1) / W * np.square(z_without - np.mean(z_without)).sum())
    half = t_quantile(W - 1) * error
    return Interval(float(rho[0]), math.tanh(z - half), math.tanh(z + half))


def heavy_minus_light(
    norm_WxL: np.ndarray, kept_WxL: np.ndarray, real_WxL: np.ndarray
) -> Paired | None:
    """Compares the mean norm of kept tokens with that of the others, window by window.

    Norms are relative to the window's mean. Windows without both kinds are left out; the result is
    None where fewer than 2 windows remain.
    """
    heavy = {}
    light = {}
    for w, (norm_L, kept_L, real_L) in enumerate(zip(norm_WxL, kept_WxL, real_WxL, strict=True)):
        norm_N = norm_L[real_L].astype(float)
        kept_N = kept_L[real_L]
        if kept_N.any() and not kept_N.all() and norm_N.any():
            heavy[w] = norm_N[kept_N].mean() / norm_N.mean()
            light[w] = norm_N[~kept_N].mean() / norm_N.mean()
    return paired(heavy, light)


def relative_to_position(norm_WxL: np.ndarray, real_WxL: np.ndarray) -> np.ndarray:
    """Returns norms relative to the mean of their position over all windows.

    Early tokens have more to say to later ones, whatever a router decides.
    """
    total_L = np.where(real_WxL, norm_WxL, 0).sum(axis=0)
    count_L = real_WxL.sum(axis=0)
    return norm_WxL * (count_L / np.where(total_L > 0, total_L, 1))
