"""Reads the runs of an iso-FLOP sweep, and fits the loss of each family of models.

Of each family there are some sizes at some budgets of training FLOPs (configs/sweeps/isoflop.py).
The name of a run's folder says which, FAMILY@BUDGET,SIZE-sSEED. All else is read from its result:

- N: the parameters outside of embedding and head.
- D: the tokens that it predicted in training, those of later epochs too.
- C: the FLOPs of its training as executed: three times those of the forward pass (four where
  net.remat computes it again), router, compressor and sampler included.
- C / (3 D): its FLOPs of a token, a mean over the programs that a budget went through.
- L: nats a token on validation data, of the best checkpoint. Test data are shown, and not fitted.

What follows from the fits is in isoflop_multiplier.py, what is shown in isoflop_page.py.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cerebra_jax import documents
from cerebra_jax.documents import POSITIVE, or_null, whole
from cerebra_jax.errors import UserError
from cerebra_jax.report import isoflop_fit, runs
from cerebra_jax.report.isoflop_fit import Fit, Points
from cerebra_jax.report.runs import Run
from cerebra_jax.report.statistics import mean_sd

DENSE = "dense"  # the family that others are compared with
FORM = "FAMILY@BUDGET,SIZE-sSEED"
_OFF = 0.05  # of its budget, by which a run may have executed more or less
# a run of a learning-rate grid has ,lr=RATE behind its size
_NAME = re.compile(r"([^@,]+)@(\d+(?:\.\d+)?(?:e\+?\d{1,2})?),([^@,]+)(,lr=[^@,]+)?-s\d+")
_NATS = documents.number(0.0, 1e4)
_NEEDED = {
    "tokens": whole(1, 1e18),
    "params_non_embedding": whole(1, 1e12),
    "train_s": or_null(POSITIVE),
    "val": {"loss": _NATS},
    "test": {"loss": _NATS},
}


class Name(NamedTuple):
    """What the folder of a run says."""

    family: str
    budget: float  # nominal training FLOPs
    size: str
    is_tuning: bool  # it is of a learning-rate grid


class Cell(NamedTuple):
    """The runs of a family at one budget and size; they differ in their seed."""

    budget: float
    size: str
    runs: Sequence[Run]

    @property
    def N(self) -> int:
        return self.runs[0].result["params_non_embedding"]

    @property
    def D(self) -> float:
        return mean_sd([run.result["tokens"] for run in self.runs])[0]

    @property
    def C(self) -> float:
        return mean_sd([run.costs.train_total for run in self.runs])[0]

    @property
    def loss(self) -> float:
        """Returns the mean loss on validation data."""
        return mean_sd(self.losses("val"))[0]

    @property
    def seconds_per_flop(self) -> float | None:
        """Returns how long a FLOP of its training took; None where a run does not know."""
        seconds = [run.result["train_s"] for run in self.runs]
        return None if None in seconds else sum(seconds) / (self.C * len(self.runs))

    def losses(self, split: str) -> list[float]:
        """Returns the loss of each run on "val" or "test" data."""
        return [run.result[split]["loss"] for run in self.runs]

    def by_seed(self) -> dict[int, float]:
        """Returns {seed: loss on validation data}."""
        return {run.seed: run.result["val"]["loss"] for run in self.runs}


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """The runs of a family, and its fit where it has one that means something."""

    name: str
    cells: Sequence[Cell]  # by budget, then by N
    fit: Fit | None
    doubt: str  # why there is no fit

    @property
    def budgets(self) -> list[float]:
        return sorted({cell.budget for cell in self.cells})

    def at(self, budget: float) -> list[Cell]:
        """Returns the cells of a budget, by N."""
        return [cell for cell in self.cells if cell.budget == budget]

    def best(self, budget: float) -> Cell:
        """Returns the cell of the lowest measured loss at a budget."""
        return min(self.at(budget), key=lambda cell: cell.loss)

    def ladder(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns its sizes: N, rising, and the FLOPs of a token, forward, as a geometric mean."""
        logs: dict[int, list[float]] = {}
        for cell in self.cells:
            logs.setdefault(cell.N, []).append(np.log(cell.C / (3 * cell.D)))
        N_K = np.array(sorted(logs), float)
        return N_K, np.exp([np.mean(logs[int(N)]) for N in N_K])


class Study(NamedTuple):
    """All that a report is made of: the families, dense first, and what was left out."""

    families: list[Family]
    passed_over: int = 0  # runs of learning-rate grids
    unfinished: int = 0

    @property
    def runs(self) -> list[Run]:
        return [run for family in self.families for cell in family.cells for run in cell.runs]

    def family(self, name: str) -> Family | None:
        return next((family for family in self.families if family.name == name), None)


def load(paths: Iterable[Path], unfinished: int = 0) -> Study:
    """Returns the study of some folders of finished runs; `unfinished` ones stood beside them.

    Raises UserError where a folder is not named as a run of such a sweep, where a run is too old to
    say what is needed or has executed something else than its budget, where two have one name and
    seed, and for runs on different data.
    """
    by_family: dict[str, dict[tuple[float, str], list[Run]]] = {}
    passed_over = 0
    for path in paths:
        name = read_name(path)
        if name.is_tuning:
            passed_over += 1
            continue
        cells = by_family.setdefault(name.family, {})
        cells.setdefault((name.budget, name.size), []).append(_read(path, name.budget))
    if not by_family:
        raise UserError(
            "all of these runs are of a learning-rate grid", "give the runs of the curve as well"
        )
    families = [
        fitted(name, by_family[name])
        for name in sorted(by_family, key=lambda name: (name != DENSE, name))
    ]
    study = Study(families, passed_over, unfinished)
    if len({run.identity["data"] for run in study.runs}) > 1:
        raise UserError("the runs are on different data", "report them apart")
    return study


def read_name(path: Path) -> Name:
    """Returns what the folder of a run says; raises UserError where it says something else."""
    name = path.resolve().name
    found = _NAME.fullmatch(name)
    if not found or float(found[2]) <= 0:
        raise UserError(
            f"{name} is not the name of a run of an iso-FLOP sweep, {FORM}",
            "train configs/sweeps/isoflop.py, or leave the folder out",
        )
    return Name(found[1], float(found[2]), found[3], found[4] is not None)


def power(value: float) -> str:
    """Writes 5e12, as the folders of runs do."""
    digits, e, exponent = f"{value:e}".partition("e")
    return f"{float(digits):g}{e}{int(exponent)}"


def _read(path: Path, budget: float) -> Run:
    run = runs.read(path)
    task = run.config["task"]["name"]
    if task != "text":
        raise UserError(f"{path} is of task {task}", "--isoflop fits losses of language models")
    hint = "train it again: earlier versions did not write that"
    documents.check(run.result, _NEEDED, str(path / "result.json"), hint)
    if abs(run.costs.train_total / budget - 1) > _OFF:
        what = f"{path} executed {run.costs.train_total:.3g} training FLOPs, not its {budget:.3g}"
        raise UserError(what, "name it after the budget that it had")
    return run


def fitted(name: str, by_place: Mapping[tuple[float, str], Sequence[Run]]) -> Family:
    """Returns a family of runs by (budget, size), with its fit.

    Raises UserError where two runs of a place have one seed, or where their sizes differ.
    """
    cells = []
    for (budget, size), found in by_place.items():
        cell = Cell(budget, size, sorted(found, key=lambda run: run.seed))
        seeds = [run.seed for run in cell.runs]
        folders = " and ".join(str(run.path) for run in cell.runs)
        if len(set(seeds)) < len(seeds):
            raise UserError(f"of {folders} two have the same seed", "give each run once")
        if len({run.result["params_non_embedding"] for run in cell.runs}) > 1:
            raise UserError(f"{folders} are of different sizes", "train one of them again")
        cells.append(cell)
    cells.sort(key=lambda cell: (cell.budget, cell.N))
    points = Points(
        N_P=np.array([cell.N for cell in cells], float),
        D_P=np.array([cell.D for cell in cells]),
        loss_P=np.array([cell.loss for cell in cells]),
        seeds_P=np.array([len(cell.runs) for cell in cells]),
    )
    doubt = isoflop_fit.why_not(points)
    fit = None
    if not doubt:
        # every family has a noise of its own
        fit = isoflop_fit.fit(points, seed=zlib.crc32(name.encode()))
        doubt = isoflop_fit.doubt(fit)
    return Family(name, cells, None if doubt else fit, doubt)
