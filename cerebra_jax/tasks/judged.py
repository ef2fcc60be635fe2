"""How good a classifier is, class by class: what it takes for what, and how sure it may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

BINS = 10  # of probabilities, for the calibration error
SHOWN = 12  # classes in a table of confusions
LISTED = 40  # classes in a table of their own figures


def judge(logits_NxC: np.ndarray, label_N: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Returns figures of each class and of all, for JSON.

    confusion[i][j]: examples of class i that were taken for class j. auc: the probability that an
    example of the class has a larger probability of it than one of another class; None where there
    is none of either. calibration_error: by how much the mean probability of what was said is off
    its accuracy, weighed over 10 bins (Guo et al. 2017, arXiv:1706.04599).
    """
    power_NxC = np.exp(logits_NxC.astype(np.float64) - logits_NxC.max(1, keepdims=True))
    probability_NxC = power_NxC / power_NxC.sum(1, keepdims=True)
    said_N = probability_NxC.argmax(1)
    C = len(names)
    confusion_CxC = np.bincount(label_N * C + said_N, minlength=C * C).reshape(C, C)
    is_C, said_C = confusion_CxC.sum(1), confusion_CxC.sum(0)
    right_C = np.diag(confusion_CxC)
    classes = {}
    for i, name in enumerate(names):
        classes[name] = {
            "examples": int(is_C[i]),
            "precision": _ratio(right_C[i], said_C[i]),
            "recall": _ratio(right_C[i], is_C[i]),
            "auc": auc(probability_NxC[:, i], label_N == i),
        }
    return {
        "classes": classes,
        "confusion": confusion_CxC.tolist(),
        "calibration_error": _calibration(probability_NxC.max(1), said_N == label_N),
    }


def auc(score_N: np.ndarray, positive_N: np.ndarray) -> float | None:
    """Returns the area under the ROC curve, ties by half; None where all are of one kind."""
    from scipy.stats import rankdata

    n = int(positive_N.sum())
    rest = len(positive_N) - n
    if not n or not rest:
        return None
    ranks = rankdata(score_N)[positive_N].sum()
    return float((ranks - n * (n + 1) / 2) / (n * rest))


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Yields the figures as tables for a person."""
    classes = found["classes"]
    width = max(map(len, [*classes, "class"]))
    yield f"{'class':<{width}}  examples  precision  recall     AUC"
    for name, row in list(classes.items())[:LISTED]:
        figures = [_shown(row[key]) for key in ("precision", "recall", "auc")]
        yield f"{name:<{width}}  {row['examples']:>8,}  {figures[0]:>9}  {figures[1]:>6}  " + (
            f"{figures[2]:>6}"
        )
    if len(classes) > LISTED:
        yield f"and {len(classes) - LISTED} classes more"
    if len(classes) <= SHOWN:
        cells = [max(len(name), 5) for name in classes]
        head = "  ".join(f"{name:>{cell}}" for name, cell in zip(classes, cells, strict=True))
        yield f"{'taken for':<{width}}  {head}"
        for name, row in zip(classes, found["confusion"], strict=True):
            counts = "  ".join(f"{n:>{cell},}" for n, cell in zip(row, cells, strict=True))
            yield f"{name:<{width}}  {counts}"
    yield f"probabilities are off by {found['calibration_error']:.3f} in the mean"


def _ratio(a: int, b: int) -> float | None:
    return float(a / b) if b else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _calibration(sure_N: np.ndarray, right_N: np.ndarray) -> float:
    bin_N = np.minimum((sure_N * BINS).astype(int), BINS - 1)
    gap = 0.0
    for i in range(BINS):
        own = bin_N == i
        if own.any():
            gap += own.mean() * abs(sure_N[own].mean() - right_N[own].mean())
    return float(gap)
