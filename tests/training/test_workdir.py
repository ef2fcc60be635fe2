"""The folder of a run: one run, one process at a time, and never another configuration."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.training import workdir as folder

HOLD = """
import sys, time
from pathlib import Path
from cerebra_jax.training import workdir
with workdir.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, clean_env):
    """Another process that holds the lock of tmp_path."""
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, env=clean_env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_live_lock_refuses_and_a_dead_one_is_taken_over(tmp_path, holder):
    with pytest.raises(UserError, match=f"process {holder.pid} on "), folder.locked(tmp_path):
        pass
    with pytest.raises(UserError, match="in use"):
        folder.prepare(tmp_path, True, print)  # --fresh does not move a folder that is in use
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    said = []
    with folder.locked(tmp_path, said.append):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert len(said) == 1 and str(holder.pid) in said[0]
    with folder.locked(tmp_path, said.append):
        pass
    with pytest.raises(KeyboardInterrupt), folder.locked(tmp_path, said.append):
        raise KeyboardInterrupt
    with folder.locked(tmp_path, said.append):
        pass
    assert len(said) == 1  # closed in order: nothing to say


def started(workdir, cfg) -> None:
    folder.claim(workdir, cfg)
    (workdir / "metrics.jsonl").write_text("")


def test_every_changed_key_is_refused_and_named(tmp_path):
    cfg = config.parse({})
    started(tmp_path, cfg)
    folder.claim(tmp_path, cfg)
    for key, f in config.fields().items():
        other = {
            bool: lambda v: not v,
            int: lambda v: v + 1,
            float: lambda v: v + 0.5,
            str: lambda v: v + "x",
            tuple: lambda v: (*v, 1),
        }
        values = config.to_dict(cfg)
        node = values
        *sections, last = key.split(".")
        for section in sections:
            node = node[section]
        node[last] = other[type(f.default)](node[last])
        changed = folder.differences(config.to_dict(cfg), values)
        assert set(changed) == (set() if key in folder.MAY_CHANGE else {key})
    changed = config.parse({"train": {"duration": "7 steps", "eval_every": "1 steps"}})
    with pytest.raises(
        UserError, match=r"train.duration '600 steps' -> '7 steps', train.eval_every .*--fresh"
    ):
        folder.claim(tmp_path, changed)
    assert config.parse((tmp_path / "config.json").read_text()) == cfg


def test_a_run_that_never_began_takes_a_mended_configuration(tmp_path):
    folder.claim(tmp_path, config.parse({}))
    mended = config.parse({"task": {"data_dir": "elsewhere"}})
    folder.claim(tmp_path, mended)
    assert config.parse((tmp_path / "config.json").read_text()) == mended


def test_fresh_moves_aside_and_never_deletes(tmp_path):
    run, said = tmp_path / "run", []
    for i in range(3):
        folder.prepare(run, True, said.append)
        (run / "mine").write_text(str(i))
    assert [(tmp_path / f"run.old{i}" / "mine").read_text() for i in (1, 2)] == ["0", "1"]
    assert len(said) == 2


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="choose another --workdir"):
            folder.prepare(path, False, print)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="damaged"):
        folder.claim(tmp_path, config.parse({}))
    (tmp_path / "config.json").unlink()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="without config.json"):
        folder.claim(tmp_path, config.parse({}))


def test_json_is_written_whole_or_not_at_all(tmp_path):
    folder.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError):
        folder.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert folder.read_json(tmp_path / "a.json") == {"x": 1}
    assert folder.read_json(tmp_path / "none.json") is None


def test_noise_goes_to_the_log_and_stderr_comes_back(tmp_path, capfd):
    with folder.quiet(tmp_path / "log.txt", False):
        os.write(2, b"from C++\n")
        print("from Python", file=sys.stderr)
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "after\n"
    text = (tmp_path / "log.txt").read_text()
    assert "from C++" in text and "from Python" in text
    with folder.quiet(tmp_path / "log.txt", True):
        os.write(2, b"shown\n")
    assert capfd.readouterr().err == "shown\n"
