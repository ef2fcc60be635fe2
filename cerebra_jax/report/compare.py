"""Paired comparisons of groups, seed by seed: who is compared with whom, and what may be said of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cerebra_jax.errors import UserError
from cerebra_jax.report.runs import Groups, Run
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
    """The group that `word` names: all of its name, or a part that no other has."""
    hits = [word] if word in groups else [name for name in groups if word and word in name]
    if len(hits) != 1:
        what = "no group" if not hits else f"{len(hits)} groups"
        raise UserError(f"--baseline={word} names {what}", f"choose one of: {'; '.join(groups)}")
    return hits[0]


def comparisons(groups: Groups, base: str = "") -> list[Comparison]:
    """Every group with `base`, a group's name; without one with each dense Transformer, and with its own twins."""
    pairs = [(name, base) for name in groups if name != base] if base else list(_pairs(groups))
    found = [
        (name, other, d)
        for name, other in pairs
        if (d := paired(_values(groups[name]), _values(groups[other])))
    ]
    ps = holm([d.p for _, _, d in found])
    lower = next(iter(groups.values()))[0].metrics[0]["lower"]
    return [
        Comparison(*f, p, verdict(f[2], p, lower, len(found)))
        for f, p in zip(found, ps, strict=True)
    ]


def verdict(d: Paired, p: float, lower: bool, n: int) -> str:
    """Better or worse only where neither the interval nor Holm's procedure leaves room for no difference."""
    if abs(d.mean) <= d.half or d.mean == 0.0:
        return "the interval contains 0: no difference shown"
    if p >= ALPHA:
        return f"no difference shown: the interval is clear of 0, but among {n} comparisons p = {p:.2g} by Holm"
    direction, good = ("lower", lower) if d.mean < 0 else ("higher", not lower)
    return f"{direction}, which is {'better' if good else 'worse'} (p = {p:.2g}{' by Holm' if n > 1 else ''})"


def lines(groups: Groups, base: str = "") -> list[str]:
    """The comparisons for a person."""
    m = next(iter(groups.values()))[0].metrics[0]
    digits, out = m["digits"], []
    for name, other, d, _, said in comparisons(groups, base):
        low, high = d.mean - d.half, d.mean + d.half
        out.append(
            f"{name} − {other}, test {m['name']}, paired over {d.n} seeds: {d.mean:+,.{digits}f}, "
            f"95 % interval [{low:+,.{digits}f}, {high:+,.{digits}f}]: {said}."
        )
    return out


def _pairs(groups: Groups) -> Iterator[tuple[str, str]]:
    dense = [name for name, runs in groups.items() if _dense(runs[0])]
    for name, runs in groups.items():
        if name not in dense:
            of = runs[0].identity
            for other, others in groups.items():
                its_twin = others[0].identity["twin"] and others[0].identity | {"twin": ""} == of
                if other in dense or its_twin:
                    yield name, other


def _dense(run: Run) -> bool:
    return run.net["name"] == "transformer" and run.identity["twin"] in ("", "dense")


def _values(runs: list[Run]) -> dict[int, float]:
    key = runs[0].metrics[0]["key"]
    return {run.seed: value for run in runs if (value := run.result["test"][key]) is not None}
