"""A run from its first step, or from its last checkpoint, to result.json. Everything else is a pure function.

Metrics are read one step late, with one step in flight: the device never waits for Python, and on CPU a longer queue
of collectives deadlocks jax < 0.12. At a given step the order is fixed, so that a resumed run repeats it exactly:
evaluate, save, calibrate, train.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax

from cerebra_jax.checks import need
from cerebra_jax.config import RunCfg, to_dict
from cerebra_jax.errors import Diverged, Preempted, UserError
from cerebra_jax.policies import sampler
from cerebra_jax.training import metrics, step
from cerebra_jax.training import results as result
from cerebra_jax.training.checkpoint import Checkpoints, digest
from cerebra_jax.training.closing import of_dense, quality
from cerebra_jax.training.experiment import Session
from cerebra_jax.training.parallel import DataParallel

CALIBRATION_BATCHES = 8


class Screen(Protocol):
    """Where a run talks to a person."""

    def say(self, line: str) -> None: ...

    def begin(self, total: int, done: int) -> None: ...

    def step(self, done: int, text: str, due: bool) -> None: ...

    def end(self) -> None: ...


class Run:
    """One session of one run. `go` returns what result.json holds."""

    def __init__(self, s: Session, workdir: Path, screen: Screen, stop: Callable[[], bool]):
        self.s, self.workdir, self.screen, self.stop = s, workdir, screen, stop
        self.began, self.pace = time.perf_counter(), metrics.Pace()
        self.environment = result.environment(s.parallel.devices)
        self.checkpoints = Checkpoints(workdir / "checkpoints", screen.say)
        self.pending: tuple[int, int, Any] | None = None  # step, length of its batch, its metrics
        self.ran: set[tuple[int, int, bool, bool]] = set()  # programs of this session
        self.every_log = max(1, s.steps(s.cfg.train.log_every))
        self.signal_at = _chaos()

    def go(self) -> dict[str, Any]:
        with contextlib.ExitStack() as closing:
            closing.callback(self.checkpoints.close)
            self._start()
            closing.callback(self.log.close)
            closing.callback(self.tracker.close)
            closing.callback(self.screen.end)
            self._train()
            self.screen.end()
            return self._finish()

    def _start(self) -> None:
        """Restores the latest intact checkpoint, or starts afresh."""
        s = self.s
        found = self.checkpoints.latest(s.like)
        self.start, self.wall, self.skipped = 0, 0.0, 0
        scored = True
        if found is None:
            self.checkpoints.preflight(s.like)
            host = s.fresh()
        else:
            self.start, host, meta = found
            self.wall, self.skipped = meta["wall_s"], int(host.skipped)
            scored = meta.get("validated", meta["score"] is not None)
            result.same_data(meta["data"], s.task)
            self.screen.say(f"resuming at step {self.start:,} of {s.total:,}")
            if line := result.drift(meta["environment"], self.environment):
                self.screen.say(line)
        s.adopt_of(host)
        self.state, self.drawn = s.parallel.place(host), s.drawn(host, self.start)
        if host.demand:
            s.choose(self.start, int(host.demand["program"]))
            s.choose(self.start + 1, int(host.demand["next"]))
        if found is None:
            step.check_cost_gradient(s.model, self.state, s.task.example(4), s.penalty)
        self.log = metrics.Log(self.workdir / "metrics.jsonl", self.start, scored)
        self.tracker = metrics.tracker(self.workdir / "tensorboard", self.start)
        self.screen.begin(s.total, self.start)

    def _train(self) -> None:
        s, t = self.s, self.s.cfg.train
        every_eval, every_save = s.steps(t.eval_every), s.steps(t.checkpoint_every)
        calibrate_at = {0, s.steps(s.cfg.net.route.calibrate_at)} if self._calibrates() else set()
        at = self.start
        self.bucket = s.bucket(at)
        while True:
            score, saved = None, at == self.start
            if at and (_due(at, every_eval) or at == s.total) and self.log.validation(at) is None:
                score = self._validate(at)
                self._save(at, score)
            elif not saved and _due(at, every_save):
                self._save(at, None)
            else:
                self.checkpoints.check()
            saved = saved or score is not None or _due(at, every_save)
            if at == s.total:
                return
            if self.stop():
                self._preempt(at, saved)
            if at in calibrate_at:
                self._flush()
                held_out = itertools.islice(
                    s.task.eval_batches("valid", s.micro), CALIBRATION_BATCHES
                )
                model = s.built(s.adopted, 0, s.eight(at))
                self.state = s.parallel.place(step.calibrate(model, self.state, held_out))
            if at in s.rounds.plan.steps:
                self._flush()
                host, line = s.prune(at, self.state)
                self.state = s.parallel.place(host)
                self.screen.say(line)
            batch = s.batch(at, self.drawn)
            length = s.length(batch)
            program = self._program(at, length)
            self.state, sums = program.step(self.state, s.parallel.shard(batch), s.key)
            at += 1
            self._flush()
            self.pending = (at, length, sums)
            if self.signal_at and self.signal_at[1] == at:
                os.kill(os.getpid(), self.signal_at[0])

    def _program(self, at: int, length: int) -> DataParallel:
        """The program of the step after `at` steps; says so where it is another than before, or must be compiled."""
        s = self.s
        program = bucket, length, _, _ = s.bucket(at), length, s.draws(at), s.eight(at)
        new, what = program not in self.ran, ""
        if bucket != self.bucket:
            size = "smaller" if bucket > self.bucket else "larger"
            what = f"compiling a {size} program" if new else f"back to the {size} program"
        elif at == s.first_draw:
            what = "the sampler begins: compiling its program"
        elif at == s.eight_from:
            what = "8-bit training begins: compiling its program"
        elif new and self.ran:
            what = "compiling a program"
        if what:
            tokens = f" for {length} tokens" if s.task.shape.lengths else ""
            cost = f"{s.built(bucket, length).executed:.3f} of dense {s.model.unit.label}"
            self.screen.say(f"step {at:,} · {what}{tokens}: {cost}")
        if new:
            self.pace.pause()
        self.bucket = bucket
        self.ran.add(program)
        return s.program(*program)

    def _calibrates(self) -> bool:
        net = self.s.cfg.net
        return (
            net.name == "chiar" and net.route.mode == "threshold" and net.route.tau == "calibrated"
        )

    def _flush(self) -> None:
        """Reads the metrics of the step before this one, and writes its line."""
        if self.pending is None:
            return
        (at, length, sums), self.pending = self.pending, None
        sums = jax.device_get(sums)
        if "program_next" in sums:  # the step after this one is under way already
            self.s.choose(at + 1, int(sums["program_next"][0]))
        if "drawn" in sums:
            self.drawn[at - 1 + sampler.AHEAD] = sums.pop("drawn")
        took = self.pace.lap()
        line = self.s.line(at, "train", metrics.add(None, sums), {length: 1})
        tokens = self.s.cfg.train.batch_size * length
        line["tokens_per_s"] = took and round(tokens / took, 1)
        line["step_ms"] = took and round(took * 1e3, 3)
        self.log.write(line)
        self.skipped = int(line["skipped"] or 0)
        if self.skipped > self.s.cfg.train.max_skips:
            raise Diverged(
                f"step {at}: loss or gradients were not finite {self.skipped} steps in a row",
                "the last checkpoint is finite; lower train.lr, or raise train.max_skips",
            )
        rate = f"{tokens / took:,.0f} tokens/s · " if took else ""
        loss = "loss not finite" if line["loss"] is None else f"loss {line['loss']:.3f}"
        skips = f" · skipped {self.skipped}" if self.skipped else ""
        text = f"{loss} · {of_dense(line)} · {rate}{self.pace.left(self.s.total - at)} left{skips}"
        self.screen.step(at, text, at == 1 or _due(at, self.every_log))
        self.tracker.scalars(at, "train", line)

    def _validate(self, at: int) -> float:
        self._flush()
        self.s.adopt(self.s.bucket(at) if self.s.shares else self.s.adopted, self.s.eight(at))
        line = self.s.evaluate(self.state, at, "valid", self.stop)
        self.pace.pause()
        if line is None:
            self._preempt(at, at == self.start)
        self.log.write(line)
        self.tracker.scalars(at, "valid", line)
        self.screen.say(f"step {at:,} · validation · {quality(line, self.s.task.metrics)}")
        return self.s.score(line)

    def _save(self, at: int, score: float | None) -> None:
        self._flush()
        self.log.sync()
        wall = self.wall + time.perf_counter() - self.began
        validated = score is not None
        if at <= self.s.rounds.last or (self.s.cfg.quant.bits and not self.s.eight(at)):
            score = None  # the result is a model that is pruned, and in 8 bits: no other one is the best
        meta = {
            "step": at,
            "score": score,
            "validated": validated,
            "wall_s": wall,
            "config": to_dict(self.s.cfg),
        }
        meta |= {"data": self.s.task.info(), "environment": self.environment}
        self.checkpoints.save(at, self.state, meta, score)
        self.pace.pause()

    def _preempt(self, at: int, saved: bool) -> None:
        self._flush()
        if not saved:
            self._save(at, None)
        self.checkpoints.wait()
        raise Preempted(
            f"stopped by a signal at step {at}, which is saved"
            if at
            else "stopped before the first step",
            "the same command goes on",
        )

    def _finish(self) -> dict[str, Any]:
        """Evaluates the best checkpoint by validation on the test split, and gathers the result."""
        s = self.s
        self.checkpoints.wait()
        final = digest(self.state.params)
        best = self.checkpoints.best(s.like)
        if best is None:
            raise UserError(
                "no validated checkpoint is intact", "run the same command again, or use --fresh"
            )
        at, host, _ = best
        s.adopt_of(host)
        placed = s.parallel.place(host)
        valid = self.log.validation(at) or s.evaluate(placed, at, "valid", self.stop)
        test = s.evaluate(placed, at, "test", self.stop) if valid else None
        if test is None:
            self._preempt(s.total, True)
        self.log.write(test)
        self.tracker.scalars(at, "test", test)
        self.log.sync()
        wall = self.wall + time.perf_counter() - self.began
        return result.result(s, self.log.path, at, valid, test, final, wall)


def run(
    cfg: RunCfg, task: Any, workdir: Path, screen: Screen, stop: Callable[[], bool] = lambda: False
):
    """Trains to the end; returns what result.json holds. Raises Preempted, Diverged, UserError, DiskError."""
    what = "the weights of this run are int8 (quant.stored)"
    need(not cfg.quant.stored, what, "train the run that it was converted from")
    s = Session(cfg, task)
    for line in result.opening(s):
        screen.say(line)
    return Run(s, workdir, screen, stop).go()


def measure(cfg: RunCfg, task: Any, workdir: Path, split: str, screen: Screen) -> dict[str, Any]:
    """The line of `split` for the best checkpoint of a run; UserError where there is none."""
    s = Session(cfg, task)
    checkpoints = Checkpoints(workdir / "checkpoints", screen.say, read_only=True)
    with contextlib.closing(checkpoints):
        best = checkpoints.best(s.like)
        if best is None:
            raise UserError(f"{workdir} has no intact validated checkpoint", "train it first")
    at, host, meta = best
    s.adopt_of(host)
    result.same_data(meta["data"], task)
    return s.evaluate(s.parallel.place(host), at, split, lambda: False) | {
        "causal": s.model.causal,
        "notice": s.notice,
    }


def _due(at: int, every: int) -> bool:
    return every > 0 and at > 0 and at % every == 0


def _chaos() -> tuple[int, int] | None:
    """(signal, step) of CEREBRA_CHAOS=SIGKILL@37: the run shoots itself after that step. For tests."""
    text = os.environ.get("CEREBRA_CHAOS")
    if not text:
        return None
    name, _, at = text.partition("@")
    return signal.Signals[name], int(at)
