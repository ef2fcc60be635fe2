"""Tells what the routing of a language model goes with, as figures and as tables for a person.

There are correlations token by token, shares by class of token, and whether routed tokens carry
larger gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from cerebra_jax.analysis.correlations import (
    UNDEFINED,
    Interval,
    heavy_minus_light,
    relative_to_position,
    spearman,
    unit_ranks,
)
from cerebra_jax.report.statistics import Paired, holm

DECISIONS = ("kept", "score")
CLASSES = {"characters": "its first character", "words": "the word that it is part of"}
DRAWS = 1000  # of a bootstrap
# Windows form at most so many groups for intervals: neighbours depend on one another a little too.
GROUPS = 64


class ClassShare(TypedDict):
    """A class of tokens: its fraction of all tokens, and how much of it each routed layer kept."""

    share: float
    kept: list[Interval]


class GradientGap(TypedDict):
    """Gradient norms of a layer's kept tokens minus those of the others."""

    windows: int  # that have both kinds
    difference: Interval  # in units of the window's mean
    same_position: Interval  # with each position's own mean taken out
    p: float | None  # by Holm over the layers; None where there is nothing to compare


def correlations(
    decided: Mapping[str, np.ndarray], features: Mapping[str, np.ndarray], window_N: np.ndarray
) -> dict[str, dict[str, list[Interval]]]:
    """Returns {decision: {feature: [ρ of each routed layer]}} for N tokens.

    decided: (R, N) each. features: (N,) each, or (R, N) where they differ between the layers.
    window_N: of which window each token is, ascending.
    """
    group_N = _groups(window_N)
    ranks_of_decisions = {
        decision: [unit_ranks(x_N, group_N) for x_N in x_RxN] for decision, x_RxN in decided.items()
    }
    found: dict[str, dict[str, list[Interval]]] = {decision: {} for decision in decided}
    for feature, x in features.items():
        ranks_of_feature = [unit_ranks(x_N, group_N) for x_N in np.atleast_2d(x)]
        for decision, ranks_of_layers in ranks_of_decisions.items():
            others = ranks_of_feature
            if len(others) == 1:  # one feature for all layers
                others = others * len(ranks_of_layers)
            pairs = zip(ranks_of_layers, others, strict=True)
            found[decision][feature] = [spearman(a, b) for a, b in pairs]
    return found


def by_class(
    kept_RxN: np.ndarray, class_N: np.ndarray, names: Sequence[str], window_N: np.ndarray
) -> dict[str, ClassShare]:
    """Returns each class's fraction of the N tokens, and how many of its tokens each layer kept.

    Intervals are percentiles of DRAWS bootstrap draws, each of as many windows with replacement
    (Efron 1979, Ann. Stat. 7:1).
    """
    group_N = _groups(window_N)
    W = int(group_N.max()) + 1
    draws_SxW = np.random.RandomState(0).multinomial(W, np.full(W, 1 / W), size=DRAWS)
    found: dict[str, ClassShare] = {}
    for name in names:
        in_class_N = class_N == name
        tokens_W = np.bincount(group_N[in_class_N], minlength=W)
        layers = []
        for kept_N in kept_RxN:
            kept_W = np.bincount(group_N[in_class_N], kept_N[in_class_N], minlength=W)
            layers.append(_bootstrap_share(kept_W, tokens_W, draws_SxW))
        found[name] = {"share": float(in_class_N.mean()), "kept": layers}
    return found


def _bootstrap_share(kept_W: np.ndarray, tokens_W: np.ndarray, draws_SxW: np.ndarray) -> Interval:
    """Returns kept tokens over all tokens, with an interval over draws of the windows."""
    if not tokens_W.any():
        return UNDEFINED
    share = float(kept_W.sum() / tokens_W.sum())
    if len(tokens_W) == 1:
        return Interval(share, math.nan, math.nan)
    drawn_S = draws_SxW @ tokens_W
    shares_S = (draws_SxW @ kept_W)[drawn_S > 0] / drawn_S[drawn_S > 0]
    low, high = np.quantile(shares_S, [0.025, 0.975])
    return Interval(share, float(low), float(high))


def _groups(window_N: np.ndarray) -> np.ndarray:
    """Returns the group of each token's window: 0, 1, …"""
    windows, index_N = np.unique(window_N, return_inverse=True)
    return index_N * min(GROUPS, len(windows)) // len(windows)


def gradients(
    norm_RxWxL: np.ndarray, kept_RxWxL: np.ndarray, real_WxL: np.ndarray
) -> list[GradientGap]:
    """Compares the gradient norms of kept tokens with those of the others, in each routed layer."""
    found: list[GradientGap] = []
    for norm_WxL, kept_WxL in zip(norm_RxWxL, kept_RxWxL, strict=True):
        plain = heavy_minus_light(norm_WxL, kept_WxL, real_WxL)
        at_position_WxL = relative_to_position(norm_WxL, real_WxL)
        level = heavy_minus_light(at_position_WxL, kept_WxL, real_WxL)
        found.append(
            {
                "windows": plain.n if plain else 0,
                "difference": _interval(plain),
                "p": plain.p if plain else None,
                "same_position": _interval(level),
            }
        )

    # p over all layers that have one
    compared = [gap for gap in found if gap["p"] is not None]
    for gap, p in zip(compared, holm([gap["p"] for gap in compared]), strict=True):
        gap["p"] = p
    return found


def _interval(found: Paired | None) -> Interval:
    if found is None:
        return UNDEFINED
    return Interval(found.mean, found.mean - found.half, found.mean + found.half)


def verdict(found: Mapping[str, Any]) -> str:
    """Says whether tokens on the heavy path carry larger gradients."""
    layers: dict[str, list[str]] = {
        "larger": [],
        "smaller": [],
        "not told apart": [],
        "nothing to compare": [],
    }
    for i, gap in zip(found["layers"], found["gradients"], strict=True):
        layers[_gradient_word(gap)].append(str(i))
    told = "; ".join(f"{word} in layer {', '.join(of)}" for word, of in layers.items() if of)
    return (
        f"gradients of tokens on the {found['paths'][0]} path against the others: {told} "
        "(paired by window, Holm)"
    )


def _gradient_word(gap: GradientGap) -> str:
    if gap["p"] is None:
        return "nothing to compare"
    if gap["p"] >= 0.05:
        return "not told apart"
    return "larger" if gap["difference"][0] > 0 else "smaller"


def tables(found: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """Yields (title, rows of text with the headings first), a table each."""
    layers = [f"layer {i}" for i in found["layers"]]
    heavy = found["paths"][0]

    # correlations of the decisions and of the scores
    titles = {
        "kept": f"Spearman's ρ of the decision ({heavy} path or not) with",
        "score": "Spearman's ρ of the router's score with",
    }
    for decision in DECISIONS:
        of_features = found["correlations"][decision].items()
        rows = [[feature, *map(_signed_text, of_layers)] for feature, of_layers in of_features]
        yield titles[decision], [["", *layers], *rows]

    # shares by class
    for kind, title in CLASSES.items():
        rows = [
            [name, f"{row['share']:.3f}", *map(_share_text, row["kept"])]
            for name, row in found[kind].items()
        ]
        yield (
            f"share of the tokens on the {heavy} path, by {title}",
            [["", "of all", *layers], *rows],
        )

    # gradients
    gaps = found["gradients"]
    yield (
        f"‖∂loss/∂input‖ of tokens on the {heavy} path − that of the others",
        [
            ["", *layers],
            ["share kept", *(f"{share:.3f}" for share in found["kept"])],
            ["relative to the window's mean", *(_signed_text(gap["difference"]) for gap in gaps)],
            ["at equal position", *(_signed_text(gap["same_position"]) for gap in gaps)],
            ["p, Holm over the layers", *(_p_text(gap["p"]) for gap in gaps)],
            ["windows with both", *(str(gap["windows"]) for gap in gaps)],
        ],
    )


def notes(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a reader must know, a sentence each."""
    yield verdict(found)
    yield (
        f"{found['run']}, {found['steps']:,} steps; {found['split']} split of {found['dataset']}: "
        f"{found['tokens']:,} tokens in {found['windows']} windows of {found['L']:,}"
    )
    yield (
        "95 % intervals over windows (jackknife on Fisher's z; Student's t), one at a time: of "
        "twenty that are none, one leaves out 0"
    )
    yield (
        f"shares by class: 95 % by bootstrap over windows, {DRAWS:,} draws; a token's word is the "
        "one that its first letter is part of, closed-class by a list of English words without "
        "regard to context: no tagger"
    )
    yield from found["notes"]


def _p_text(p: float | None) -> str:
    if p is None:
        return "–"
    return f"{p:.2g}" if p > 1e-12 else "< 1e-12"


def _share_text(found: Sequence[float | None]) -> str:
    return _interval_text(found, ".3f")


def _signed_text(found: Sequence[float | None]) -> str:
    return _interval_text(found, "+.3f")


def _interval_text(found: Sequence[float | None], spec: str) -> str:
    """Writes value [low, high]; None and NaN mean that a figure is not defined."""
    value, low, high = (math.nan if figure is None else figure for figure in found)
    if math.isnan(value):
        return "–"
    if math.isnan(low):
        return f"{value:{spec}}"
    return f"{value:{spec}} [{low:{spec}}, {high:{spec}}]"
