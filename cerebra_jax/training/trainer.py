"""A run from its first step, or from its last checkpoint, to result.json.

Metrics are read one step late, with one step in flight: the device never waits for Python, and on
CPU a longer queue of collectives deadlocks jax < 0.12. At a given step the order is fixed, so that
a resumed run repeats it exactly: evaluate, save, calibrate, prune, divide the slots, train.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from cerebra_jax.checks import joined, require
from cerebra_jax.config import RunCfg, reads, to_dict
from cerebra_jax.errors import Diverged, Preempted, UserError
from cerebra_jax.policies import sampler
from cerebra_jax.tasks.task import Task
from cerebra_jax.training import finished, lines, metrics, preprocessing, processes, results, step
from cerebra_jax.training.checkpoint import Checkpoints, digest
from cerebra_jax.training.experiment import Experiment, Serving, prepare
from cerebra_jax.training.initial import begun
from cerebra_jax.training.lines import Evaluated, Measured
from cerebra_jax.training.memory import Room
from cerebra_jax.training.parallel import DataParallel
from cerebra_jax.training.programs import Program, Programs
from cerebra_jax.training.recorder import Position, Recorder, Screen

CALIBRATION_BATCHES = 8
MANY_LAYERS = 32  # from here on compiling them takes long enough to say so


class InFlight(NamedTuple):
    """A step that was given to the device, and whose metrics were not read yet."""

    step: int  # optimizer steps when it is done
    tokens: int  # of each example
    sums: Any


class Due(NamedTuple):
    """When something happens besides training, in steps; 0: never."""

    evaluate: int
    save: int
    calibrate: frozenset[int]
    prune: frozenset[int]
    divide: frozenset[int]

    @classmethod
    def of(cls, e: Experiment) -> Due:
        """Returns the times of an experiment."""
        net, train = e.cfg.net, e.cfg.train
        route = net.route
        calibrates = route.mode == "threshold" and route.tau == "calibrated"
        at = {0, e.length.steps(route.calibrate_at)}
        return cls(
            evaluate=e.length.steps(train.eval_every),
            save=e.length.steps(train.checkpoint_every),
            calibrate=frozenset(at if net.name == "chiar" and calibrates else ()),
            prune=frozenset(e.rounds.plan.steps),
            divide=frozenset(_divisions(e) if e.divides else ()),
        )


class Trainer:
    """One session of one run. `train` returns what result.json holds."""

    def __init__(
        self,
        programs: Programs,
        workdir: Path,
        screen: Screen,
        stop: Callable[[], bool],
        unread: Callable[[], list[str]] = list,
    ):
        self.experiment = programs.experiment
        self.programs = programs
        self.workdir = workdir
        self.screen = screen
        self.stop = stop
        self.unread = unread  # which keys of the configuration nothing has read so far
        self.began = time.perf_counter()
        self.due = Due.of(self.experiment)
        self.environment = results.environment(programs.devices)
        self.checkpoints = Checkpoints(workdir / "checkpoints", screen.say)
        self.signal = _chaos()
        # what changes from step to step, besides the state
        self.in_flight: InFlight | None = None
        self.compiled: set[Program] = set()
        self.drawn: dict[int, sampler.Drawn] = {}
        self.sizes: dict[int, int] = {}  # chosen by adaptive capacity, by step
        self.passed_over = 0  # batches that a rollback left out

    def train(self) -> dict[str, Any]:
        """Runs to the end, from wherever the folder says; closes all files whatever happens."""
        with contextlib.ExitStack() as closing:
            closing.callback(self.checkpoints.close)
            self._start()
            closing.callback(lambda: self.recorder.close())  # a rollback begins another one
            closing.callback(self.screen.end)
            try:
                self._loop()
            except Diverged as error:
                self._roll_back(error)
                self._loop()
            self.screen.end()
            return self._finish()

    def _start(self, ahead: int = 0) -> None:
        """Restores the latest intact checkpoint, or begins afresh; leaves out `ahead` batches."""
        e = self.experiment
        found = self.checkpoints.latest(e.like)
        if found is None:
            self.checkpoints.preflight(e.like)
            host, self.start = begun(e.cfg, e.task, e.fresh(), self.screen.say), Position()
            self.passed_over = ahead
        else:
            host, self.start = found.state, self._resumed(found.meta, found.step)
            self.passed_over = found.meta.get("passed_over", 0) + ahead

        # what follows from the state
        self.serving = e.serving(host)
        self.state = self.programs.place(host)
        self.drawn = e.drawn(host, self.start.step)
        if e.sizes.slots:
            announced = int(host.demand["program"]), int(host.demand["next"])
            self.sizes = dict(enumerate(announced, self.start.step))
        self.by_layer = self.serving.by_layer
        self.size = self._size(self.start.step)
        if found is None:
            model = e.model_of(self.serving)
            step.check_cost_gradient(model, self.state, e.task.example(4), e.penalty)
        self.recorder = Recorder(self.experiment, self.workdir, self.screen, self.start)

    def _roll_back(self, error: Diverged) -> None:
        """Goes back to the last checkpoint and leaves out the batches since, the first time only.

        Raises the error where it may not. A run that is killed on the way does all of that again.
        """
        if self.experiment.cfg.train.on_nonfinite != "rollback" or self.passed_over:
            raise error
        self.screen.end()
        self.recorder.close()
        self.in_flight = None
        failed = int(self.state.step)
        steps = self.checkpoints.steps()
        back = steps[0] if steps else 0
        self.screen.say(f"{error.what}: back to step {back:,}, and on with other batches")
        self._start(ahead=failed - back)

    def _resumed(self, meta: dict[str, Any], at: int) -> Position:
        """Returns where a checkpoint stands; says what is not as it was when it was written."""
        results.same_data(meta["data"], self.experiment.task)
        self.screen.say(f"resuming at step {at:,} of {self.experiment.length.total:,}")
        if line := results.drift(meta["environment"], self.environment):
            self.screen.say(line)
        # checkpoints of earlier versions do not say whether they were validated
        scored = meta["validated"] if "validated" in meta else meta["score"] is not None
        return Position(at, meta["wall_s"], scored)

    def _loop(self) -> None:
        """Takes the steps, and does what is due between them."""
        at = self.start.step
        while True:
            saved = self._checked(at)
            if at == self.experiment.length.total or self._exhausted(at):
                return
            if self.stop():
                self._preempt(at, saved)
            if at in self.due.calibrate:
                self._calibrate(at)
            if at in self.due.prune:
                self._prune(at)
            if at in self.due.divide:
                self._divide(at)
            self._step(at)
            at += 1
            if self.signal and self.signal[1] == at:
                os.kill(os.getpid(), self.signal[0])

    def _checked(self, at: int) -> bool:
        """Evaluates and saves where that is due; returns whether the state is on disk."""
        saves = _is_due(at, self.due.save)
        evaluates = at and (_is_due(at, self.due.evaluate) or at == self.experiment.length.total)
        if evaluates and self.recorder.validation(at) is None:
            self._save(at, self._validate(at))
            return True
        if saves and at != self.start.step:
            self._save(at, None)
        else:
            self.checkpoints.check()
        return saves or at == self.start.step

    def _exhausted(self, at: int) -> bool:
        """Returns whether so many validations, the one at `at` the last, were no better."""
        patience = self.experiment.cfg.train.patience
        if not patience or self.recorder.validation(at) is None:
            return False
        best, since = self.recorder.best()
        if since < patience:
            return False
        plural = "validations were" if since > 1 else "validation was"
        self.screen.say(
            f"step {at:,} · {since} {plural} no better than that of step {best:,}: "
            f"stopped early; more train.patience and a longer train.duration go on"
        )
        return True

    def _calibrate(self, at: int) -> None:
        """Measures the thresholds on held-out batches."""
        self._flush()
        e = self.experiment
        held_out = itertools.islice(e.task.eval_batches("valid", e.micro), CALIBRATION_BATCHES)
        model = e.model_of(self.serving._replace(quantized=e.quantized(at)))
        self.state = self.programs.place(step.calibrate(model, self.state, held_out))

    def _prune(self, at: int) -> None:
        """Takes a round of pruning."""
        self._flush()
        rounds = self.experiment.rounds
        masks, line = rounds.turn(at, self.state.params, self.state.prune)
        self.serving = self.serving._replace(remaining=rounds.relative(masks))
        self.state = self.programs.place(self.state.replace(prune=masks))
        for text in [line, *(rounds.missed(masks) if at == rounds.last else [])]:
            self.screen.say(text)

    def _divide(self, at: int) -> None:
        """Moves slots to the layers that want them; says so where any moved."""
        self._flush()
        sizes, size, own = self.experiment.sizes, self._size(at), self.state.division
        wanted = jax.device_get(own["wanted_R"]).tolist()
        found = sizes.divide(size, self.by_layer, wanted)
        if found == self.by_layer:
            return
        before = sizes.layer_slots(self._size(at - 1), self.by_layer)
        after = sizes.layer_slots(size, found)
        moved = f"slots of the layers {joined(before)} -> {joined(after)}"
        asked = joined(round(share, 2) for share in wanted)
        self.screen.say(f"step {at:,} · {moved}, which want {asked} of their tokens")
        self.by_layer = found
        state = self.state.replace(division=own | {"by_layer_R": np.asarray(found, np.float32)})
        self.state = self.programs.place(state)

    def _step(self, at: int) -> None:
        """Starts the step after `at` steps, and reads the metrics of the one before it."""
        batch = self.experiment.batch(at, self.drawn, self.passed_over)
        tokens = self.experiment.tokens(batch)
        program = self._program(at, tokens)
        placed = self.programs.shard(batch)
        self.state, sums = program.step(self.state, placed, self.experiment.key)
        self._flush()
        self.in_flight = InFlight(at + 1, tokens, sums)
        if at == self.start.step:  # all is compiled: what will ever be read has been
            for key in self.unread():
                self.screen.say(f"warning: {key} is set and has no effect in this run")

    def _size(self, at: int) -> int:
        """Returns the size of the program that takes the step after `at` steps."""
        if self.experiment.sizes.plan:
            return self.experiment.sizes.plan.bucket(at)
        return self.sizes[at] if self.experiment.sizes.slots else 0

    def _program(self, at: int, tokens: int) -> DataParallel:
        """Returns the program of the step after `at` steps.

        Says so where it is another, or must be compiled.
        """
        e = self.experiment
        program = Program(self._size(at), tokens, e.draws(at), e.quantized(at), self.by_layer)
        new = program not in self.compiled
        if what := self._change(at, program, new):
            length = f" for {tokens} tokens" if e.task.shape.lengths else ""
            model = e.sizes.model(program.size, tokens, by_layer=self.by_layer)
            cost = f"{model.executed:.3f}"
            label = e.model.unit.label
            self.screen.say(f"step {at:,} · {what}{length}: {cost} of dense {label}")
        if new:
            self.recorder.pace.pause()
        self.size = program.size
        self.compiled.add(program)
        return self.programs.of(program)

    def _change(self, at: int, program: Program, new: bool) -> str:
        """Returns why a program is another one than that of the step before.

        Empty where it is the same.
        """
        if program.size != self.size:
            size = "smaller" if program.size > self.size else "larger"
            return f"compiling a {size} program" if new else f"back to the {size} program"
        if self.experiment.sampling and at == self.experiment.sampling.first:
            return "the sampler begins: compiling its program"
        if at == self.experiment.quantized_from:
            return "8-bit training begins: compiling its program"
        return "compiling a program" if new and self.compiled else ""

    def _flush(self) -> None:
        """Reads the metrics of the step in flight, and writes its line."""
        if self.in_flight is None:
            return
        (at, tokens, sums), self.in_flight = self.in_flight, None
        sums = jax.device_get(sums)
        if "program_next" in sums:  # the step after this one is under way already
            self.sizes[at + 1] = int(sums["program_next"][0])
        if "drawn" in sums:
            self.drawn[at - 1 + sampler.AHEAD] = sums.pop("drawn")
        serving = Serving(
            self._size(at - 1),
            self.experiment.quantized(at - 1),
            self.serving.remaining,
            self.by_layer,
        )
        self.sizes.pop(at - 2, None)
        measured = Measured(at, "train", metrics.add(None, sums), {tokens: 1}, serving)
        self.recorder.train(lines.line(self.experiment, measured), tokens)

    def _validate(self, at: int) -> float:
        """Returns the validation score of the state after `at` steps."""
        self._flush()
        self.serving = self.experiment.serving(self.state)
        what = Evaluated(self.state, at, self.serving)
        line = lines.evaluate(self.programs, what, "valid", self.stop)
        self.recorder.pace.pause()
        if line is None:
            self._preempt(at, at == self.start.step)
        self.recorder.valid(line)
        return self.experiment.score(line)

    def _save(self, at: int, score: float | None) -> None:
        """Saves the state after `at` steps, and before it all lines up to there."""
        self._flush()
        if self.recorder.huge:  # the last checkpoint stays the last good one
            return
        self.recorder.sync()
        # the result is a model that is pruned, and in 8 bits: no other one can be the best
        unfinished = at <= self.experiment.rounds.last
        unfinished |= bool(self.experiment.cfg.quant.bits) and not self.experiment.quantized(at)
        meta = {
            "step": at,
            "score": None if unfinished else score,
            "validated": score is not None,
            "wall_s": self._wall(),
            "config": to_dict(self.experiment.cfg),
            "data": self.experiment.task.info(),
            "environment": self.environment,
            "passed_over": self.passed_over,
        }
        self.checkpoints.save(at, self.state, meta, meta["score"])
        self.recorder.pace.pause()

    def _wall(self) -> float:
        """Returns the seconds that all sessions of the run took so far."""
        return self.start.wall + time.perf_counter() - self.began

    def _preempt(self, at: int, saved: bool) -> NoReturn:
        """Leaves the run such that the same command goes on with it."""
        self._flush()
        if not saved:
            self._save(at, None)
        self.checkpoints.wait()
        where = f"stopped by a signal at step {at}, which is saved"
        if self.recorder.huge:
            where = f"stopped by a signal at step {at}, whose loss is huge and which is not saved"
        raise Preempted(
            where if at else "stopped before the first step", "the same command goes on"
        )

    def _finish(self) -> dict[str, Any]:
        """Evaluates the best checkpoint by validation on the test split, and gathers the result."""
        self.checkpoints.wait()
        final = digest(self.state.params)
        best = self.checkpoints.best(self.experiment.like)
        if best is None:
            raise UserError(
                "no validated checkpoint is intact", "run the same command again, or use --fresh"
            )
        serving = self.experiment.serving(best.state)
        what = Evaluated(self.programs.place(best.state), best.step, serving)
        valid = self.recorder.validation(best.step)
        valid = valid or lines.evaluate(self.programs, what, "valid", self.stop)
        test = valid and lines.evaluate(self.programs, what, "test", self.stop)
        if valid is None or test is None:
            self._preempt(int(self.state.step), True)
        self.recorder.test(test)
        steps = int(self.state.step)
        ended = results.Ended(steps, best.step, serving, valid, test, final, self._wall())
        found = results.result(self.programs, self.recorder.path, ended)
        for line in results.clipped(found):
            self.screen.say(line)
        return found


def run(
    cfg: RunCfg,
    task: Task,
    workdir: Path,
    screen: Screen,
    stop: Callable[[], bool] = lambda: False,
    force: bool = False,
) -> dict[str, Any]:
    """Trains to the end; returns what result.json holds.

    Where cfg is `config.reads.watched`, it says which keys have no effect. force: also where
    memory is not enough by what is known before the first step. Raises Preempted where `stop` said
    so, Diverged, UserError or DiskError.
    """
    processes.require_one()
    require(
        not cfg.quant.stored,
        "the weights of this run are int8 (quant.stored)",
        "train the run that it was converted from",
    )
    require(cfg.train.lr > 0, "train.lr is 0: nothing would be learnt", "give a positive one")
    preprocessing.keep(workdir, cfg, task)
    room = Room.of(cfg, task, force)
    with room.explained():
        room.outline(task)
        if line := _long(cfg):
            screen.say(line)
        experiment = prepare(cfg, task)
        room.outline_state(experiment.like)
        programs = Programs(experiment, room.devices, room)
        for line in results.opening(programs):
            screen.say(line)
        return Trainer(programs, workdir, screen, stop, lambda: reads.unread(cfg)).train()


def measure(cfg: RunCfg, task: Task, workdir: Path, split: str, screen: Screen) -> dict[str, Any]:
    """Returns the line of `split` for the best checkpoint of a run.

    Raises UserError where there is none.
    """
    best = finished.load(cfg, task, workdir, screen.say)
    programs = Programs(best.experiment)
    what = Evaluated(programs.place(best.state), best.step, best.serving)
    line = lines.evaluate(programs, what, split, lambda: False)
    assert line is not None, "nothing stops this evaluation"
    return line | {"causal": best.model.causal, "notice": best.notice}


def _long(cfg: RunCfg) -> str:
    """Returns a line where many layers are compiled one by one, which takes minutes."""
    with reads.paused():
        layers = 1 if cfg.net.scan else cfg.net.depth
    if layers < MANY_LAYERS:
        return ""
    return f"compiling the step of {layers:,} layers, each by itself: net.scan=True compiles one"


def _divisions(e: Experiment) -> list[int]:
    """Returns the steps before which slots are divided by demand.

    They are the changes of a budget's program. A run of one program has net.route.divide_at.
    """
    changes = e.sizes.plan.changes(e.length.total) if e.sizes.plan else []
    return changes or [e.length.steps(e.cfg.net.route.divide_at)]


def _is_due(at: int, every: int) -> bool:
    return every > 0 and at > 0 and at % every == 0


def _chaos() -> tuple[int, int] | None:
    """Returns (signal, step) of CEREBRA_CHAOS=SIGKILL@37: the run shoots itself after that step.

    For tests.
    """
    text = os.environ.get("CEREBRA_CHAOS")
    if not text:
        return None
    name, _, at = text.partition("@")
    return signal.Signals[name], int(at)
