"""Writes what an iso-FLOP sweep shows: tables and notes as Markdown, CSV, LaTeX and a page."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from cerebra_jax.report import isoflop_plots as plots
from cerebra_jax.report import page, tables
from cerebra_jax.report.isoflop import DENSE, Cell, Family, power
from cerebra_jax.report.isoflop_fit import CONSTANTS, LEAST, MOST, interval, is_at_bound
from cerebra_jax.report.isoflop_multiplier import Best, Comparison, Estimate, verdict
from cerebra_jax.report.statistics import mean_sd

Rows = list[list[str]]

_ALONE = 0.9  # leverage of a cell that a fit hangs on


def markdown(of: Comparison, brief: bool = False) -> str:
    """Writes the tables and the notes as Markdown; brief: the multipliers only."""
    parts = [tables.markdown(multipliers(of), notes(of))]
    if not brief:
        parts.append(tables.markdown(fits(of), fit_notes(of)))
        parts.append(tables.markdown(cells(of), cell_notes(of)))
    return "\n\n".join(parts)


def latex(of: Comparison) -> str:
    """Writes the multipliers as a booktabs table; the notes follow as comments."""
    return tables.latex(multipliers(of), notes(of))


def html(of: Comparison) -> str:
    """Writes the report as a page: tables, notes, figures, and every run with its folder."""
    found = run_rows(of)
    parts = [page.head(f"{found[0]['data']}: {len(found)} runs at equal training FLOPs")]
    parts += [page.table(multipliers(of)), page.notes(notes(of))]
    parts.append(page.figure("Lowest loss against training FLOPs", partial(plots.envelopes, of)))
    parts.append(page.figure("Loss against size at each budget", partial(plots.curves, of)))
    parts += ["<h2>Fits</h2>\n", page.table(fits(of)), page.notes(fit_notes(of))]
    parts += ["<h2>Sizes</h2>\n", page.table(cells(of)), page.notes(cell_notes(of))]
    parts += ["<h2>Runs</h2>\n", page.table(page.rows_of(found)), "</body>\n</html>\n"]
    return "".join(parts)


# ---- tables


def multipliers(of: Comparison) -> Rows:
    """Returns a row for each family and budget, the headings first."""
    head = ["family", "budget", "best size", "valid loss", "test loss", "loss by the fit"]
    head += ["best N by the fit"]
    if of.base:
        times = f"FLOPs {of.base} needs, ×"
        head += [times, "hours, ×", f"FLOPs {of.base} needs by losses alone, ×"]
        head.append(f"by FLOPs, beside {of.base}")
    rows = [head]
    for family, budget, found in of.bests:
        cell = found.cell
        row = [family.name, power(budget), _size_text(family, cell), loss_text(cell, "val")]
        row += [loss_text(cell, "test"), estimate_text(found.loss, 3), _best_size(found)]
        if of.base:
            row += [times_text(found.flops, of.base), times_text(found.hours, of.base)]
            row += [times_text(found.measured, of.base), verdict(found)]
        rows.append(row)
    return rows


def fits(of: Comparison) -> Rows:
    """Returns a row for each family, the constants with their intervals; the headings first."""
    rows = [["family", *CONSTANTS, "noise of a run, nats", "cells", "runs"]]
    for family in of.study.families:
        row = [family.name]
        if family.fit:
            found = family.fit.law.constants
            draws = family.fit.draws.constants
            for name in CONSTANTS:
                row.append(_constant(name, found[name][0], *interval(draws[name])))
            row.append(f"{family.fit.noise:.4f}")
        else:
            row += ["no fit", *[""] * len(CONSTANTS)]
        runs = sum(len(cell.runs) for cell in family.cells)
        rows.append([*row, str(len(family.cells)), str(runs)])
    return rows


def cells(of: Comparison) -> Rows:
    """Returns a row for each family, budget and size, the headings first."""
    rows = [["family", "budget", "size", "N", "tokens", "valid loss", "off its fit"]]
    rows[0] += ["test loss", "seeds", "best"]
    for family in of.study.families:
        for cell in family.cells:
            is_best = cell is family.best(cell.budget)
            seeds = ", ".join(str(run.seed) for run in cell.runs)
            row = [family.name, power(cell.budget), cell.size, f"{cell.N:,}", f"{cell.D:,.0f}"]
            row += [loss_text(cell, "val"), _beside_fit(family, cell), loss_text(cell, "test")]
            rows.append([*row, seeds, "best" if is_best else ""])
    return rows


# ---- notes


def notes(of: Comparison) -> list[str]:
    """Returns what belongs under the multipliers, a sentence or some a paragraph."""
    said = [
        "A budget is training FLOPs as executed: three times the forward pass, router, compressor "
        f"and sampler included. Losses are nats a token. {_about_seeds(of)} Brackets hold 95 % "
        "intervals, which are not corrected for their number. (end): the best of the sizes with "
        "that budget is the smallest or the largest of them, so one beyond it may be better."
    ]
    if of.base:
        said += _about_multipliers(of)
    else:
        said.append(f"No family is called {DENSE}: nothing is compared (--baseline=FAMILY).")
    return [*said, *_about_fits(of), *_left_out(of), _provenance(of)]


def _about_seeds(of: Comparison) -> str:
    if any(len(cell.runs) > 1 for family in of.study.families for cell in family.cells):
        return "± is their standard deviation over seeds."
    return (
        "There is one run of each size and budget: the spread over seeds is not known, and "
        "intervals take the noise from how far the runs lie off the fitted curve."
    )


def _about_fits(of: Comparison) -> list[str]:
    """Returns which families have no fit, and which fits hang on single sizes."""
    said = []
    for family in of.study.families:
        if family.doubt:
            said.append(f"{family.name} has no fit: {family.doubt}.")
        leverages = family.fit.leverage_P if family.fit else ()
        alone = [
            f"{cell.size} at {power(cell.budget)} ({leverage:.2f})"
            for cell, leverage in zip(family.cells, leverages, strict=False)
            if leverage > _ALONE
        ]
        if alone:
            said.append(
                f"The fit of {family.name} follows {', '.join(alone)} wherever it goes (leverage; "
                "1 is entirely): an error there moves the fit and does not show."
            )
    return said


def _about_multipliers(of: Comparison) -> list[str]:
    base = of.base
    budgets = next(family for family in of.study.families if family.name == base).budgets
    count = sum(1 for _, _, found in of.bests if found.judged and not math.isnan(found.judged.p))
    return [
        f"FLOPs {base} needs, ×: the training FLOPs with which {base} reaches this row's loss, "
        f"over those of the row. Above 1, {base} needs more. By the fits both are at their best "
        f"sizes. By losses alone: the row's lowest loss, between the lowest ones of {base} at "
        "two budgets; that favours a family whose runs scatter more. †: extrapolated, for "
        f"{base} was trained with {power(budgets[0])} to {power(budgets[-1])} FLOPs only, and its "
        "curve is continued beyond that. < or >: it would be continued too far, this is the "
        f"bound. '{base} does not reach it': by its fit no number of tokens at any trained size "
        f"gives that loss. Better and worse are said where p is below 0.05, by Holm's procedure "
        f"over the {count} comparisons shown.",
        f"Hours, ×: the same by the fits, or else by losses alone, in the time that training "
        f"steps took, as measured{_threads(of)}, without compilation and validation, at the best "
        "size of each at the same budget. The interval is that of the FLOPs alone.",
    ]


def fit_notes(of: Comparison) -> list[str]:
    """Returns what belongs under the fits."""
    said = [
        "L(N, D) = E + A / N^alpha + B / D^beta, nats a token on validation data. N: parameters "
        "outside of embedding and head. D: tokens seen in training, those of later epochs too. "
        "Least squares over all runs of a family by variable projection; parabolas are biased (Xu "
        "et al. 2026, arXiv:2603.22339). Intervals are of fits to resampled residuals. The noise "
        "of a run is its standard deviation about the fit, with as many degrees of freedom as "
        "there are cells less 5."
    ]
    return said


def cell_notes(of: Comparison) -> list[str]:
    """Returns what belongs under the sizes: how far the budgets were met."""
    off, cell, name = max(
        (
            (cell.C / cell.budget - 1, cell, family.name)
            for family in of.study.families
            for cell in family.cells
        ),
        key=lambda found: abs(found[0]),
    )
    return [
        "Best is the lowest mean loss on validation data of a family at a budget. "
        f"Executed training FLOPs are off their budget by {off:+.1%} at most ({name}, {cell.size} "
        f"at {power(cell.budget)})."
    ]


def _left_out(of: Comparison) -> list[str]:
    said = []
    for count, what in (
        (of.study.passed_over, "of a learning-rate grid (lr= in the folder's name)"),
        (of.study.unfinished, "not finished"),
    ):
        if count:
            runs = "1 run is" if count == 1 else f"{count} runs are"
            said.append(f"{runs} left out: {what}.")
    return said


def _threads(of: Comparison) -> str:
    cores = sorted({run.result["device"]["cores"] for run in of.study.runs})
    return f" ({' or '.join(map(str, cores))} threads a run)"


def _provenance(of: Comparison) -> str:
    """Says what the runs were made of: data, length, hardware, hours, code."""
    runs = of.study.runs
    lengths = ", ".join(str(n) for n in sorted({run.seq_len for run in runs}))
    devices = [run.result["device"] for run in runs]
    machines = ", ".join(sorted({f"{d['device']}, jax {d['jax']}" for d in devices}))
    commits = ", ".join(sorted({str(run.result["commit"])[:12] for run in runs}))
    hours = sum(run.result["wall_s"] for run in runs) / 3600
    notices = "".join(f" {notice}." for notice in sorted({run.notice for run in runs} - {""}))
    return (
        f"Data {runs[0].dataset}, L = {lengths}; {len(runs)} runs, {hours:.1f} hours in all; "
        f"{machines}; commit {commits}.{notices}"
    )


# ---- CSV


def csv(of: Comparison) -> str:
    """Writes a line for each family and budget, floats as repr does, empty where not known."""
    rows = []
    for family, budget, found in of.bests:
        cell = found.cell
        loss, sd = mean_sd(cell.losses("val"))
        row = {"family": family.name, "budget": budget, "best_size": cell.size, "N": cell.N}
        row |= {"D": cell.D, "C": cell.C, "valid_loss": loss, "valid_loss_sd": sd}
        row |= {"test_loss": mean_sd(cell.losses("test"))[0], "runs": len(cell.runs)}
        row |= _columns("fit_loss", found.loss) | {"fit_N": found.N, "fit_N_at_end": found.at_end}
        for key in ("flops", "hours", "measured"):
            estimate: Estimate | None = getattr(found, key)
            row |= _columns(f"{key}_multiplier", estimate)
            row[f"{key}_multiplier_mark"] = estimate.mark if estimate else ""
        row["p_by_holm"] = found.judged.p if found.judged else math.nan
        rows.append(row | {"verdict": verdict(found)} | _constants(family))
    return tables.csv_text(rows)


def csv_runs(of: Comparison) -> str:
    """Writes a line a run."""
    return tables.csv_text(run_rows(of))


def run_rows(of: Comparison) -> list[dict[str, Any]]:
    """Returns a dict a run: family, budget, size, seed, N, D, C, losses, seconds, data, folder."""
    return [
        {
            "family": family.name,
            "budget": cell.budget,
            "size": cell.size,
            "seed": run.seed,
            "N": cell.N,
            "D": run.result["tokens"],
            "C": run.costs.train_total,
            "valid_loss": run.result["val"]["loss"],
            "test_loss": run.result["test"]["loss"],
            "train_s": run.result["train_s"],
            "lr": run.config["train"]["lr"],
            "data": run.dataset,
            "run": str(run.path),
        }
        for family in of.study.families
        for cell in family.cells
        for run in cell.runs
    ]


def _columns(key: str, of: Estimate | None) -> dict[str, float]:
    found = of or Estimate(math.nan, math.nan, math.nan)
    return {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}


def _constants(family: Family) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in CONSTANTS:
        found = None
        if family.fit:
            draws = family.fit.draws.constants[name]
            found = Estimate(float(family.fit.law.constants[name][0]), *interval(draws))
        row |= _columns(name, found)
    return row | {"no_fit_because": family.doubt}


# ---- words


def loss_text(cell: Cell, split: str) -> str:
    """Writes 4.123 ± 0.004: mean and standard deviation over seeds."""
    mean, sd = mean_sd(cell.losses(split))
    return tables.mean_text(tables.Cell(mean, sd, math.nan, len(cell.runs)), 3)


def estimate_text(of: Estimate | None, digits: int) -> str:
    """Writes 4.12 [4.10, 4.15]."""
    if of is None:
        return ""
    return f"{of.value:.{digits}f} [{of.low:.{digits}f}, {of.high:.{digits}f}]"


def times_text(of: Estimate | None, base: str) -> str:
    """Writes a multiplier: 1.31 [1.10, 1.52], > 2.00, or that the base does not reach it."""
    if of is None:
        return ""
    value = f"{of.value:.2f}{of.mark}"
    if of.mark in ("<", ">"):
        value = f"{of.mark} {of.value:.2f}"
    elif math.isinf(of.value):
        value = f"{base} does not reach it{of.mark}"
    if math.isnan(of.low) or math.isinf(of.low):
        return value
    high = "∞)" if math.isinf(of.high) else f"{of.high:.2f}]"
    return f"{value} [{of.low:.2f}, {high}"


def _size_text(family: Family, cell: Cell) -> str:
    """Writes the best size that was trained, and whether it is the first or last of its budget."""
    sizes = family.at(cell.budget)
    return cell.size + (" (end)" if cell in (sizes[0], sizes[-1]) else "")


def _beside_fit(family: Family, cell: Cell) -> str:
    """Writes how far the loss of a cell lies above the fit of its family, or below it."""
    if family.fit is None:
        return ""
    fitted = family.fit.law.loss(np.array([cell.N]), np.array([cell.D]))[0, 0]
    return f"{cell.loss - fitted:+.3f}"


def _best_size(found: Best) -> str:
    if math.isnan(found.N):
        return "no fit"
    return f"{found.N:,.0f}" + (" (end)" if found.at_end else "")


def _constant(name: str, value: float, low: float, high: float) -> str:
    """Writes a constant of a fit with its interval, which may reach a bound of the search."""
    ends = [f"{low:.3g}", f"{high:.3g}"]
    if name in ("alpha", "beta"):
        if is_at_bound(np.array(low), LEAST):
            ends[0] = f"{LEAST:g} or less"
        if is_at_bound(np.array(high), MOST):
            ends[1] = f"{MOST:g} or more"
    return f"{value:.3g} [{', '.join(ends)}]"
