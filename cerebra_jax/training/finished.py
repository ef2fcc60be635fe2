"""The best checkpoint of a finished run, as every command that reads one takes it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cerebra_jax.config import RunCfg
from cerebra_jax.errors import UserError
from cerebra_jax.models.model import Model
from cerebra_jax.tasks.task import Task
from cerebra_jax.training import results
from cerebra_jax.training.checkpoint import Checkpoints
from cerebra_jax.training.experiment import Experiment, Serving, prepare
from cerebra_jax.training.state import TrainState


class Finished(NamedTuple):
    """A run's best checkpoint by validation.

    `state` holds what the model runs with: pruned weights are at zero.
    """

    experiment: Experiment
    state: TrainState
    score: float  # of its validation; less is better
    serving: Serving

    @property
    def step(self) -> int:
        """Optimizer steps before the checkpoint."""
        return int(self.state.step)

    @property
    def model(self) -> Model:
        """The model that the checkpoint is of."""
        return self.experiment.model_of(self.serving)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that the model runs with, as `Model.apply` takes them."""
        return {"params": self.state.params, "routing": self.state.routing}

    @property
    def notice(self) -> str:
        """What must stand beside its figures."""
        return self.experiment.notice


def load(
    cfg: RunCfg, task: Task, workdir: Path, log: Callable[[str], None], as_trained: bool = False
) -> Finished:
    """Returns the best checkpoint of the run in a folder.

    With the thresholds that were measured for it since (`frozen`), unless `as_trained`. Raises
    UserError where there is no checkpoint, or its data have changed.
    """
    experiment = prepare(cfg, task)
    checkpoints = Checkpoints(workdir / "checkpoints", log, read_only=True)
    with contextlib.closing(checkpoints):
        best = checkpoints.best(experiment.like, as_trained)
    if best is None:
        raise UserError(f"{workdir} has no intact validated checkpoint", "train it first")
    results.same_data(best.meta["data"], task)
    serving = experiment.serving(best.state)
    return Finished(experiment, best.state, best.meta["score"], serving)
