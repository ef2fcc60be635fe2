"""A long run of tiny steps: nothing grows, nothing is compiled again."""

from __future__ import annotations

import json

import pytest

from tests import runs
from tests.faults.record import Counts, record

STEPS, SETTLED, EVERY = 20_000, 2_000, 500
GROWTH = 0.05


@pytest.mark.faults
def test_a_long_run_keeps_its_memory_its_files_and_its_program(forks, data, tmp_path):
    counts = Counts("traces after the first", "more open files", "memory above its bound")
    probe = tmp_path / "probe"
    words = runs.words(
        "table",
        data["table"],
        tmp_path / "run",
        duration=f"{STEPS} steps",
        eval_every="1000 steps",
        checkpoint_every="1000 steps",
        log_every="1000 steps",
    )
    ended = forks.run(words, tmp_path, probe=str(probe), every=EVERY)
    assert ended.status == 0, ended
    found = [json.loads(line) for line in probe.read_text().splitlines()]
    assert [line["step"] for line in found] == list(range(EVERY, STEPS + 1, EVERY))
    late = [line for line in found if line["step"] >= SETTLED]
    first, last = late[0], late[-1]
    counts.times = STEPS

    # whatever is traced again is compiled again, or read from the cache of programs, which counts
    traces = last["compiled"] - first["compiled"]
    counts.check(traces == 0, "traces after the first", f"{traces}")
    # as many files after the first validation and the first saves as at the end
    files = {line["files"] for line in late}
    counts.check(len(files) == 1, "more open files", f"{files}")
    growth = last["resident"] / first["resident"] - 1
    counts.check(growth <= GROWTH, "memory above its bound", f"{growth:.1%}")
    counts.ended = {
        f"MB resident at step {SETTLED:,}": round(first["resident"] / 1e6),
        f"MB at step {STEPS:,}": round(last["resident"] / 1e6),
        "open files": max(files),
        "program": last["programs"],
    }
    record(f"steps in one run, table; memory may grow by {GROWTH:.0%}", counts)
