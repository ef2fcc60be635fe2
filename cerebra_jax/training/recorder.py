"""What a run tells while it goes: to metrics.jsonl, to TensorBoard and to the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cerebra_jax.errors import Diverged
from cerebra_jax.training import metrics
from cerebra_jax.training.closing import of_dense, quality
from cerebra_jax.training.experiment import Experiment

POINTS = 500
"""Points of a curve: a line of a deep model is hundreds of curves, 9 ms, longer than some steps."""


class Screen(Protocol):
    """Where a run talks to a person."""

    def say(self, line: str) -> None: ...

    def begin(self, total: int, done: int) -> None: ...

    def step(self, done: int, text: str, due: bool) -> None: ...

    def end(self) -> None: ...


class Position(NamedTuple):
    """Where this session of a run began."""

    step: int = 0
    wall: float = 0.0  # seconds that earlier sessions took
    scored: bool = True  # the checkpoint knows its validation loss, if it was one


class Recorder:
    """Writes each line to metrics.jsonl and TensorBoard, and shows it."""

    def __init__(self, experiment: Experiment, workdir: Path, screen: Screen, start: Position):
        self.experiment = experiment
        self.screen = screen
        self.path = workdir / "metrics.jsonl"
        self.pace = metrics.Pace()
        self.every = max(1, experiment.length.steps(experiment.cfg.train.log_every))
        self.drawn_every = max(1, experiment.length.total // POINTS)
        self.log = metrics.Log(self.path, start.step, start.scored)
        self.tracker = metrics.tracker(workdir / "tensorboard", start.step)
        self.huge = 0  # steps in a row, the last one too, whose loss was finite and huge
        screen.begin(experiment.length.total, start.step)

    def train(self, line: dict[str, Any], tokens: int) -> None:
        """Writes the line of a training step on examples of `tokens` tokens.

        TensorBoard gets a line every train.log_every, and at least `POINTS` of them in a run.

        Raises Diverged where too many steps in a row were not finite.
        """
        # the step's own time
        took = self.pace.lap()
        total = self.experiment.cfg.train.batch_size * tokens
        line["tokens_per_s"] = took and round(total / took, 1)
        line["step_ms"] = took and round(took * 1e3, 3)
        self.log.write(line)

        at, skipped = line["step"], int(line["skipped"] or 0)
        is_huge = line["loss"] is not None and line["loss"] > self.experiment.largest_loss
        self.huge = self.huge + 1 if is_huge else 0
        train = self.experiment.cfg.train
        bad = skipped or self.huge
        if bad > (0 if train.on_nonfinite == "halt" else train.max_skips):
            what = "loss or gradients were not finite" if skipped else f"loss {line['loss']:.3g}"
            times = f"{bad} steps in a row" if bad > 1 else "in one step"
            raise Diverged(
                f"step {at}: {what} {times}",
                f"what was saved is from before; {self.experiment.cure}",
            )
        parts = ["loss not finite" if line["loss"] is None else f"loss {line['loss']:.3f}"]
        parts.append(of_dense(line))
        if took:
            parts.append(f"{total / took:,.0f} tokens/s")
        parts.append(f"{self.pace.left(self.experiment.length.total - at)} left")
        if skipped:
            parts.append(f"skipped {skipped}")
        due = at == 1 or at % self.every == 0
        self.screen.step(at, " · ".join(parts), due)
        if due or at % self.drawn_every == 0:
            self.tracker.scalars(at, "train", line)

    def valid(self, line: dict[str, Any]) -> None:
        """Writes and shows the line of a validation."""
        self.log.write(line)
        self.tracker.scalars(line["step"], "valid", line)
        figures = quality(line, self.experiment.task.metrics)
        self.screen.say(f"step {line['step']:,} · validation · {figures}")

    def test(self, line: dict[str, Any]) -> None:
        """Writes the line of the test split, for good."""
        self.log.write(line)
        self.tracker.scalars(line["step"], "test", line)
        self.sync()

    def validation(self, step: int) -> dict[str, Any] | None:
        """Returns the validation line of a step, None where it was not evaluated."""
        return self.log.validation(step)

    def best(self) -> tuple[int, int]:
        """Returns the step of the best validation so far, and how many came after it."""
        lines = [line for line in self.log.lines if line["split"] == "valid"]
        scores = [self.experiment.score(line) for line in lines]
        first = scores.index(min(scores))
        return lines[first]["step"], len(lines) - 1 - first

    def sync(self) -> None:
        """Puts all lines on the disk, so that no checkpoint is ahead of them."""
        self.log.sync()

    def close(self) -> None:
        """Closes the files."""
        self.log.close()
        self.tracker.close()
