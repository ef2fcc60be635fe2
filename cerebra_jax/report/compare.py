"""Compares groups seed by seed: who is compared with whom, and what may be said of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cerebra_jax.errors import UserError
from cerebra_jax.report.runs import Groups, Run, first
from cerebra_jax.report.statistics import Paired, holm, paired

ALPHA = 0.05


class Comparison(NamedTuple):
    """The headline on test data of a group minus that of another, over the seeds that both have."""

    name: str
    base: str
    found: Paired
    p: float  # Holm's, over all comparisons of the report
    verdict: str


def baseline(groups: Groups, word: str) -> str:
    """Returns the group that `word` names: all of its name, or a part that no other name has."""
    hits = [word] if word in groups else [name for name in groups if word and word in name]
    if len(hits) != 1:
        count = f"{len(hits)} groups" if hits else "no group"
        raise UserError(f"--baseline={word} names {count}", f"choose one of: {'; '.join(groups)}")
    return hits[0]


def comparisons(groups: Groups, base: str = "") -> list[Comparison]:
    """Compares every group with `base`.

    Without one, it compares them with each dense Transformer and with their own twins.
    """
    if base:
        pairs = [(name, base) for name in groups if name != base]
    else:
        pairs = list(_pairs(groups))
    compared = []
    for name, other in pairs:
        difference = paired(_headline_by_seed(groups[name]), _headline_by_seed(groups[other]))
        if difference:
            compared.append((name, other, difference))
    ps = holm([difference.p for _, _, difference in compared])
    lower = first(groups).headline.lower
    return [
        Comparison(name, other, difference, p, verdict(difference, p, lower, len(compared)))
        for (name, other, difference), p in zip(compared, ps, strict=True)
    ]


def verdict(found: Paired, p: float, lower: bool, n: int) -> str:
    """Says better or worse only where the interval and Holm's procedure both show a difference.

    p: Holm's, among n comparisons. lower: whether less of the figure is better.
    """
    if abs(found.mean) <= found.half or found.mean == 0.0:
        return "the interval contains 0: no difference shown"
    if p >= ALPHA:
        return (
            f"no difference shown: the interval is clear of 0, but among {n} comparisons "
            f"p = {p:.2g} by Holm"
        )
    is_lower = found.mean < 0
    direction = "lower" if is_lower else "higher"
    judgement = "better" if is_lower == lower else "worse"
    by_holm = " by Holm" if n > 1 else ""
    return f"{direction}, which is {judgement} (p = {p:.2g}{by_holm})"


def lines(groups: Groups, base: str = "") -> list[str]:
    """Returns the comparisons as sentences."""
    metric = first(groups).headline
    digits = metric.digits
    sentences = []
    for name, other, found, _, said in comparisons(groups, base):
        low = found.mean - found.half
        high = found.mean + found.half
        sentences.append(
            f"{name} − {other}, test {metric.name}, paired over {found.n} seeds: "
            f"{found.mean:+,.{digits}f}, "
            f"95 % interval [{low:+,.{digits}f}, {high:+,.{digits}f}]: {said}."
        )
    return sentences


def _pairs(groups: Groups) -> Iterator[tuple[str, str]]:
    """Yields each routed group with every dense Transformer, and with the twins of its own."""
    dense = [name for name, runs in groups.items() if _is_dense(runs[0])]
    for name, runs in groups.items():
        if name in dense:
            continue
        for other, others in groups.items():
            if other in dense or _is_twin(others[0], runs[0]):
                yield name, other


def _is_dense(run: Run) -> bool:
    return run.net["name"] == "transformer" and run.identity["twin"] in ("", "dense")


def _is_twin(run: Run, of: Run) -> bool:
    return run.identity["twin"] != "" and run.identity | {"twin": ""} == of.identity


def _headline_by_seed(runs: list[Run]) -> dict[int, float]:
    values = {run.seed: run.figure("test", run.headline) for run in runs}
    return {seed: value for seed, value in values.items() if value is not None}
