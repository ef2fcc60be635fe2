"""Reads finished runs from their folders and groups them; the runs of a group differ in their seed.

This is the only place that knows how result.json and metrics.jsonl of older runs look.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cerebra_jax import config as configuration
from cerebra_jax import documents
from cerebra_jax.documents import FLAG, NUMBER, POSITIVE, TEXT, WHOLE, or_null, whole
from cerebra_jax.errors import UserError
from cerebra_jax.report import groups as grouping
from cerebra_jax.tasks.task import Metric

# the figures of runs that are older than the key "metrics", which are all of texts
TEXT_METRICS = (
    Metric("ppl_word", "perplexity per word", 1, lower=True),
    Metric("bits_per_byte", "bits per byte", 3, lower=True),
)

MAYBE = or_null(NUMBER)
# what is read of result.json and of a line of metrics.jsonl, by this package and by those above it;
# "?" marks what older runs lack
RESULT = {
    "model": TEXT,
    "dataset": TEXT,
    "seed": WHOLE,
    "params": WHOLE,
    "params_non_embedding?": WHOLE,
    "steps": whole(1),
    "tokens": WHOLE,
    "seq_len?": WHOLE,
    "notice?": or_null(TEXT),
    "commit": or_null(TEXT),
    "data?": {"sha256?": TEXT, "fields_sha256?": TEXT},
    "net?": {"name": TEXT, "depth": whole(1, 100_000), "route": {"mode": TEXT}},
    "metrics?": [
        {"key": TEXT, "name": TEXT, "digits": whole(0, 12), "lower": FLAG, "table?": FLAG}
    ],
    "val": {},
    "test": {"kept_rel_flops?": NUMBER, "gates?": {"*": [MAYBE]}},
    "costs": {
        "counts?": documents.one_of(*configuration.fields()["objective.unit"].metadata["of"]),
        "relative": {"expected": MAYBE, "hard": MAYBE, "executed": POSITIVE},
        "executed": POSITIVE,
        "executed_flops?": POSITIVE,
        "dense": POSITIVE,
        "train_total": POSITIVE,
    },
    "step_ms": MAYBE,
    "train_s?": MAYBE,
    "wall_s": NUMBER,
    "device": {"device": TEXT, "cores": WHOLE, "jax": TEXT},
}
LINE = {"step": WHOLE, "split": TEXT, "loss": MAYBE, "gates?": {"*": [MAYBE]}}
TRAIN_LINE = LINE | {"executed_rel_flops": POSITIVE, "phase?": or_null(TEXT)}
HINT = "leave it out, or run it again with --fresh"


class Costs(NamedTuple):
    """Forward costs of a run; the relative ones are to the dense Transformer of the same shape."""

    unit: str  # flops, bytes or seconds
    expected: float | None  # relative: what the penalty's gradient sees; None: not finite
    hard: float | None  # relative: the decisions taken; None: not finite
    executed: float  # relative: what the compiled program runs
    executed_flops: float  # of a token, whatever the unit
    dense: float  # of a token, in the unit
    train_total: float  # of the whole training, in FLOPs


@dataclasses.dataclass(frozen=True)
class Run:
    """One WORKDIR: its result.json, its config.json, and its metrics.jsonl, read when asked for.

    All have the shapes above, and the configuration has every key of today.
    """

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
        return metrics_of(self.result)

    @property
    def headline(self) -> Metric:
        return self.metrics[0]

    def figure(self, split: str, metric: Metric) -> float | None:
        """Returns a figure on "val" or "test" data; None where the run does not know it."""
        return self.result[split].get(metric.key)

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
        kept = self.result["test"].get("gates", {}).get("kept", [None])
        return None if None in kept else kept

    @property
    def budget(self) -> float:
        """Returns objective.budget; 0 where there is none."""
        return self.config["objective"]["budget"]

    @property
    def unit(self) -> str:
        """Returns objective.unit: the unit in the names of the keys of metrics.jsonl."""
        return self.config["objective"]["unit"]

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
        word = f'"{key}"'.encode()
        return any(word in line for _, line in documents.raw_lines(self._log, HINT))

    def train_lines(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl that training steps wrote.

        Raises UserError where there are none, or one has another shape.
        """
        lines = []
        for where, line in documents.read_lines(self._log, LINE, HINT):
            if line["split"] == "train":
                lines.append(documents.check(line, TRAIN_LINE, where, HINT))
        if not lines:
            raise UserError(f"{self._log} has no line of a training step", HINT)
        return lines

    def column(self, lines: Sequence[dict[str, Any]], key: str) -> list[float]:
        """Returns one figure of lines of the run; NaN where it is null.

        Raises UserError where a line lacks it.
        """
        for line in lines:
            documents.check(line, {key: MAYBE}, f"{self._log}, step {line['step']}", HINT)
        return [math.nan if line[key] is None else line[key] for line in lines]

    @property
    def _log(self) -> Path:
        return self.path / "metrics.jsonl"


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
    """Returns the run of a folder.

    Raises UserError where there is none that is finished, or where it is damaged.
    """
    for name in ("result.json", "config.json"):
        if not (path / name).exists():
            what = f"{path} holds no finished run ({path / name} is missing)"
            raise UserError(what, "finish it first")
    result = read_result(path / "result.json", HINT)
    return Run(path, result, read_configuration(path / "config.json"))


def read_configuration(file: Path, hint: str = HINT) -> dict[str, Any]:
    """Returns a config.json of any version in today's form, checked.

    Raises UserError where it is damaged, or is not that of a run.
    """
    values = documents.read(file, {}, hint)
    try:
        return configuration.stored(values)
    except UserError as error:
        raise UserError(f"{file}: {error.what}", hint) from None


def read_result(file: Path, hint: str = HINT) -> dict[str, Any]:
    """Returns a result.json, checked.

    Raises UserError where it is damaged, or is not that of a run.
    """
    result = documents.read(file, RESULT, hint)
    metrics = metrics_of(result)
    if not metrics:
        raise UserError(f"{file}: metrics is empty", hint)
    figures = {
        "val": {metrics[0].key: MAYBE},
        "test": {
            metric.key if metric.table or metric is metrics[0] else f"{metric.key}?": MAYBE
            for metric in metrics
        },
    }
    return documents.check(result, figures, str(file), hint)


def metrics_of(result: Mapping[str, Any]) -> tuple[Metric, ...]:
    """Returns the figures of the task of a result, the headline first."""
    if "metrics" not in result:
        return TEXT_METRICS
    return tuple(
        Metric(**{key: metric[key] for key in Metric._fields if key in metric})
        for metric in result["metrics"]
    )


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
