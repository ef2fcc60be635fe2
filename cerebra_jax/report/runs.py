"""Reads finished runs from their folders and groups them; the runs of a group differ in their seed.

This is the only place that knows how result.json and metrics.jsonl of older runs look.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cerebra_jax.errors import UserError
from cerebra_jax.report import groups as grouping
from cerebra_jax.tasks.task import Metric

# the figures of runs that are older than the key "metrics", which are all of texts
TEXT_METRICS = (
    Metric("ppl_word", "perplexity per word", 1, lower=True),
    Metric("bits_per_byte", "bits per byte", 3, lower=True),
)


class Costs(NamedTuple):
    """Forward costs of a run; the relative ones are to the dense Transformer of the same shape."""

    unit: str  # flops, bytes or seconds
    expected: float  # relative: what the penalty's gradient sees
    hard: float  # relative: the decisions taken
    executed: float  # relative: what the compiled program runs
    executed_flops: float  # of a token, whatever the unit
    dense: float  # of a token, in the unit
    train_total: float  # of the whole training, in FLOPs


@dataclasses.dataclass(frozen=True)
class Run:
    """One WORKDIR: its result.json, its config.json, and its metrics.jsonl, read when asked for."""

    path: Path
    result: dict[str, Any]
    config: dict[str, Any]

    @property
    def seed(self) -> int:
        return self.result["seed"]

    @property
    def dataset(self) -> str:
        return self.result["dataset"]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Returns the figures of the task, the headline first."""
        if "metrics" not in self.result:
            return TEXT_METRICS
        return tuple(Metric(**metric) for metric in self.result["metrics"])

    @property
    def headline(self) -> Metric:
        return self.metrics[0]

    def figure(self, split: str, metric: Metric) -> float | None:
        """Returns a figure on "val" or "test" data; None where the run does not know it."""
        return self.result[split][metric.key]

    @property
    def net(self) -> dict[str, Any]:
        """Returns the net that ran; a twin's is not that of the configuration."""
        return self.result.get("net", self.config["net"])

    @property
    def costs(self) -> Costs:
        """Returns the costs; runs older than objective.unit count FLOPs and do not say so."""
        costs = self.result["costs"]
        relative = costs["relative"]
        return Costs(
            unit=costs.get("counts", "flops"),
            expected=relative["expected"],
            hard=relative["hard"],
            executed=relative["executed"],
            executed_flops=costs.get("executed_flops", costs["executed"]),
            dense=costs["dense"],
            train_total=costs["train_total"],
        )

    @property
    def shrunk(self) -> float | None:
        """Returns the executed cost after `shrink` cut out what was pruned; None if nothing was."""
        return self.result["test"].get("kept_rel_flops")

    @property
    def heavy_fractions(self) -> list[float] | None:
        """Returns of each routed layer the fraction of test tokens on the heavy path, if known."""
        return self.result["test"].get("gates", {}).get("kept")

    @property
    def budget(self) -> float:
        """Returns objective.budget; 0 where there is none."""
        return self.config["objective"].get("budget", 0.0)

    @property
    def unit(self) -> str:
        """Returns objective.unit: the unit in the names of the keys of metrics.jsonl."""
        return self.config["objective"].get("unit", "flops")

    @property
    def seq_len(self) -> int:
        return self.result.get("seq_len", self.config["task"]["seq_len"])

    @property
    def notice(self) -> str:
        """Returns what a reader of the figures must know; "" if nothing."""
        return self.result.get("notice") or ""

    @functools.cached_property
    def identity(self) -> grouping.Identity:
        """Returns what the run has in common with its repeats."""
        return grouping.identity(self.config, self.result)

    def logged(self, key: str) -> bool:
        """Tells whether metrics.jsonl has a key somewhere, without parsing it."""
        return f'"{key}"' in (self.path / "metrics.jsonl").read_text(encoding="utf-8")

    def lines(self, split: str) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl of one split."""
        with open(self.path / "metrics.jsonl", encoding="utf-8") as file:
            return [line for line in map(json.loads, file) if line["split"] == split]


Groups = dict[str, list[Run]]  # name -> its runs by seed; dense models first


def first(groups: Groups) -> Run:
    """Returns a run that stands for all where they agree, as on their data set and its metrics."""
    return next(iter(groups.values()))[0]


def found(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Returns the folders of finished runs, and those of unfinished ones.

    A folder that is no run but holds some, as a sweep's does, stands for them.
    Raises UserError where no run is finished.
    """
    finished = []
    unfinished = []
    for path in paths:
        inside = sorted(config.parent for config in path.glob("*/config.json"))
        is_run = (path / "config.json").exists() or (path / "result.json").exists()
        if is_run or not inside:
            finished.append(path)
            continue
        for folder in inside:
            is_finished = (folder / "result.json").exists()
            (finished if is_finished else unfinished).append(folder)
    if not finished:
        raise UserError(f"{paths[0]} holds no finished run", "finish one first")
    return finished, unfinished


def load(paths: Sequence[Path], by_folder: bool = False) -> Groups:
    """Returns the runs by group.

    by_folder: names groups after the folders of their runs, NAME-s0, NAME-s1, …, as a sweep does.
    Raises UserError for a folder without a finished run, for two runs of one group and seed, and
    for runs on different data sets.
    """
    # repeats have one identity
    by_identity: dict[tuple, list[Run]] = {}
    for path in paths:
        run = read(path)
        by_identity.setdefault(tuple(sorted(run.identity.items())), []).append(run)
    repeats = [sorted(runs, key=lambda run: run.seed) for runs in by_identity.values()]
    repeats.sort(key=lambda runs: grouping.sort_key(runs[0].identity))

    if by_folder:
        names = _folder_names(repeats)
    else:
        names = grouping.names([runs[0].identity for runs in repeats])
    groups = dict(zip(names, repeats, strict=True))

    for name, runs in groups.items():
        _refuse_twice_the_same_seed(name, runs)
    if len({run.dataset for runs in repeats for run in runs}) > 1:
        raise UserError("the runs are on different data sets", "report them apart")
    return groups


def read(path: Path) -> Run:
    """Returns the run of a folder; raises UserError where there is none that is finished."""
    try:
        result = json.loads((path / "result.json").read_text(encoding="utf-8"))
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{path} holds no finished run ({error.filename} is missing)", "finish it first"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is damaged ({error})", "leave it out, or run it again with --fresh"
        ) from None
    return Run(path, result, config)


def _refuse_twice_the_same_seed(name: str, runs: Sequence[Run]) -> None:
    for run, following in zip(runs, runs[1:], strict=False):
        if run.seed == following.seed:
            twice = " and ".join(str(r.path) for r in runs if r.seed == run.seed)
            raise UserError(f"{twice} are both seed {run.seed} of {name}", "give each run once")


def _folder_names(repeats: Sequence[Sequence[Run]]) -> list[str]:
    """Returns the name that the folders of each group share; raises UserError where they do not."""
    stems = [sorted({_stem(run) for run in runs}) for runs in repeats]
    names = [stem[0] for stem in stems]
    for stem in stems:
        if len(stem) > 1 or names.count(stem[0]) > 1:
            raise UserError(
                f"folders do not tell the groups apart: {', '.join(stem)}", "leave --by-folder out"
            )
    return names


def _stem(run: Run) -> str:
    return run.path.resolve().name.removesuffix(f"-s{run.seed}")
