"""Fits L(N, D) = E + A / N^alpha + B / D^beta to the losses of runs, with intervals.

N is the parameters of a run outside of embedding and head, D the tokens that it predicted in
training, L its loss in nats a token. The form is that of Hoffmann et al. 2022, arXiv:2203.15556.

The fit is direct: one least squares over all runs of a family. Parabolas through the losses of each
budget, the usual other way, are biased where the curve is not symmetric (Xu et al. 2026,
arXiv:2603.22339). Variable projection (Golub & Pereyra 1973, SIAM J. Numer. Anal. 10:413) leaves
two unknowns: for given exponents the best E, A, B >= 0 are a linear least squares.

Residuals are plain: squares of nats, each run counts once. The losses of a ladder of sizes differ
little, so that squares of nats and of their logarithms are nearly the same. Huber's loss, which
Hoffmann et al. take, guards against runs that went wrong. Here a run that diverges ends with an
error, and a bent loss would leave the intervals without a noise to resample.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize

CONSTANTS = ("E", "A", "B", "alpha", "beta")
UNKNOWNS = len(CONSTANTS)
LEAST, MOST = 0.02, 3.0  # bounds of the exponents
DRAWS = 1000  # of the bootstrap: enough to correct a p for two dozen comparisons
DOUBTFUL = 0.1  # of the draws
_RIDGE = 1e-14
_NOTHING = 1e-9  # nats
_AT_BOUND = 1.001  # an exponent within this factor of a bound is at it
_STARTS = np.geomspace(0.05, 2.0, 9)  # of each exponent
_POLISHED = 3  # starts, the best ones, from which the fit is improved
_STEPS = 40  # of the improvement of resampled fits, at most
# which of E, A, B are above 0: all subsets but the empty one, all three first
_ACTIVE = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])


class Points(NamedTuple):
    """Holds the means of P cells; the runs of a cell differ in their seed."""

    N_P: np.ndarray
    D_P: np.ndarray
    loss_P: np.ndarray
    seeds_P: np.ndarray  # how many runs a mean is of: its weight


class Law(NamedTuple):
    """Holds S fits; A and B are at a scale: A_S are the nats that a model of N0 loses by its size.

    Scaling keeps the linear problem well conditioned; `constants` has A and B as usual.
    """

    E_S: np.ndarray
    A_S: np.ndarray
    B_S: np.ndarray
    alpha_S: np.ndarray
    beta_S: np.ndarray
    N0: float
    D0: float

    def loss(self, N_K: np.ndarray, D_SxK: np.ndarray) -> np.ndarray:
        """Returns the loss of each fit at K sizes and their tokens, (S, K).

        The tokens may be (K,), the same for all fits.
        """
        E_Sx1, A_Sx1, B_Sx1, alpha_Sx1, beta_Sx1 = (value[:, None] for value in self[:5])
        by_size_SxK = A_Sx1 * (N_K / self.N0) ** -alpha_Sx1
        return E_Sx1 + by_size_SxK + B_Sx1 * (D_SxK / self.D0) ** -beta_Sx1

    def tokens(self, N_K: np.ndarray, loss_S: np.ndarray) -> np.ndarray:
        """Returns the tokens with which each fit reaches its loss at K sizes, (S, K).

        They are infinite where no number of tokens is enough. A single loss is that of all fits.
        """
        E_Sx1, A_Sx1, B_Sx1, alpha_Sx1, beta_Sx1 = (value[:, None] for value in self[:5])
        left_SxK = loss_S[:, None] - E_Sx1 - A_Sx1 * (N_K / self.N0) ** -alpha_Sx1
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            D_SxK = self.D0 * (B_Sx1 / left_SxK) ** (1 / beta_Sx1)
        return np.where(left_SxK > 0, D_SxK, np.inf)

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """Returns E, A, B, alpha, beta for N in parameters and D in tokens, (S,) each."""
        return {
            "E": self.E_S,
            "A": self.A_S * self.N0**self.alpha_S,
            "B": self.B_S * self.D0**self.beta_S,
            "alpha": self.alpha_S,
            "beta": self.beta_S,
        }


class Fit(NamedTuple):
    """Holds the fit of a family, and fits to resampled losses."""

    law: Law  # one fit
    draws: Law
    noise: float  # standard deviation of a run about the law, nats; P - 5 degrees of freedom
    leverage_P: np.ndarray  # of each cell, 0 to 1: how far the fit follows it wherever it goes


def why_not(points: Points) -> str:
    """Returns why five unknowns cannot be fitted to these points; "" where they can."""
    pairs = list(zip(points.N_P, points.D_P, strict=True))
    for what, values, least in (
        ("pairs of size and tokens", pairs, UNKNOWNS + 1),
        ("sizes", points.N_P, 3),
        ("numbers of tokens", points.D_P, 3),
    ):
        count = len(set(values))
        if count < least:
            return f"different {what}: {count}, and at least {least} are needed"
    return ""


def fit(points: Points, draws: int = DRAWS, seed: int = 0) -> Fit:
    """Returns the fit of points for which `why_not` says nothing, with `draws` resampled ones."""
    problem = _problem(points)
    y_1xP = (problem.root_P * points.loss_P)[None]
    found_1x2 = _solve(problem, y_1xP)
    fitted_P = y_1xP[0] - _residual(problem, found_1x2, y_1xP)[0]
    residual_P = y_1xP[0] - fitted_P
    resampled_SxP = fitted_P + _noise(residual_P, draws, np.random.default_rng(seed))
    draws_Sx2 = _improved(problem, resampled_SxP, np.repeat(found_1x2, draws, axis=0))
    return Fit(
        law=_law(problem, found_1x2, y_1xP),
        draws=_law(problem, draws_Sx2, resampled_SxP),
        noise=float(np.sqrt((residual_P**2).sum() / (len(residual_P) - UNKNOWNS))),
        leverage_P=_leverage(problem, found_1x2, y_1xP),
    )


def doubt(found: Fit) -> str:
    """Returns why the numbers of a fit mean nothing; "" where they do.

    An exponent is not identified where it is at a bound of its search, in the fit itself or in more
    than DOUBTFUL of the resampled ones, or where so many of these have nothing of its term.
    """
    law, draws = found.law, found.draws
    for name, one_1, all_S in (
        ("alpha", law.alpha_S, draws.alpha_S),
        ("beta", law.beta_S, draws.beta_S),
    ):
        for bound in (LEAST, MOST):
            if is_at_bound(one_1, bound)[0]:
                return f"{name} is at the bound of its search, {bound:g}"
            share = is_at_bound(all_S, bound).mean()
            if share > DOUBTFUL:
                return f"{name} of {share:.0%} of the resampled fits is {bound:g}"
    for what, all_S in (("size", draws.A_S), ("tokens", draws.B_S)):
        if (all_S < _NOTHING).mean() > DOUBTFUL:
            return f"the losses do not clearly fall with {what}"
    return ""


def is_at_bound(exponent_S: np.ndarray, bound: float) -> np.ndarray:
    """Tells which exponents are at a bound of their search."""
    return (exponent_S >= bound / _AT_BOUND) & (exponent_S <= bound * _AT_BOUND)


def interval(draws_S: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of what was computed of resampled fits; its ends may be infinite.

    Its ends are draws, not means of two, so that it is that of any monotone function of them too.
    """
    low, high = np.quantile(draws_S, [0.025, 0.975], method="closest_observation")
    return float(low), float(high)


def p_value(draws_S: np.ndarray, null: float) -> float:
    """Returns the two-sided p of a number by its resampled fits: how often they pass `null`."""
    beyond = min((draws_S <= null).sum(), (draws_S >= null).sum())
    return min(1.0, 2 * (float(beyond) + 1) / (len(draws_S) + 1))


# ---- resampling


def _noise(residual_P: np.ndarray, draws: int, random: np.random.Generator) -> np.ndarray:
    """Returns noise like the residuals, (S, P): the bootstrap of the residuals of cells.

    Residuals of a fit of P - 5 degrees of freedom are too small by sqrt((P - 5) / P), and how large
    the noise is they know with an error: each draw has a size of its own, by sqrt(df / chi^2_df).
    Where a model is linear and its noise normal, percentiles of such draws are exactly Student's t
    intervals; without the second factor they cover too little of few cells.

    Cells are resampled, not the seeds within them. Two or three seeds show too little of their
    spread, a single one none, and how far the form itself is off shows between cells only. The
    mean over seeds carries both.
    """
    count = len(residual_P)
    df = count - UNKNOWNS
    size_Sx1 = np.sqrt(df / random.chisquare(df, (draws, 1)))
    picked_SxP = random.choice(residual_P - residual_P.mean(), (draws, count))
    return np.sqrt(count / df) * size_Sx1 * picked_SxP


# ---- variable projection; an unknown u is the logarithm of an exponent


class _Problem(NamedTuple):
    """What does not change while a fit is sought: logarithms of scaled N and D, and weights."""

    x_P: np.ndarray
    z_P: np.ndarray
    root_P: np.ndarray  # roots of the weights
    N0: float
    D0: float


def _problem(points: Points) -> _Problem:
    x_P = np.log(points.N_P)
    z_P = np.log(points.D_P)
    N0 = float(np.exp(x_P.mean()))
    D0 = float(np.exp(z_P.mean()))
    root_P = np.sqrt(points.seeds_P.astype(float))
    return _Problem(x_P - x_P.mean(), z_P - z_P.mean(), root_P, N0, D0)


def _solve(problem: _Problem, y_1xP: np.ndarray) -> np.ndarray:
    """Returns the best u, (1, 2): SciPy's trust region from the best of a grid of starts."""
    grid_Gx2 = np.log([[alpha, beta] for alpha in _STARTS for beta in _STARTS])
    residual_GxP = _residual(problem, grid_Gx2, np.repeat(y_1xP, len(grid_Gx2), axis=0))
    order_G = np.argsort((residual_GxP**2).sum(axis=1))
    found = [
        optimize.least_squares(
            lambda u_2: _residual(problem, u_2[None], y_1xP)[0],
            grid_Gx2[i],
            jac=lambda u_2: _jacobian(problem, u_2[None], y_1xP)[0],
            bounds=(np.log(LEAST), np.log(MOST)),
            xtol=1e-10,
            ftol=1e-12,
            gtol=1e-12,
        )
        for i in order_G[:_POLISHED]
    ]
    return min(found, key=lambda one: one.cost).x[None]


def _improved(problem: _Problem, y_SxP: np.ndarray, u_Sx2: np.ndarray) -> np.ndarray:
    """Returns the best u of S problems at once, from near ones: Levenberg and Marquardt's steps.

    SciPy solves one problem a call, which takes a hundred times as long.
    """
    low, high = np.log(LEAST), np.log(MOST)
    damping_S = np.full(len(u_Sx2), 1e-3)
    residual_SxP = _residual(problem, u_Sx2, y_SxP)
    for _ in range(_STEPS):
        # the step; an unknown that would leave its bounds stays
        jacobian_SxPx2 = _jacobian(problem, u_Sx2, y_SxP)
        slope_Sx2 = np.einsum("spk,sp->sk", jacobian_SxPx2, residual_SxP)
        stays_Sx2 = ((u_Sx2 <= low) & (slope_Sx2 > 0)) | ((u_Sx2 >= high) & (slope_Sx2 < 0))
        jacobian_SxPx2 = np.where(stays_Sx2[:, None], 0.0, jacobian_SxPx2)
        slope_Sx2 = np.where(stays_Sx2, 0.0, slope_Sx2)
        hessian_Sx2x2 = np.einsum("spk,spl->skl", jacobian_SxPx2, jacobian_SxPx2)
        diagonal_Sx2 = np.einsum("skk->sk", hessian_Sx2x2)
        added_Sx2 = damping_S[:, None] * diagonal_Sx2 + 1e-14
        hessian_Sx2x2 = hessian_Sx2x2 + added_Sx2[..., None] * np.eye(2)
        step_Sx2 = np.linalg.solve(hessian_Sx2x2, -slope_Sx2[..., None])[..., 0]

        # taken where it helps
        new_Sx2 = np.clip(u_Sx2 + step_Sx2, low, high)
        new_residual_SxP = _residual(problem, new_Sx2, y_SxP)
        helps_S = (new_residual_SxP**2).sum(axis=1) < (residual_SxP**2).sum(axis=1)
        moved = np.abs(new_Sx2 - u_Sx2).max()
        u_Sx2 = np.where(helps_S[:, None], new_Sx2, u_Sx2)
        residual_SxP = np.where(helps_S[:, None], new_residual_SxP, residual_SxP)
        damping_S = np.where(helps_S, damping_S / 5, damping_S * 5)
        if moved < 1e-5:
            break
    return u_Sx2


def _columns(problem: _Problem, u_Sx2: np.ndarray) -> np.ndarray:
    """Returns what E, A and B are multiplied with, weighted, (S, P, 3)."""
    alpha_Sx1, beta_Sx1 = np.exp(u_Sx2[:, :1]), np.exp(u_Sx2[:, 1:])
    by_size_SxP = np.exp(-alpha_Sx1 * problem.x_P)
    by_tokens_SxP = np.exp(-beta_Sx1 * problem.z_P)
    columns_SxPx3 = np.stack([np.ones_like(by_size_SxP), by_size_SxP, by_tokens_SxP], axis=2)
    return columns_SxPx3 * problem.root_P[:, None]


def project(columns_SxPx3: np.ndarray, y_SxP: np.ndarray) -> np.ndarray:
    """Returns the c >= 0 that minimise |columns c - y|^2 of S problems at once, (S, 3).

    As scipy.optimize.nnls, which solves one a call. Of the 7 subsets of unknowns that may be above
    0, the best whose own least squares is not negative is the answer, for the problem is convex.
    """
    # columns of length 1, and a ridge that no solution shows, so that nothing is ever singular
    size_Sx3 = np.sqrt((columns_SxPx3**2).sum(axis=1))
    unit_SxPx3 = columns_SxPx3 / size_Sx3[:, None]
    gram_Sx3x3 = np.einsum("spi,spj->sij", unit_SxPx3, unit_SxPx3) + _RIDGE * np.eye(3)
    right_Sx3 = np.einsum("spi,sp->si", unit_SxPx3, y_SxP)

    # subset by subset
    best_Sx3 = np.zeros_like(right_Sx3)
    gain_S = np.full(len(right_Sx3), -np.inf)  # how much of |y|^2 is explained
    for active_3 in _ACTIVE:
        inside_3x3 = np.outer(active_3, active_3)
        masked_Sx3x3 = gram_Sx3x3 * inside_3x3 + np.diag(1 - active_3)
        c_Sx3 = np.linalg.solve(masked_Sx3x3, (right_Sx3 * active_3)[..., None])[..., 0]
        explained_S = (c_Sx3 * right_Sx3).sum(axis=1)
        better_S = (c_Sx3 >= 0).all(axis=1) & (explained_S > gain_S)
        best_Sx3[better_S] = c_Sx3[better_S]
        gain_S[better_S] = explained_S[better_S]
        if active_3.all() and better_S.all():
            break
    return best_Sx3 / size_Sx3


def _residual(problem: _Problem, u_Sx2: np.ndarray, y_SxP: np.ndarray) -> np.ndarray:
    """Returns weighted residuals at the best E, A and B, (S, P)."""
    columns_SxPx3 = _columns(problem, u_Sx2)
    return y_SxP - np.einsum("spi,si->sp", columns_SxPx3, project(columns_SxPx3, y_SxP))


def _jacobian(problem: _Problem, u_Sx2: np.ndarray, y_SxP: np.ndarray) -> np.ndarray:
    """Returns the derivatives of `_residual` by u, (S, P, 2).

    They are Kaufman's (1975, BIT 15:49): the projection of the columns' derivatives, without a term
    that is as small as the residuals.
    """
    columns_SxPx3 = _columns(problem, u_Sx2)
    c_Sx3 = project(columns_SxPx3, y_SxP)
    # d/du of c exp(-e^u x) is -x e^u c exp(-e^u x)
    logs_Px2 = np.stack([problem.x_P, problem.z_P], axis=1)
    moved_SxPx2 = logs_Px2 * (np.exp(u_Sx2) * c_Sx3[:, 1:])[:, None] * columns_SxPx3[..., 1:]

    # what the columns in use can make up for is taken off
    active_Sx1x3 = (c_Sx3 > 0).astype(float)[:, None]
    used_SxPx3 = columns_SxPx3 * active_Sx1x3 / np.linalg.norm(columns_SxPx3, axis=1, keepdims=True)
    gram_Sx3x3 = np.einsum("spi,spj->sij", used_SxPx3, used_SxPx3)
    gram_Sx3x3 += (1 - active_Sx1x3 + _RIDGE) * np.eye(3)
    right_Sx3x2 = np.einsum("spi,spk->sik", used_SxPx3, moved_SxPx2)
    made_up_Sx3x2 = np.linalg.solve(gram_Sx3x3, right_Sx3x2)
    return moved_SxPx2 - np.einsum("spi,sik->spk", used_SxPx3, made_up_Sx3x2)


def _leverage(problem: _Problem, u_1x2: np.ndarray, y_1xP: np.ndarray) -> np.ndarray:
    """Returns the leverage of each cell, (P,).

    It is the diagonal of the projection on the derivatives of the law by its five unknowns, those
    left out that a bound of 0 holds.
    """
    columns_Px3 = _columns(problem, u_1x2)[0]
    c_3 = project(columns_Px3[None], y_1xP)[0]
    logs_Px2 = np.stack([problem.x_P, problem.z_P], axis=1)
    used_PxK = np.concatenate([columns_Px3, logs_Px2 * columns_Px3[:, 1:]], axis=1)
    used_PxK = used_PxK[:, np.concatenate([c_3 > 0, c_3[1:] > 0])]
    return (np.linalg.qr(used_PxK)[0] ** 2).sum(axis=1)


def _law(problem: _Problem, u_Sx2: np.ndarray, y_SxP: np.ndarray) -> Law:
    """Returns the fits of exponents with their best E, A and B."""
    E_S, A_S, B_S = project(_columns(problem, u_Sx2), y_SxP).T
    alpha_S, beta_S = np.exp(u_Sx2).T
    return Law(E_S, A_S, B_S, alpha_S, beta_S, problem.N0, problem.D0)
