"""Finished runs, read from their folders and grouped by what was trained; the seeds of a group are repeats."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cerebra_jax.errors import UserError
from cerebra_jax.report import groups as grouping

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
    def net(self) -> dict[str, Any]:
        """What ran: a twin's is not that of the configuration."""
        return self.result.get("net", self.config["net"])

    @property
    def executed_flops(self) -> float:
        """Of a token, forward; `costs` are in objective.unit, FLOPs where they are older than that key."""
        return self.result["costs"].get("executed_flops", self.result["costs"]["executed"])

    @property
    def identity(self) -> grouping.Identity:
        """What it has in common with its repeats."""
        return grouping.identity(self.config, self.result)

    def lines(self, split: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one split."""
        with open(self.path / "metrics.jsonl", encoding="utf-8") as f:
            return [line for line in map(json.loads, f) if line["split"] == split]


Groups = dict[str, list[Run]]  # name -> its runs by seed; dense models first


def found(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """(folders of runs, those of unfinished ones): a folder that is none itself, a sweep's, stands for those in it."""
    done, unfinished = [], []
    for path in paths:
        points = sorted(p.parent for p in path.glob("*/config.json"))
        if (path / "config.json").exists() or (path / "result.json").exists() or not points:
            done.append(path)
            continue
        for point in points:
            (done if (point / "result.json").exists() else unfinished).append(point)
    if not done:
        raise UserError(f"{paths[0]} holds no finished run", "finish one first")
    return done, unfinished


def load(paths: list[Path], by_folder: bool = False) -> Groups:
    """The runs by group; UserError for a folder without a finished run, or two runs of one group and seed.

    by_folder: groups are called after the folders of their runs, NAME-s0, NAME-s1, …, as a sweep names its points.
    """
    same: dict[tuple, list[Run]] = {}
    for path in paths:
        run = read(path)
        same.setdefault(tuple(sorted(run.identity.items())), []).append(run)
    repeats = sorted(same.values(), key=lambda runs: grouping.order(runs[0].identity))
    names = (
        _folders(repeats) if by_folder else grouping.names([runs[0].identity for runs in repeats])
    )
    for name, runs in zip(names, repeats, strict=True):
        seeds = [run.seed for run in runs]
        for run in runs:
            if seeds.count(run.seed) > 1:
                twice = " and ".join(str(r.path) for r in runs if r.seed == run.seed)
                raise UserError(f"{twice} are both seed {run.seed} of {name}", "give each run once")
    if len({run.result["dataset"] for runs in repeats for run in runs}) > 1:
        raise UserError("the runs are on different data sets", "report them apart")
    return {
        name: sorted(runs, key=lambda r: r.seed) for name, runs in zip(names, repeats, strict=True)
    }


def _folders(repeats: list[list[Run]]) -> list[str]:
    stems = [
        sorted({run.path.resolve().name.removesuffix(f"-s{run.seed}") for run in runs})
        for runs in repeats
    ]
    names = [stem[0] for stem in stems]
    if any(len(stem) > 1 for stem in stems) or len(set(names)) < len(names):
        mixed = next(stem for stem in stems if len(stem) > 1 or names.count(stem[0]) > 1)
        raise UserError(
            f"folders do not tell the groups apart: {', '.join(mixed)}", "leave --by-folder out"
        )
    return names


def read(path: Path) -> Run:
    """The run of a folder; UserError where there is none that is finished."""
    try:
        result = json.loads((path / "result.json").read_text(encoding="utf-8"))
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UserError(
            f"{path} holds no finished run ({e.filename} is missing)", "finish it first"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(
            f"{path} is damaged ({e})", "leave it out, or run it again with --fresh"
        ) from None
    return Run(path, result, config)
