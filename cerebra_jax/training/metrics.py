"""What a run writes while it goes: metrics.jsonl, one line a step, and TensorBoard events.

Steps hand over (sum, count) pairs, never means; the division happens here, once, after all sums
(spec 1, house 3.10).
"""

from __future__ import annotations

import datetime
import functools
import importlib.util
import json
import os
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cerebra_jax import documents
from cerebra_jax.documents import ANY, NUMBER, WHOLE, or_null
from cerebra_jax.training.workdir import HINT

# what is read of a line again, in a later session of a run
MAYBE = or_null(NUMBER)
LINE = {
    "step": WHOLE,
    "split": documents.one_of("train", "valid", "test"),
    "step_ms?": MAYBE,
    "length?": documents.whole(1),
    "program?": WHOLE,
}

FLUSHED_S = 30.0  # seconds until TensorBoard sees what was drawn

Sums = dict[str, tuple[Any, Any]]


def add(total: Sums | None, new: Sums) -> Sums:
    """Adds two sets of (sum, count) pairs in float64, so that a long evaluation loses nothing."""
    new = {k: (np.asarray(s, np.float64), np.asarray(n, np.float64)) for k, (s, n) in new.items()}
    if total is None:
        return new
    return {k: (total[k][0] + s, total[k][1] + n) for k, (s, n) in new.items()}


def form(sums: Sums) -> dict[str, Any]:
    """Returns {name: mean} as floats, or lists of floats for per-layer figures.

    What is not finite is None, which JSON calls null.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        means = {
            k: np.asarray(s, np.float64) / np.asarray(n, np.float64) for k, (s, n) in sums.items()
        }
    return {k: plain(v) for k, v in means.items()}


def plain(value: Any) -> Any:
    """Returns a number, or an array of them, as JSON may hold it: None where it is not finite."""
    if value is None:
        return None
    if np.ndim(value):
        return [plain(v) for v in value]
    return float(value) if np.isfinite(value) else None


class Pace:
    """Seconds per step of this session, without compilation, evaluations and saves."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._recent: deque[float] = deque(maxlen=50)

    def pause(self) -> None:
        """Leaves the next lap out of account."""
        self._last = None

    def lap(self) -> float | None:
        """Returns the seconds since the last lap; None for the first one after a pause."""
        now = time.perf_counter()
        took = None if self._last is None else now - self._last
        self._last = now
        if took is not None:
            self._recent.append(took)
        return took

    def left(self, steps: int) -> str:
        """Returns the time that `steps` more steps take, as h:mm:ss, by the median of the last 50.

        The first steps after a start are slow, and would be most of a mean.
        """
        if not self._recent:
            return "?"
        return str(datetime.timedelta(seconds=round(steps * statistics.median(self._recent))))


class Log:
    """metrics.jsonl: lines that are only appended, each written whole.

    On resume they are cut back to the step of the checkpoint.

    Lines reach the operating system as they are written (they survive a killed process); `sync`
    makes them survive a power cut, and runs before each checkpoint, so that no checkpoint is ahead
    of its lines.
    """

    def __init__(self, path: Path, step: int, scored: bool = True):
        """Opens the file for a run that continues after `step`.

        Later and torn lines are dropped; at step 0 all are.

        `scored` False: the checkpoint does not know its validation loss, so that it is measured
        again.
        """
        self.path, self.lines = path, []  # lines: the few that are not of training steps
        part = path.with_name(f".{path.name}.part")
        with open(part, "wb") as f:
            for line in read(path):
                again = line["split"] == "test" or (
                    line["split"] == "valid" and line["step"] == step and not scored
                )
                if line["step"] <= step and not again:
                    f.write(_encode(line))
                    self._remember(line)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
        self._file = open(path, "ab", buffering=0)

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line in one write: a kill leaves whole lines or one torn last line."""
        self._file.write(_encode(line))
        self._remember(line)

    def validation(self, step: int) -> dict[str, Any] | None:
        """Returns the validation line of a step, None where it was not evaluated."""
        return next(
            (line for line in self.lines if line["step"] == step and line["split"] == "valid"), None
        )

    def _remember(self, line: dict[str, Any]) -> None:
        if line["split"] != "train":
            self.lines.append(line)

    def sync(self) -> None:
        """Makes all lines survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _encode(line: dict[str, Any]) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def read(path: Path) -> Iterable[dict[str, Any]]:
    """Yields the lines of a metrics.jsonl, without a torn last one; none where there is no file.

    Raises UserError where one was not written by a run.
    """
    if not path.exists():
        return
    for _, line in documents.read_lines(path, LINE, HINT):
        yield line


def column(lines: Sequence[dict[str, Any]], key: str, kind: documents.Shape = ANY) -> list[Any]:
    """Returns a key of lines that were read; raises UserError where one lacks it."""
    for line in lines:
        documents.check(line, {key: kind}, f"metrics.jsonl, step {line['step']}", HINT)
    return [line[key] for line in lines]


class Tracker(Protocol):
    """Where curves are also drawn; metrics.jsonl stays the source of truth."""

    def scalars(self, step: int, split: str, line: dict[str, Any]) -> None:
        """Draws the numbers of a line."""

    def close(self) -> None:
        """Closes its files."""


class NoTracker:
    """Draws nothing."""

    def scalars(self, step: int, split: str, line: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard:
    """TensorBoard event files by tensorboardX (extra `[tb]`).

    Curves past a resumed step are dropped. Its events are written here and now: its own threads
    would print tracebacks where the disk is full, and its queue would then wait for ever.
    """

    def __init__(self, folder: Path, step: int):
        self._folder, self._step = folder, step
        self._flushed = time.monotonic()

    @functools.cached_property
    def _writer(self) -> Any:
        # at the first line: where torch is installed this imports that, for 2 s
        from tensorboardX.event_file_writer import EventsWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(self._folder / "events"))
        began = self._proto.SessionLog(status=self._proto.SessionLog.START)
        writer.write_event(self._event(self._step + 1, session_log=began))
        return writer

    @functools.cached_property
    def _proto(self) -> Any:  # made when it is imported: no checker knows its names
        from tensorboardX.proto import event_pb2

        return event_pb2

    def _event(self, step: int, **what: Any) -> Any:
        return self._proto.Event(wall_time=time.time(), step=step, **what)

    def scalars(self, step: int, split: str, line: dict[str, Any]) -> None:
        values = [
            {"tag": f"{split}/{name}", "simple_value": value} for name, value in _scalars(line)
        ]
        self._writer.write_event(self._event(step, summary={"value": values}))
        if time.monotonic() - self._flushed > FLUSHED_S:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        if "_writer" in vars(self):
            self._writer.close()


def _scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields (name, value) of the numbers of a line; those of layers have the layer behind them."""
    for name, value in (line | line["gates"]).items():
        if isinstance(value, list):
            yield from ((f"{name}/{i:02d}", v) for i, v in enumerate(value) if v is not None)
        elif isinstance(value, int | float) and name != "step":
            yield name, value


def tracker(folder: Path, step: int) -> Tracker:
    """Returns TensorBoard where tensorboardX is installed, otherwise what draws nothing."""
    return TensorBoard(folder, step) if importlib.util.find_spec("tensorboardX") else NoTracker()
