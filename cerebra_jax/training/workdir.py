"""The folder of a run: who may write in it, whether it is this run, and whether the run is done.

Imports no JAX.

config.json metrics.jsonl result.json checkpoints/ tensorboard/ log.txt run.lock crash.txt;
screen.txt: of a sweep's run
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cerebra_jax import config, documents
from cerebra_jax.errors import Busy, UserError
from cerebra_jax.report import runs

# where prepared data lies, who computes, how a DCT is computed and when to stop: not what
MAY_CHANGE = (
    "task.cache_dir",
    "train.devices",
    "train.patience",
    "train.max_skips",
    "train.on_nonfinite",
    "net.route.dct",
    "net.remat",
)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file at once or not at all."""
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, allow_nan=False)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)


HINT = "move it away, or use --fresh"


def read_json(path: Path, shape: documents.Shape = documents.ANY) -> Any:
    """Returns the value of a JSON file that has this shape, None where there is none.

    Raises UserError where it is broken.
    """
    return documents.read(path, shape, HINT) if path.exists() else None


def result(workdir: Path) -> dict[str, Any] | None:
    """Returns the result.json of a run, checked; None where there is none."""
    file = workdir / "result.json"
    return runs.read_result(file, HINT) if file.exists() else None


def _configuration(workdir: Path) -> dict[str, Any] | None:
    """Returns the config.json of a folder in today's form, None where there is none."""
    file = workdir / "config.json"
    return runs.read_configuration(file, HINT) if file.exists() else None


def _silent(line: str) -> None:
    """Logs nothing."""


@contextlib.contextmanager
def locked(workdir: Path, say: Callable[[str], None] = _silent) -> Iterator[None]:
    """Holds WORKDIR/run.lock; Busy names the process that holds it already.

    The lock is flock(2)'s: the kernel drops it when its process dies, however it dies, so a stale
    one is simply taken. The text in the file (pid, host, start) is for people, and for file systems
    that keep locks per machine: a run that another machine never closed is taken over with a line
    that says so.
    """
    with open(workdir / "run.lock", "a+", encoding="utf-8") as f:
        f.seek(0)
        holder = _holder(f.read())
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy(
                f"{workdir} is in use by {holder or 'another process'}",
                "wait for it, stop it, or choose another --workdir",
            ) from None
        if holder:
            say(f"warning: {workdir} was left by {holder} without closing it: taken over")
        try:
            f.truncate(0)
            start = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            f.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "start": start}))
            f.flush()
            yield
        finally:  # however it ends, it ends in order; a killed process leaves its name
            f.truncate(0)  # never unlinked: another process may have it open already


def _holder(text: str) -> str:
    """Returns which process a lock file names; empty where it names none."""
    try:
        held = json.loads(text)
        return f"process {held['pid']} on {held['host']} since {held['start']}"
    except (ValueError, KeyError, TypeError):
        return ""


def prepare(workdir: Path, fresh: bool, say: Callable[[str], None]) -> None:
    """Makes the folder.

    --fresh moves an old one aside, where no process is using it, and never deletes.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file", "choose another --workdir")
    if fresh and workdir.is_dir() and any(workdir.iterdir()):
        with locked(workdir):
            aside = next(
                p
                for i in range(1, 10_000)
                if not (p := workdir.with_name(f"{workdir.name}.old{i}")).exists()
            )
            workdir.rename(aside)
        say(f"moved the earlier run to {aside}")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (PermissionError, FileExistsError, NotADirectoryError) as e:
        raise UserError(
            f"cannot make {workdir} ({e.strerror})", "choose another --workdir"
        ) from None
    if not os.access(workdir, os.W_OK):
        raise UserError(f"cannot write in {workdir}", "choose another --workdir")


def claim(workdir: Path, cfg: config.RunCfg, say: Callable[[str], None] = _silent) -> None:
    """Writes config.json, or checks that it is this configuration.

    train.duration may be longer than before: the run goes on, and the result that it had is kept as
    result-STEPS.json. UserError names the keys that differ.
    """
    check(workdir, cfg)
    if grows(workdir, cfg):
        say(
            f"train.duration {_duration(workdir)} -> {cfg.train.duration}: from here on the "
            "schedules are those of the longer run, so the learning rate may rise"
        )
        found = result(workdir)
        if found is not None:
            kept = workdir / f"result-{found['steps']}.json"
            os.replace(workdir / "result.json", kept)
            say(f"the result of {found['steps']:,} steps is kept: {kept}")
    write_json(workdir / "config.json", config.to_dict(cfg))


def grows(workdir: Path, cfg: config.RunCfg) -> bool:
    """Returns whether WORKDIR holds the begin of this run, which was to be shorter."""
    return _begun(workdir) and _duration(workdir) not in (None, cfg.train.duration)


def _duration(workdir: Path) -> str | None:
    """Returns the train.duration of the run in WORKDIR; None without a run."""
    old = _configuration(workdir)
    return None if old is None else old["train"]["duration"]


def _begun(workdir: Path) -> bool:
    return (workdir / "metrics.jsonl").exists() or (workdir / "checkpoints").exists()


def _is_longer(old: Any, new: Any) -> bool:
    """Returns whether a duration is longer than another one in the same unit."""
    found = [re.fullmatch(r"\s*([\d.]+)\s*(\w+?)s?\s*", str(text)) for text in (old, new)]
    if not all(found):
        return False
    (a, unit), (b, other) = (match.groups() for match in found if match)
    return unit == other and float(b) > float(a)


def check(workdir: Path, cfg: config.RunCfg) -> None:
    """Raises UserError where WORKDIR holds another run; it names the keys that differ.

    A folder in which no step was ever taken (its data was missing, say) takes any configuration.
    """
    old = _configuration(workdir)
    if _begun(workdir):
        if old is None:
            raise UserError(
                f"{workdir} holds a run without config.json",
                "use --fresh, or choose another --workdir",
            )
        changed = [
            f"{k} {documents.described(a)} -> {documents.described(b)}"
            for k, (a, b) in differences(old, config.to_dict(cfg)).items()
            if not (k == "train.duration" and _may_grow(cfg) and _is_longer(a, b))
        ]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UserError(
                f"{workdir} holds another run: {', '.join(changed[:3])}{more}",
                "use --fresh to move it aside, or choose another --workdir",
            )


def _may_grow(cfg: config.RunCfg) -> bool:
    """Returns whether a run may become longer: none of its phases is over for good."""
    return not (cfg.prune.on or cfg.quant.bits or cfg.objective.budget)


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (old value, new value)} of two nested configurations.

    The keys that may change on resume are left out.
    """
    flat_old, flat_new = _flat(old), _flat(new)
    keys = [k for k in {**flat_old, **flat_new} if k not in MAY_CHANGE]
    return {
        k: (flat_old.get(k), flat_new.get(k)) for k in keys if flat_old.get(k) != flat_new.get(k)
    }


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns {"net.width": 64} of a nested configuration."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out |= {f"{key}.{name}": x for name, x in _flat(value).items()}
        else:
            out[key] = value
    return out


@contextlib.contextmanager
def quiet(log: Path, verbose: bool) -> Iterator[None]:
    """Sends what libraries write to stderr to a file, at descriptor level.

    That is XLA, TensorStore and Python warnings alike.

    C++ code writes to descriptor 2 whatever Python's sys.stderr is, so nothing less is quiet. Our
    own lines go to stdout, and errors are printed after this context has ended.
    """
    if verbose:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    python_stderr = sys.stderr
    try:
        os.dup2(to, 2)
        with open(to, "w", buffering=1, encoding="utf-8") as sys.stderr:
            yield
    finally:
        sys.stderr = python_stderr
        os.dup2(kept, 2)
        os.close(kept)
