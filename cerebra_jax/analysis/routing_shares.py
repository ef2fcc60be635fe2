"""What the routing of a language model goes with: correlations token by token, and whether routed tokens carry larger
gradients; as figures, and as tables for a person."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cerebra_jax.analysis import correlations as ranks
from cerebra_jax.analysis.correlations import Interval
from cerebra_jax.report import statistics as stats

DECISIONS = ("kept", "score")
CLASSES = {"characters": "its first character", "words": "the word that it is part of"}
DRAWS = 1000  # of a bootstrap
GROUPS = 64  # that windows form for intervals, where there are more: neighbours hang together a little too


def correlations(
    decided: Mapping[str, np.ndarray], features: Mapping[str, np.ndarray], window_N: np.ndarray
) -> dict[str, dict[str, list[Interval]]]:
    """{decision: {feature: [ρ of each routed layer]}}; decisions are (R, N), a feature is (N,), or (R, N) where it
    differs between the layers. N tokens, window_N says of which window each is, ascending."""
    group_N = _groups(window_N)
    found: dict[str, dict[str, list[Interval]]] = {name: {} for name in decided}
    layers = {
        name: [ranks.unit_ranks(x_N, group_N) for x_N in x_RxN] for name, x_RxN in decided.items()
    }
    for feature, x in features.items():
        own = [ranks.unit_ranks(x_N, group_N) for x_N in np.atleast_2d(x)]
        for name, of_layers in layers.items():
            both = zip(of_layers, own * len(of_layers) if len(own) == 1 else own, strict=True)
            found[name][feature] = [ranks.spearman(a, b) for a, b in both]
    return found


def by_class(
    kept_RxN: np.ndarray, class_N: np.ndarray, names: Sequence[str], window_N: np.ndarray
) -> dict[str, Any]:
    """{class: its share of the N tokens, and of each routed layer the share of its tokens on the heavy path}. Intervals
    by bootstrap over windows, percentiles of DRAWS of as many windows with replacement (Efron 1979, Ann. Stat. 7:1)."""
    group_N, found = _groups(window_N), {}
    W = int(group_N.max()) + 1
    draws_SxW = np.random.RandomState(0).multinomial(W, np.full(W, 1 / W), size=DRAWS)
    for name in names:
        mine_N = class_N == name
        tokens_W = np.bincount(group_N[mine_N], minlength=W)
        drawn_S = draws_SxW @ tokens_W
        layers = []
        for kept_N in kept_RxN:
            kept_W = np.bincount(group_N[mine_N], kept_N[mine_N], minlength=W)
            means_S = (draws_SxW @ kept_W)[drawn_S > 0] / drawn_S[drawn_S > 0]
            bounds = (
                np.quantile(means_S, [0.025, 0.975])
                if W > 1 and mine_N.any()
                else (math.nan, math.nan)
            )
            layers.append(
                Interval(float(kept_W.sum() / tokens_W.sum()), *map(float, bounds))
                if mine_N.any()
                else ranks.NONE
            )
        found[name] = {"share": float(mine_N.mean()), "kept": layers}
    return found


def _groups(window_N: np.ndarray) -> np.ndarray:
    """The group of each token's window, 0, 1, …"""
    windows, group_N = np.unique(window_N, return_inverse=True)
    return group_N * min(GROUPS, len(windows)) // len(windows)


def gradients(
    norm_RxWxL: np.ndarray, kept_RxWxL: np.ndarray, real_WxL: np.ndarray
) -> list[dict[str, Any]]:
    """Of each routed layer: gradient norms of kept tokens − those of the others, in units of the window's mean, paired
    window by window; the same with each position's own mean taken out; p by Holm over the layers."""
    found = []
    for norm_WxL, kept_WxL in zip(norm_RxWxL, kept_RxWxL, strict=True):
        plain = ranks.apart(norm_WxL, kept_WxL, real_WxL)
        level = ranks.apart(ranks.by_position(norm_WxL, real_WxL), kept_WxL, real_WxL)
        found.append({"windows": plain.n if plain else 0, "difference": _interval(plain), "p": plain and plain.p,
                      "same_position": _interval(level)})  # fmt: skip
    told = [row for row in found if row["p"] is not None]
    for row, p in zip(told, stats.holm([row["p"] for row in told]), strict=True):
        row["p"] = p
    return found


def _interval(found: stats.Paired | None) -> Interval:
    return (
        Interval(found.mean, found.mean - found.half, found.mean + found.half)
        if found
        else ranks.NONE
    )


def verdict(found: Mapping[str, Any]) -> str:
    """Whether tokens on the heavy path carry larger gradients, in words."""
    larger, smaller, neither, none = [], [], [], []
    for i, row in zip(found["layers"], found["gradients"], strict=True):
        value, p = row["difference"][0], row["p"]
        kind = none if p is None else neither if p >= 0.05 else larger if value > 0 else smaller
        kind.append(str(i))
    words = (
        (larger, "larger"),
        (smaller, "smaller"),
        (neither, "not told apart"),
        (none, "nothing to compare"),
    )
    told = "; ".join(f"{word} in layer {', '.join(kind)}" for kind, word in words if kind)
    return f"gradients of tokens on the {found['paths'][0]} path against the others: {told} (paired by window, Holm)"


def tables(found: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """(title, rows of text with the headings first) for a person."""
    layers = [f"layer {i}" for i in found["layers"]]
    about = {
        "kept": f"Spearman's ρ of the decision ({found['paths'][0]} path or not) with",
        "score": "Spearman's ρ of the router's score with",
    }
    for name in DECISIONS:
        rows = [
            [feature, *map(_text, of_layers)]
            for feature, of_layers in found["correlations"][name].items()
        ]
        yield about[name], [["", *layers], *rows]
    for kind, title in CLASSES.items():
        rows = [
            [name, f"{row['share']:.3f}", *map(_share, row["kept"])]
            for name, row in found[kind].items()
        ]
        yield (
            f"share of the tokens on the {found['paths'][0]} path, by {title}",
            [["", "of all", *layers], *rows],
        )
    share = ["share kept", *(f"{x:.3f}" for x in found["kept"])]
    plain = [
        "relative to the window's mean",
        *(_text(row["difference"]) for row in found["gradients"]),
    ]
    level = ["at equal position", *(_text(row["same_position"]) for row in found["gradients"])]
    ps = ["p, Holm over the layers", *(_p(row["p"]) for row in found["gradients"])]
    pairs = ["windows with both", *(str(row["windows"]) for row in found["gradients"])]
    title = f"‖∂loss/∂input‖ of tokens on the {found['paths'][0]} path − that of the others"
    yield title, [["", *layers], share, plain, level, ps, pairs]


def notes(found: Mapping[str, Any]) -> Iterator[str]:
    """What a reader must know."""
    yield verdict(found)
    yield (
        f"{found['run']}, {found['steps']:,} steps; {found['split']} split of {found['dataset']}: {found['tokens']:,} "
        f"tokens in {found['windows']} windows of {found['L']:,}"
    )
    yield (
        "95 % intervals over windows (jackknife on Fisher's z; Student's t), one at a time: of twenty that are none, "
        "one leaves out 0"
    )
    yield (
        f"shares by class: 95 % by bootstrap over windows, {DRAWS:,} draws; a token's word is the one that its first "
        "letter is part of, closed-class by a list of English words without regard to context: no tagger"
    )
    yield from found["notes"]


def _p(p: float | None) -> str:
    return "–" if p is None else f"{p:.2g}" if p > 1e-12 else "< 1e-12"


def _share(found: Sequence[float | None]) -> str:
    value, low, high = (math.nan if x is None else x for x in found)
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if math.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _text(found: Sequence[float | None]) -> str:
    value, low, high = (math.nan if x is None else x for x in found)
    if math.isnan(value):
        return "–"
    return f"{value:+.3f}" if math.isnan(low) else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
