"""Searches with Optuna (extra `sweep`): trials are ordinary runs, and the study is a file in the
sweep's folder.

`get_search()`, or `get_search(arg)`, of the sweep file returns one dict: what a point of a list
has, and

    "ranges": {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "net.route.rate": [0.25, 0.5]},
    "trials": 20, "objectives": ["quality", "executed"]

quality is the headline figure on validation data, executed the FLOPs of a token; the default is
quality alone. No point is trained twice. As many processes as share the folder work on one study. A
trial whose process died is taken up again by whoever comes next.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cerebra_jax import config, documents
from cerebra_jax.cli import flags
from cerebra_jax.cli import sweep_points as listed
from cerebra_jax.cli.sweep_points import Point
from cerebra_jax.cli.sweep_pool import Ended
from cerebra_jax.errors import USER, UserError
from cerebra_jax.report import runs
from cerebra_jax.training import workdir as folder

OBJECTIVES = ("quality", "executed")
REPEAT = "repeat"  # marks a trial at a point that another trial had
ATTEMPTS = 100  # to get a new point from Optuna
LISTED = 10_000  # points that are listed at most, to find one that is left
SCORED = {  # what is read of a result
    "metrics": runs.RESULT["metrics?"],
    "val": {},
    "costs": {
        "executed_flops": documents.POSITIVE,
        "relative": {"executed": documents.POSITIVE},
    },
}
Range = dict[str, Any] | list[Any]


class Search(NamedTuple):
    """Holds a declared search, checked."""

    spec: str
    root: Path
    row: dict[str, Any]  # of a point: what all trials have
    ranges: dict[str, Range]
    trials: int
    objectives: tuple[str, ...]
    overrides: Mapping[str, str]
    ends: list[Point]  # every choice and both ends of every range, one at a time

    def point(self, number: int, params: Mapping[str, Any]) -> Point:
        """Returns the run of a trial; UserError where its values do not go together."""
        row = {**self.row, **params, "name": f"trial-{number:04d}"}
        return listed.point(self.spec, f"trial {number}", row, self.overrides, self.root)

    @property
    def declaration(self) -> str:
        """Returns what makes two searches one study; the number of trials may change."""
        base = {key: value for key, value in self.row.items() if key != "name"}
        overrides = {k: v for k, v in self.overrides.items() if k not in folder.MAY_CHANGE}
        return json.dumps([base, overrides, self.ranges, self.objectives], sort_keys=True)


def declared(spec: str, value: Any, overrides: Mapping[str, str], root: Path) -> Search:
    """Returns the search of a sweep file.

    Every end of every range is tried against the rules of the configuration.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"get_search() of {spec} returns {type(value).__name__}", "return one dict")
    row = dict(value)
    ranges, trials = row.pop("ranges", None), row.pop("trials", None)
    objectives = tuple(row.pop("objectives", ("quality",)))
    if "flops" in row:
        what = f"get_search() of {spec} has flops, which are for the points of a list"
        raise UserError(what, "give train.duration")
    if type(trials) is not int or trials < 1:
        raise UserError(f"{spec}: trials is {trials!r}", "give a whole number of them: 20")
    if (
        not objectives
        or len(set(objectives)) < len(objectives)
        or not set(objectives) <= set(OBJECTIVES)
    ):
        raise UserError(
            f"{spec}: objectives are {objectives}", f"choose from {', '.join(OBJECTIVES)}"
        )
    if not isinstance(ranges, Mapping) or not ranges:
        raise UserError(
            f"{spec} has no ranges",
            '"ranges": {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}}',
        )
    for key, given in ranges.items():
        _check(spec, key, given)
        if key in overrides or key in row:
            raise UserError(f"{spec}: {key} is searched and set", "do one of the two")
    first = {key: _ends(given)[0] for key, given in ranges.items()}
    search = Search(spec, root, row, dict(ranges), trials, objectives, overrides, [])
    tried = [
        first,
        *({**first, key: end} for key, given in ranges.items() for end in _ends(given)[1:]),
    ]
    search.ends.extend(search.point(i, params) for i, params in enumerate(tried))
    return search


class Study:
    """Shares the trials of a search among all processes with this folder.

    `take` and `settle` are what a pool needs.
    """

    def __init__(self, search: Search):
        self.search, self._optuna = search, _optuna()
        search.root.mkdir(parents=True, exist_ok=True)
        # trials that this process has begun, or found at work in another
        self._seen: set[int] = set()
        optuna, journal = self._optuna, search.root / "study.log"
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(journal))
        )
        with self._alone():
            self._study = optuna.create_study(
                study_name="search",
                storage=storage,
                directions=["minimize"] * len(search.objectives),
                sampler=optuna.samplers.TPESampler(),
                load_if_exists=True,
            )
            old = self._study.user_attrs.get("search", search.declaration)
            if old != search.declaration:
                raise UserError(f"{search.root} holds another search", "choose another --workdir")
            self._study.set_user_attr("search", search.declaration)

    def take(self) -> Point | Ended | None:
        """Returns the next run: one that a process left behind, or a new trial.

        Returns Ended where its values do not go together, and None where there is none left.
        """
        states = self._optuna.trial.TrialState
        with self._alone():
            trials = self._study.get_trials(deepcopy=False)
            left = [t for t in trials if t.state == states.RUNNING and t.number not in self._seen]
            if left:
                trial = left[0]
            else:
                trial = self._new(trials)
                if trial is None:
                    return None
            self._seen.add(trial.number)
        try:
            return self.search.point(trial.number, trial.params)
        except UserError as e:
            self._study.tell(trial.number, state=states.FAIL, skip_if_finished=True)
            name = f"trial-{trial.number:04d}"
            return Ended(
                Point(name, self.search.ends[0].cfg, self.search.root / name),
                "failed",
                str(e),
                status=USER,
            )

    def _new(self, trials: Sequence[Any]) -> Any:
        """Returns a trial at a point where none was; None where all are done, or no point is left.

        Optuna may ask for a point again. Such a trial is ended at once, and does not count.
        """
        counted = [t for t in trials if not t.user_attrs.get(REPEAT)]
        if len(counted) >= self.search.trials:
            return None
        tried = {_as_key(t.params) for t in counted}
        kinds = {key: self._distribution(key) for key in self.search.ranges}
        for _ in range(ATTEMPTS):
            trial = self._study.ask(kinds)
            if _as_key(trial.params) not in tried:
                return trial
            trial.set_user_attr(REPEAT, True)
            self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
            free = self._untried(tried)
            if free is None:
                return None
            if free:
                self._study.enqueue_trial(free)
        return None

    def _untried(self, tried: set[tuple]) -> dict[str, Any] | None:
        """Returns a point that is left, {} where there are too many to list, None for no point."""
        if self._points() > LISTED:
            return {}
        axes = [_choices(given) or [] for given in self.search.ranges.values()]
        points = (dict(zip(self.search.ranges, x, strict=True)) for x in itertools.product(*axes))
        left = [point for point in points if _as_key(point) not in tried]
        return random.choice(left) if left else None

    def settle(self, end: Ended) -> None:
        """Tells the study how a trial ended.

        One that was killed, stopped, or is at work elsewhere goes on later.
        """
        number = int(end.point.name.partition("-")[2].partition("-")[0])
        states = self._optuna.trial.TrialState
        if end.state == "done":
            values = _values(_result(end.point.workdir), self.search.objectives)
            state = states.FAIL if values is None else states.COMPLETE
            self._study.tell(number, values, state, skip_if_finished=True)
        elif end.state == "failed" and end.status > 0:
            self._study.tell(number, state=states.FAIL, skip_if_finished=True)

    def lines(self) -> Iterator[str]:
        """Yields the best trials: one, or the front of two objectives."""
        done = [
            t for t in self._study.get_trials(deepcopy=False) if t.state.is_finished() and t.values
        ]
        points = self._points()
        yield f"{len(done)} of {min(points, self.search.trials)} trials have a result"
        if points < self.search.trials:
            yield f"there are only {points} points: none is trained twice"
        for trial in self._study.best_trials if done else []:
            point = self.search.point(trial.number, trial.params)
            result = _result(point.workdir)
            metric = runs.metrics_of(result)[0]
            value = result["val"][metric.key]
            if value is None:
                raise UserError(f"{point.workdir} has no {metric.name} any more", folder.HINT)
            quality = f"{metric.name} {value:,.{metric.digits}f} on validation data"
            executed = f"{result['costs']['relative']['executed']:.3f} of dense executed"
            keys = ", ".join(f"{key}={value}" for key, value in trial.params.items())
            yield f"best: {point.name}: {quality}, {executed}; {keys}"

    def _points(self) -> float:
        """Returns how many points the ranges hold."""
        axes = [_choices(given) for given in self.search.ranges.values()]
        return math.prod(math.inf if axis is None else len(axis) for axis in axes)

    def _distribution(self, key: str) -> Any:
        given, kinds = self.search.ranges[key], self._optuna.distributions
        if isinstance(given, list):
            return kinds.CategoricalDistribution(given)
        whole = isinstance(config.fields()[key].default, int)
        return (kinds.IntDistribution if whole else kinds.FloatDistribution)(**given)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self.search.root / "search.lock", "a") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield


def _result(workdir: Path) -> dict[str, Any]:
    """Returns the result.json of a point that is done; UserError where it lacks what is read."""
    file = workdir / "result.json"
    result = documents.read(file, SCORED, folder.HINT)
    if not result["metrics"]:
        raise UserError(f"{file}: metrics is empty", folder.HINT)
    value = {result["metrics"][0]["key"]: runs.MAYBE}
    documents.check(result["val"], value, f"{file}: val", folder.HINT)
    return result


def _as_key(params: Mapping[str, Any]) -> tuple:
    return tuple(sorted((key, repr(value)) for key, value in params.items()))


def _choices(given: Range) -> list[Any] | None:
    """Returns the values of a range, None where they are no list of a few."""
    if isinstance(given, list):
        return list(dict.fromkeys(given))
    low, high = given["low"], given["high"]
    whole = isinstance(low, int) and isinstance(high, int) and high - low < LISTED
    return list(range(low, high + 1)) if whole else None


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("a search needs Optuna", 'pip install "cerebra-jax[sweep]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _check(spec: str, key: Any, given: Any) -> None:
    fields = config.fields()
    if key not in fields:
        raise flags.unknown_key(str(key))
    if isinstance(given, list):
        if not given:
            raise UserError(f"{spec}: {key} has no choices", "list some")
        return
    kinds = {int: (int,), float: (int, float)}.get(type(fields[key].default), ())
    if (
        not isinstance(given, Mapping)
        or not kinds
        or not {"low", "high"} <= given.keys() <= {"low", "high", "log"}
    ):
        how = (
            '{"low": 1e-4, "high": 1e-2, "log": True}, or a list of choices'
            if kinds
            else "a list of choices"
        )
        raise UserError(f"{spec}: the range of {key} is {given!r}", f"write {how}")
    low, high = given["low"], given["high"]
    numbers = all(type(x) in kinds for x in (low, high))
    if not numbers or not low < high or (given.get("log") and low <= 0):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(
            f"{spec}: the range of {key} is {given!r}",
            f"{names}, low < high, and 0 < low for a log scale",
        )


def _ends(given: Range) -> list[Any]:
    return given if isinstance(given, list) else [given["low"], given["high"]]


def _values(result: Mapping[str, Any], objectives: tuple[str, ...]) -> list[float] | None:
    """Returns what Optuna makes small; None where the run has no such figure."""
    headline, costs = runs.metrics_of(result)[0], result["costs"]
    value = result["val"][headline.key]
    if value is None:
        return None
    small = {"quality": value if headline.lower else -value, "executed": costs["executed_flops"]}
    return [float(small[name]) for name in objectives]
