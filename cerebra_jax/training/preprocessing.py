"""What a run learnt from its data before the first step, in its folder: preprocessing.json.

It holds columns, kinds, categories, scales, class names, vocabulary and tokenizer, so that a run
answers without its data, on any machine. It also says what the data were, so that other ones are
noticed. Imports no JAX.

    {"version": 1, "task": "tabular", "lengths": [], "info": {…}, "learnt": {…}}

Runs of version 0.1 have no such file. They need their data, which are read as they were then.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cerebra_jax import documents
from cerebra_jax.config import RunCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import registry
from cerebra_jax.tasks.task import PREPROCESSING, Log, Task
from cerebra_jax.training import workdir as folder

FILE = PREPROCESSING
VERSION = 1
HINT = "copy the run again"
SHAPE = {
    "version": documents.WHOLE,
    "lengths": [documents.whole(1, 1 << 20)],
    "info": {"dataset": documents.TEXT, "sha256?": documents.TEXT},
    "learnt": {"digests?": {"*": documents.TEXT}},
}


def keep(workdir: Path, cfg: RunCfg, task: Task) -> None:
    """Writes what the task of a run learnt; a run that has begun keeps its file."""
    if not (workdir / FILE).exists() and not (workdir / "checkpoints").exists():
        write(workdir / FILE, cfg, task)


def write(path: Path, cfg: RunCfg, task: Task) -> None:
    """Writes what a task learnt into a file."""
    found = {
        "version": VERSION,
        "task": cfg.task.name,
        "lengths": list(task.shape.lengths),
        "info": task.info(),
        "learnt": registry.learnt(task),
    }
    folder.write_json(path, found)


def copy(source: Path, to: Path) -> None:
    """Copies such a file, where there is one, into the folder of another run."""
    if source.is_file():
        (to / FILE).write_bytes(source.read_bytes())


def build(cfg: RunCfg, workdir: Path, log: Log) -> Task:
    """Returns the task of a run with its data, read as they were when the run began.

    UserError says what is not as it was.
    """
    kept = read(workdir)
    if kept is not None and cfg.task.tokenizer_from:  # it is its own by now
        task = dataclasses.replace(cfg.task, tokenizer_from=str(workdir))
        cfg = dataclasses.replace(cfg, task=task)
    begun = (workdir / "checkpoints").exists() and not (workdir / "import.json").exists()
    task = registry.build(cfg, log, before=begun and kept is None)
    if kept is not None and (what := changes(kept, task)):
        hint = "give the data as they were; `predict` needs none"
        raise UserError(f"these are not the data that {workdir} was trained on: {what}", hint)
    return task


def restore(cfg: RunCfg, workdir: Path, log: Log) -> Task:
    """Returns the task of a run without its data; with them, where the run did not keep enough."""
    kept = read(workdir)
    task = None
    if kept is not None:
        task = _restored(cfg, kept, workdir / FILE)
    return task or build(cfg, workdir, log)


def _restored(cfg: RunCfg, kept: dict[str, Any], file: Path) -> Task | None:
    """Returns the task that a file describes; UserError where its parts do not fit each other."""
    try:
        return registry.restored(cfg, kept["learnt"], kept["info"] | {"lengths": kept["lengths"]})
    except UserError as error:
        raise UserError(f"{file}: {error.what}", HINT) from None
    except Exception as error:  # the file is data from anywhere: whatever it leads to is its fault
        what = f"{file} is not that of a run on task.name={cfg.task.name}"
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{what} ({text[:200]})", HINT) from None


def read(workdir: Path) -> dict[str, Any] | None:
    """Returns the file of a run, None where it has none.

    UserError where a later version wrote it, or nothing that can be used.
    """
    file = workdir / FILE
    if not file.exists():
        return None
    kept = documents.read(file, {"version": documents.WHOLE}, HINT)
    if kept["version"] > VERSION:
        what = f"{file} is of a later version ({kept['version']})"
        raise UserError(what, "update cerebra_jax")
    return documents.check(kept, SHAPE, str(file), HINT)


def changes(kept: dict[str, Any], task: Task) -> str:
    """Returns what differs between the data of a run and those of a task; "" for nothing."""
    old, new = kept["learnt"].get("digests", {}), registry.learnt(task).get("digests", {})
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if names:
        some = ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
        return f"{some} {'is' if len(names) == 1 else 'are'} not as before"
    there, here = kept["info"], task.info()
    if there.get("sha256") != here.get("sha256"):
        return "they are split or scaled in another way"
    # earlier versions did not keep it
    if "tokens_sha256" in there and there["tokens_sha256"] != here.get("tokens_sha256"):
        return "their text is the same, their tokens are not"
    return ""
