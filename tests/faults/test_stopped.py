"""Kills and signals at random moments: the same command ends as if nothing had happened.

Everything is drawn from fixed seeds. tests/test_kill.py has the few that run by default.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import runs
from tests.faults.record import Counts, record

pytestmark = pytest.mark.faults
AT_STEPS = {"text": 24, "table": 16, "everything": 10}
IN_SAVES = {"text": 8, "table": 7, "everything": 5}
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")
AT_A_STEP, EARLY = 13, 12
IN_A_ROW = 4  # times that one run is stopped before it may end


class Stopped:
    """One run that is stopped now and then; `counts` says what went wrong."""

    def __init__(self, forks, kind: str, data: Path, folder: Path, counts: Counts):
        folder.mkdir()
        self.folder, self.workdir, self.counts = folder, folder / "run", counts
        self._forks, self._kind, self._data = forks, kind, data

    def stop(self, checkpoint_every: str = "3 steps", **extra) -> int:
        """Runs until it is stopped; returns the status."""
        ended = self._run(checkpoint_every, **extra)
        self.counts.times += 1
        return ended.status

    def finish(self, reference: Path, checkpoint_every: str = "3 steps") -> None:
        """Runs to the end, and compares with the run that nothing happened to."""
        ended = self._run(checkpoint_every)
        case = f"{self.folder}: {ended.err[-300:]}"
        self.counts.check(ended.status == 0, "not finished", case)
        is_same = runs.same(self.workdir, reference)
        self.counts.check(is_same, "another result", case)
        if is_same:
            self.counts.end("runs finished, equal bit for bit")

    def _run(self, checkpoint_every: str, **extra):
        words = runs.words(self._kind, self._data, self.workdir, checkpoint_every=checkpoint_every)
        ended = self._forks.run(words, self.folder, **extra)
        crashed = "Traceback" in ended.out + ended.err or (self.workdir / "crash.txt").exists()
        self.counts.check(not crashed, "tracebacks", f"{self.folder} {extra}: {ended.err[-300:]}")
        return ended


def counts_of_stops() -> Counts:
    return Counts("another status", "not finished", "another result", "tracebacks")


@pytest.mark.parametrize("kind", runs.KINDS)
def test_killed_at_random_steps(kind, forks, data, reference, tmp_path):
    rng, counts = random.Random(f"steps {kind}"), counts_of_stops()
    while counts.times < AT_STEPS[kind]:
        run = Stopped(forks, kind, data[kind], tmp_path / str(counts.times), counts)
        often = min(IN_A_ROW, AT_STEPS[kind] - counts.times)
        for step in sorted(rng.sample(range(1, runs.STEPS + 1), often)):
            status = run.stop(chaos=f"SIGKILL@{step}")
            counts.check(status == -9, "another status", f"{status} at step {step}")
        run.finish(reference(kind))
    record(f"SIGKILL after a random step, {kind}", counts)


@pytest.mark.parametrize("kind", runs.KINDS)
def test_killed_inside_saves(kind, forks, data, reference, tmp_path):
    """A checkpoint after every step; the kill comes within 30 ms of the beginning of a save."""
    rng, counts = random.Random(f"saves {kind}"), counts_of_stops()
    while counts.times < IN_SAVES[kind]:
        run = Stopped(forks, kind, data[kind], tmp_path / str(counts.times), counts)
        for _ in range(min(IN_A_ROW, IN_SAVES[kind] - counts.times)):
            at = (rng.randint(1, 5), rng.uniform(0, 30))
            status = run.stop("1 steps", kill_in_save=at)
            counts.check(status == -9, "another status", f"{status} in a save {at}")
        run.finish(reference(kind), "1 steps")
    record(f"SIGKILL inside a save, 0 to 30 ms after it began, {kind}", counts)


def test_signals_at_random_steps(forks, data, reference, tmp_path):
    rng, counts = random.Random("signals"), counts_of_stops()
    while counts.times < AT_A_STEP:
        kind = rng.choice(list(runs.KINDS))
        run = Stopped(forks, kind, data[kind], tmp_path / str(counts.times), counts)
        often = min(IN_A_ROW, AT_A_STEP - counts.times)
        for step in sorted(rng.sample(range(1, runs.STEPS), often)):
            status = run.stop(chaos=f"{rng.choice(SIGNALS)}@{step}")
            saved = (run.workdir / "checkpoints" / str(step)).is_dir()
            counts.check(status == 75 and saved, "another status", f"{status} at step {step}")
        run.finish(reference(kind))
    record("SIGTERM, SIGINT or SIGHUP after a random step", counts)


def test_signals_in_the_first_seconds(clean_env, forks, data, reference, tmp_path):
    """Half of them within the first second, half within the first eight."""
    rng, counts = random.Random("early"), counts_of_stops()
    workdir = tmp_path / "run" / "run"
    run = Stopped(forks, "text", data["text"], tmp_path / "run", counts)
    for i in range(EARLY):
        name, after = rng.choice(SIGNALS), rng.uniform(0, 8 if i % 2 else 1)
        words = [sys.executable, "-m", "cerebra_jax.main"]
        words += runs.words("text", data["text"], workdir, checkpoint_every="3 steps")
        began = workdir.exists()
        with subprocess.Popen(
            words, env=clean_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            time.sleep(after)
            process.send_signal(signal.Signals[name])
            out, err = process.communicate(timeout=300)
        counts.times += 1
        case = f"{name} after {after:.2f} s: {process.returncode} {err[-300:]}"
        if process.returncode == 75:
            counts.end("status 75")
            counts.check(err.count("\n") == 1, "tracebacks", case)
        else:  # before `main` took the signal over; nothing of the run may be there yet
            nothing = began or not workdir.exists()
            by_signal = process.returncode in (130, -signal.Signals[name])
            counts.check(by_signal and nothing, "another status", case)
            counts.end("ended by the signal itself before anything began")
    run.finish(reference("text"))
    record("SIGTERM, SIGINT or SIGHUP in the first seconds", counts)
