"""Rank correlations of single tokens, with intervals that know that the tokens of a window are not independent."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from cerebra_jax.report import statistics as stats


class Interval(NamedTuple):
    """A figure and its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


NONE = Interval(math.nan, math.nan, math.nan)


def ranks(x_N: np.ndarray) -> np.ndarray:
    """1 … N, equal values their mean rank."""
    _, number_N, count = np.unique(x_N, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[number_N]


def unit_ranks(x_N: np.ndarray, window_N: np.ndarray) -> list[np.ndarray]:
    """Ranks without their mean, of length 1: of all tokens, then, where there are several windows, of all but those of
    one, for each of them. All zeros where the values are all equal."""
    windows = np.unique(window_N)
    left = (_unit(ranks(x_N[window_N != w])) for w in windows if len(windows) > 1)
    return [_unit(ranks(x_N)), *left]


def spearman(x: list[np.ndarray], y: list[np.ndarray]) -> Interval:
    """Spearman's ρ of two `unit_ranks`, with a jackknife interval over windows.

    Each window left out once, on Fisher's scale z = atanh ρ (Student's t, W − 1 degrees of freedom): the standard error
    is that of W independent windows, whatever the tokens in them have to do with each other (Efron & Stein 1981).
    """
    rho = np.array([a @ b for a, b in zip(x, y, strict=True)])
    if not x[0].any() or not y[0].any():
        return NONE
    z, *left = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    W = len(left)
    if W == 0:
        return Interval(float(rho[0]), math.nan, math.nan)
    error = math.sqrt((W - 1) / W * np.square(left - np.mean(left)).sum())
    half = stats.quantile(W - 1) * error
    return Interval(float(rho[0]), math.tanh(z - half), math.tanh(z + half))


def apart(norm_WxL: np.ndarray, kept_WxL: np.ndarray, real_WxL: np.ndarray) -> stats.Paired | None:
    """Mean norm of kept tokens − mean norm of the others, relative to the window's mean, paired in each window that
    has both; None where fewer than 2 have."""
    a, b = {}, {}
    for w, (norm_L, kept_L, real_L) in enumerate(zip(norm_WxL, kept_WxL, real_WxL, strict=True)):
        norm_N, kept_N = norm_L[real_L].astype(float), kept_L[real_L]
        if kept_N.any() and not kept_N.all() and norm_N.any():
            a[w], b[w] = (
                norm_N[kept_N].mean() / norm_N.mean(),
                norm_N[~kept_N].mean() / norm_N.mean(),
            )
    return stats.paired(a, b)


def by_position(norm_WxL: np.ndarray, real_WxL: np.ndarray) -> np.ndarray:
    """Norms relative to the mean of their position over all windows: early tokens have more to say to later ones."""
    total_L = np.where(real_WxL, norm_WxL, 0).sum(0)
    return norm_WxL * (real_WxL.sum(0) / np.where(total_L > 0, total_L, 1))


def _unit(rank_N: np.ndarray) -> np.ndarray:
    centred_N = rank_N - rank_N.mean()
    length = np.linalg.norm(centred_N)
    return centred_N / length if length else np.zeros_like(centred_N)
