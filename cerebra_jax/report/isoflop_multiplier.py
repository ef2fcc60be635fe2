"""What follows from the fits of an iso-FLOP sweep: envelopes, and the compute dense would need.

The envelope of a family is L(C) = min over N of its fit at D = C / (3 FLOPs of a token of size N).
N goes from the smallest to the largest size that was trained, never beyond them; between them the
FLOPs of a token are interpolated, their logarithms over that of N, by a monotone cubic.

The compute multiplier of a family at C is the compute with which dense reaches the family's L(C),
divided by C. By the fits that is min over N of 3 FLOPs of a token · D of the loss, for dense. Its
interval is of resampled fits of both families. Its p says how often they pass 1, and is corrected
by Holm's procedure for the number of comparisons. The measured one needs no fit: the family's
lowest loss, beside those of dense at its budgets, between which log C is linear in the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

from cerebra_jax.errors import UserError
from cerebra_jax.report.isoflop import DENSE, Cell, Family, Study
from cerebra_jax.report.isoflop_fit import Fit, Law, interval, p_value
from cerebra_jax.report.statistics import half_width, holm
from cerebra_jax.report.statistics import p_value as p_of_mean

REACH = 10.0  # how far beyond the compute that it was trained with an envelope is followed
_GRID = 200  # sizes among which the best one is sought


class Estimate(NamedTuple):
    """A number with its 95 % interval: NaN where there is none, infinite where dense never gets
    there.

    mark: "†" where dense was not trained with so much, or so little; ">" or "<" where the number is
    a bound. p: of the number being 1; NaN where there is no interval.
    """

    value: float
    low: float
    high: float
    mark: str = ""
    p: float = math.nan

    def times(self, factor: float) -> Estimate:
        """Returns the estimate in another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.mark)


class Comparison(NamedTuple):
    """A study, and what follows from it for each family and budget."""

    study: Study
    base: str  # the family that others are compared with; "" where there is none
    bests: list[tuple[Family, float, Best]]


class Best(NamedTuple):
    """The best of a family at a budget, as measured and by its fit, and its multipliers."""

    cell: Cell  # of the lowest measured loss
    loss: Estimate | None  # the envelope; None without a fit
    N: float  # the best size by the fit; NaN without one
    at_end: bool  # which is not between the smallest and the largest one that had this budget
    flops: Estimate | None  # by the fits of the family and of dense
    hours: Estimate | None  # the same, or else the measured one, in seconds of training steps
    measured: Estimate | None  # by the lowest losses alone

    @property
    def judged(self) -> Estimate | None:
        """Returns the estimate that a verdict is said of; None where nothing is compared."""
        return self.flops or self.measured


def compare(study: Study, base: str = "") -> Comparison:
    """Returns what follows from a study; `base` is the family that others are compared with.

    Without a word that is dense, if it is there. Raises UserError for a family that is not.
    """
    names = [family.name for family in study.families]
    if base and base not in names:
        raise UserError(f"--baseline={base} names no family", f"choose one of: {'; '.join(names)}")
    base = base or (DENSE if DENSE in names else "")
    dense = study.family(base)
    bests = [
        (family, budget, best(family, budget, None if family is dense else dense))
        for family in study.families
        for budget in family.budgets
    ]
    judged = [found.judged for _, _, found in bests]
    ps = iter(holm([one.p for one in judged if one and not math.isnan(one.p)]))
    corrected = []
    for (family, budget, found), one in zip(bests, judged, strict=True):
        if one and not math.isnan(one.p):
            field = "flops" if found.flops else "measured"
            found = found._replace(**{field: one._replace(p=next(ps))})
        corrected.append((family, budget, found))
    return Comparison(study, base, corrected)


def best(family: Family, budget: float, dense: Family | None) -> Best:
    """Returns what a family reaches at a budget; `dense` is None for dense itself."""
    cell = family.best(budget)
    loss, N, at_end, flops = None, math.nan, False, None
    if family.fit:
        sizes = Sizes.of(family)
        N_S, loss_1 = sizes.envelope(family.fit.law, budget)
        N = float(N_S[0])
        at_end = not family.at(budget)[0].N < N < family.at(budget)[-1].N
        loss = Estimate(float(loss_1[0]), *interval(sizes.envelope(family.fit.draws, budget)[1]))
        if dense and dense.fit:
            flops = _by_fits(family.fit, sizes, dense, budget)
    measured = dense and by_losses(cell, [dense.best(budget) for budget in dense.budgets])
    hours, times = None, flops or measured
    if dense and times and budget in dense.budgets:
        own, theirs = cell.seconds_per_flop, dense.best(budget).seconds_per_flop
        hours = times.times(theirs / own) if own and theirs else None
    return Best(cell, loss, N, at_end, flops, hours, measured)


class Sizes(NamedTuple):
    """Sizes from the smallest to the largest of a family, and FLOPs of a token of each."""

    N_K: np.ndarray
    flops_K: np.ndarray

    @classmethod
    def of(cls, family: Family) -> Sizes:
        """Returns the sizes of a family's ladder, and a grid between them."""
        own_K, flops_K = family.ladder()
        between_K = np.geomspace(own_K[0], own_K[-1], _GRID)[1:-1]
        N_K = np.unique(np.concatenate([own_K, between_K]))
        log_flops = PchipInterpolator(np.log(own_K), np.log(flops_K))
        return cls(N_K, np.exp(log_flops(np.log(N_K))))

    def envelope(self, law: Law, C: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best size of each fit at C, and its loss, (S,) each."""
        loss_SxK = law.loss(self.N_K, C / (3 * self.flops_K))
        best_S = loss_SxK.argmin(axis=1)
        return self.N_K[best_S], loss_SxK.min(axis=1)

    def needed(self, law: Law, loss_S: np.ndarray) -> np.ndarray:
        """Returns the least C at which each fit reaches its loss, (S,); infinite where it cannot.

        It is the inverse of the envelope.
        """
        return (3 * self.flops_K * law.tokens(self.N_K, loss_S)).min(axis=1)


def _by_fits(fit: Fit, sizes: Sizes, dense: Family, C: float) -> Estimate:
    """Returns the multiplier at C by the fits of a family and of dense.

    The envelope of dense is followed to REACH times what it was trained with, and then there is a
    bound; an end of the interval that is beyond it is infinite, or 0.
    """
    assert dense.fit
    of_dense = Sizes.of(dense)
    needed = of_dense.needed(dense.fit.law, sizes.envelope(fit.law, C)[1])[0]
    draws_S = of_dense.needed(dense.fit.draws, sizes.envelope(fit.draws, C)[1])
    trained = [cell.C for cell in dense.cells]
    least, most = min(trained), max(trained)

    mark = "" if least <= needed <= most else "†"
    if most * REACH < needed < math.inf:
        needed, mark = most * REACH, ">"
    elif needed < least / REACH:
        needed, mark = least / REACH, "<"
    followed_S = np.where(draws_S > most * REACH, np.inf, draws_S)
    followed_S = np.where(draws_S < least / REACH, 0.0, followed_S)
    ends = interval(followed_S / C)
    return Estimate(float(needed) / C, *ends, mark, p_value(draws_S, C))


def by_losses(cell: Cell, dense: Sequence[Cell]) -> Estimate | None:
    """Returns the multiplier by measured losses; `dense` are its best cells by rising budget.

    It is taken between the two cells that the loss lies between, or on the line through the last or
    the first two. That line is followed as far as the two are apart, and then there is a bound. The
    interval is Student's t of the logarithm over the seeds that all three cells have. None where
    dense has one cell, or does not fall.
    """
    pairs = list(zip(dense, dense[1:], strict=False))
    if not pairs:
        return None
    between = [pair for pair in pairs if pair[0].loss >= cell.loss >= pair[1].loss]
    beyond = pairs[-1] if cell.loss < dense[-1].loss else pairs[0]
    a, b = between[0] if between else beyond
    t = _along(cell.loss, a.loss, b.loss)
    if math.isnan(t):
        return None
    mark = "" if between else "†"
    if not -1 <= t <= 2:
        mark = ">" if t > 2 else "<"
    log_C = math.log(a.C) + min(max(t, -1), 2) * math.log(b.C / a.C)
    value = math.exp(log_C) / cell.C
    if mark in ("<", ">"):
        return Estimate(value, math.nan, math.nan, mark)

    # seed by seed on the line of the same two budgets
    own, left, right = cell.by_seed(), a.by_seed(), b.by_seed()
    seeds = own.keys() & left.keys() & right.keys()
    ts = [_along(own[seed], left[seed], right[seed]) for seed in sorted(seeds)]
    if len(ts) < 2:
        return Estimate(value, math.nan, math.nan, mark)
    half = half_width(ts) * math.log(b.C / a.C)
    factor = math.exp(min(half, 700.0))
    p = p_of_mean(math.log(value), half, len(ts))
    return Estimate(value, value / factor, value * factor, mark, p)


def _along(loss: float, left: float, right: float) -> float:
    """Returns where a loss lies from one to another one, from 0 to 1; NaN where these do not
    fall.
    """
    return (left - loss) / (left - right) if left > right else math.nan


def verdict(found: Best) -> str:
    """Says better or worse only where the interval excludes 1 and p, by Holm, is below 0.05.

    That is of the fits, or else of the losses. Where dense was not trained with so much, or so
    little, its curve is continued, and the verdict says so. Returns "" where nothing is compared.
    """
    estimate = found.judged
    if estimate is None:
        return ""
    if math.isnan(estimate.low):
        return "no interval"
    if estimate.low <= 1 <= estimate.high or not estimate.p < 0.05:
        return "no difference shown"
    source = "fits" if found.flops else "losses"
    by = "by continuing the curve" if estimate.mark else f"by the {source}"
    return f"{'better' if estimate.low > 1 else 'worse'}, {by} (p = {estimate.p:.2g})"
