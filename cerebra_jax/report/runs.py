"""Finished runs, read from their folders and grouped by what was trained; the seeds of a group are repeats."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cerebra_jax.errors import UserError

# two-sided 95 % quantiles of Student's t, by degrees of freedom 1 … 10
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

_TEXT = [
    {"key": "ppl_word", "name": "perplexity per word", "digits": 1, "lower": True, "table": True},
    {"key": "bits_per_byte", "name": "bits per byte", "digits": 3, "lower": True, "table": True},
]


@dataclass(frozen=True)
class Run:
    """One WORKDIR: its result.json, its config.json, and the lines of metrics.jsonl (read when asked for)."""

    path: Path
    result: dict[str, Any]
    config: dict[str, Any]

    @property
    def seed(self) -> int:
        return self.result["seed"]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The figures of the task, the headline first; runs of before the key existed are of texts."""
        return self.result.get("metrics", _TEXT)

    @property
    def group(self) -> str:
        """Model and whatever of its shape tells it from others: runs with equal names differ in the seed only."""
        c = self.config
        net = self.result.get("net", c["net"])  # a twin's is not that of the configuration
        route = net["route"]
        L = self.result.get("seq_len", c["task"]["seq_len"])
        name = f"{net['name']} {net['depth']}x{net['width']}, L={L}"
        if net["name"] == "transformer":
            name += f", {net.get('norm', 'pre')}-LN"  # runs of before the key existed are pre-LN
        if net["name"] in ("chiar", "mod"):
            name += f", {route['mode']} {route['rate']:g}, kv={route['kv']}"
        if net["name"] == "window":
            name += f", window {net['window']}"
        if net["name"] == "cerebra":
            r, s = net["compress"]["r"], net["compress"]["s"]
            name += f", {route['mode']} {route['rate']:g}, {route['part']}, kv={route['kv']}, r={r:g} s={s:g}"
        if budget := c["objective"].get("budget"):
            name += f", budget {budget:g}"
        if (unit := c["objective"].get("unit", "flops")) != "flops":
            name += f", costs in {unit}"
        if twin := c.get("twin"):
            name += f" ({twin} twin of {c['net']['name']})"
        return name

    def lines(self, split: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one split."""
        with open(self.path / "metrics.jsonl", encoding="utf-8") as f:
            return [line for line in map(json.loads, f) if line["split"] == split]


def load(paths: list[Path]) -> dict[str, list[Run]]:
    """{group: runs by seed}; UserError for a folder without a finished run, or two runs of one group and seed."""
    groups: dict[str, list[Run]] = {}
    for path in paths:
        try:
            result = json.loads((path / "result.json").read_text(encoding="utf-8"))
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError as e:
            raise UserError(f"{path} holds no finished run ({e.filename} is missing)", "finish it first") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as e:
            raise UserError(f"{path} is damaged ({e})", "leave it out, or run it again with --fresh") from None
        run = Run(path, result, config)
        same = groups.setdefault(run.group, [])
        if run.seed in [r.seed for r in same]:
            raise UserError(f"{path} repeats seed {run.seed} of {run.group}", "give each run once")
        same.append(run)
    if len({r.result["dataset"] for g in groups.values() for r in g}) > 1:
        raise UserError("the runs are on different data sets", "report them apart")
    return {name: sorted(runs, key=lambda r: r.seed) for name, runs in sorted(groups.items(), reverse=True)}


def mean_sd(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (NaN for a single value)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def paired(a: dict[int, float], b: dict[int, float]) -> tuple[float, float, int] | None:
    """(mean of a − b over common seeds, half width of its 95 % interval by Student's t, n); None under 2 seeds."""
    seeds = sorted(a.keys() & b.keys())
    if len(seeds) < 2:
        return None
    mean, sd = mean_sd([a[s] - b[s] for s in seeds])
    return mean, _T95[min(len(seeds) - 2, len(_T95) - 1)] * sd / math.sqrt(len(seeds)), len(seeds)
