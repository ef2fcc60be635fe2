"""Damaged checkpoints and damaged prepared data: never another number, never a traceback.

Everything is drawn from fixed seeds. tests/training/test_checkpoint.py and
tests/faults/test_prepared.py have the few that run by default.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.main import main
from cerebra_jax.tasks import prepared, registry
from cerebra_jax.training.checkpoint import Checkpoints
from tests import runs
from tests.damage import TO_A_FILE, delete, files
from tests.faults.record import Counts, record
from tests.training.saved import assert_is, save, state

# after a damaged file TensorStore still reports to the event loop that Orbax has closed
pytestmark = [
    pytest.mark.faults,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CHECKPOINTS, EVALUATIONS, CACHES = 270, 30, 100
Damage = Callable[[Path, random.Random], None]


def a_file(folder: Path, rng: random.Random) -> None:
    """Damages one to three files of the newest checkpoint, or of any."""
    where = rng.choice([newest(folder), folder])
    for _ in range(rng.choice((1, 1, 3))):
        rng.choice(TO_A_FILE)(rng.choice(files(where)), rng)


def a_folder(folder: Path, rng: random.Random) -> None:
    """Deletes or renames a folder inside the newest checkpoint."""
    inside = sorted(p for p in newest(folder).rglob("*") if p.is_dir())
    path = rng.choice(inside)
    if rng.random() < 0.5:
        shutil.rmtree(path)
    else:
        path.rename(path.with_name(f"{path.name}_"))


def another_step(folder: Path, rng: random.Random) -> None:
    """Gives a checkpoint the folder of another step, free or taken."""
    steps = sorted(p for p in folder.iterdir() if p.name.isdecimal())
    path = rng.choice(steps)
    to = folder / str(rng.choice([int(path.name) + 1, 9, 99, *(int(p.name) for p in steps)]))
    if to == path:
        to = folder / "100"
    if to.exists():
        shutil.rmtree(to)
    path.rename(to)


def foreign(folder: Path, rng: random.Random) -> None:
    """Adds files and folders that are not of a checkpoint."""
    where = rng.choice([folder, newest(folder), newest(folder) / "state"])
    name = rng.choice(("notes.txt", "7", "8.orbax-checkpoint-tmp-1", ".hidden", "-1", "5 (copy)"))
    if rng.random() < 0.5:
        (where / name).write_bytes(rng.randbytes(100))
    else:
        (where / name).mkdir()
        (where / name / "x").write_bytes(rng.randbytes(100))


def newest(folder: Path) -> Path:
    return folder / str(newest_step(folder))


def newest_step(folder: Path) -> int:
    return max(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdecimal())


DAMAGES: tuple[Damage, ...] = (a_file, a_file, a_file, a_folder, another_step, foreign)


@pytest.mark.parametrize("read", ["latest", "best"])
def test_damaged_checkpoints(read, tmp_path):
    """Restored exactly, or an earlier one exactly with a warning, or refused in a line."""
    whole = tmp_path / "whole"
    save(whole, {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: None})
    rng = random.Random(f"checkpoints {read}")
    counts = Counts("silently wrong", "silently older", "tracebacks")
    for i in range(CHECKPOINTS // 2):
        folder, said, damage = tmp_path / str(i), [], rng.choice(DAMAGES)
        shutil.copytree(whole, folder)
        damage(folder, rng)
        # a step whose folder is not there any more is not missed
        wanted = newest_step(folder) if read == "latest" else 2
        gone = not (folder / str(wanted)).exists()
        counts.times += 1
        case = f"{i} {damage.__name__}"
        try:
            checkpoints = Checkpoints(folder, said.append)
            try:
                found = getattr(checkpoints, read)(state(0))
            finally:
                checkpoints.close()
        except UserError as error:
            counts.check("\n" not in str(error), "tracebacks", f"{case}: {error}")
            counts.end("refused in a line")
            continue
        except Exception as error:
            counts.check(False, "tracebacks", f"{case}: {error!r}"[:500])
            continue
        if found is None:
            counts.check(bool(said) or gone, "silently older", case)
            counts.end("none left")
            continue
        try:
            assert_is(found, found.step)
        except AssertionError:
            counts.check(False, "silently wrong", case)
            continue
        counts.check(found.step == wanted or bool(said), "silently older", f"{case} {found.step}")
        counts.end("as saved" if found.step == wanted else "an earlier one, with a warning")
        shutil.rmtree(folder)
    record(f"damaged checkpoints, the {read} one restored", counts)


def test_damaged_checkpoints_of_a_run(tmp_path, capsys, data):
    """`eval` of a run on the table: the figures of before, or a warning, or one line and 2."""
    whole = tmp_path / "whole"
    keys = {"checkpoint_every": "3 steps", "devices": "1"}
    assert main(runs.words("table", data["table"], whole, **keys)) == 0

    def evaluate(workdir: Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["eval", f"--workdir={workdir}"])
        return status, *capsys.readouterr()

    status, figures, _ = evaluate(whole)
    assert status == 0 and "loss" in figures
    rng, counts = random.Random("eval"), Counts("silently wrong", "another status", "tracebacks")
    for i in range(EVALUATIONS):
        workdir, damage = tmp_path / str(i), rng.choice(DAMAGES)
        shutil.copytree(whole, workdir)
        damage(workdir / "checkpoints", rng)
        status, out, err = evaluate(workdir)
        counts.times += 1
        case = f"{i} {damage.__name__}: {status} {out[-300:]} {err[-300:]}"
        counts.check("Traceback" not in out + err, "tracebacks", case)
        counts.check(status in (0, 2), "another status", case)
        if status == 0:
            same = out.replace(str(workdir), str(whole)) == figures
            counts.check(same or "warning" in out + err, "silently wrong", case)
            counts.end("the figures of before" if same else "with a warning")
        else:
            counts.check(err.count("\n") == 1, "another status", case)
            counts.end("refused in a line")
    record("damaged checkpoints of a run, evaluated", counts)


def of_the_cache(folder: Path, rng: random.Random) -> None:
    """Damages one to three files; of the records too, which are read where tokens are gone."""
    for _ in range(rng.choice((1, 1, 3))):
        rng.choice(TO_A_FILE)(rng.choice(files(folder)), rng)
    if rng.random() < 0.3:
        for path in files(folder / "tokens"):
            delete(path, rng)


def of_its_names(folder: Path, rng: random.Random) -> None:
    """Exchanges two files, or adds one, or takes a folder away."""
    a, b = rng.sample(files(folder), 2)
    kind = rng.randrange(3)
    if kind == 0:
        first, second = a.read_bytes(), b.read_bytes()
        a.write_bytes(second)
        b.write_bytes(first)
    elif kind == 1:
        (a.parent / "more.bin").write_bytes(rng.randbytes(50))
    else:
        shutil.rmtree(a.parent)


def test_damaged_prepared_data(tmp_path):
    rng = random.Random("caches")
    words = ["alpha", "beta", "gämma", "delta", "\n"]
    for split, n in (("train", 4_000), ("valid", 300), ("test", 300)):
        text = " ".join(rng.choice(words) for _ in range(n))
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
    cache, whole = tmp_path / "cache", tmp_path / "whole"
    task = {"data_dir": str(tmp_path), "cache_dir": str(cache), "vocab_size": 270, "seq_len": 16}
    cfg = config.parse({"task": task})

    def read(say: Callable[[str], None]) -> dict[str, Any]:
        """Returns all that a run sees of the data."""
        made = registry.build(cfg, say)
        batches = [made.train_batch(0, step, 8) for step in range(4)]
        for split in ("valid", "test"):
            batches += list(made.eval_batches(split, 8))
        return {"info": made.info(), "batches": batches}

    good = read(print)
    cache.rename(whole)
    counts = Counts("silently wrong", "tracebacks")
    for i in range(CACHES):
        shutil.copytree(whole, cache)
        damage = rng.choice((of_the_cache, of_the_cache, of_its_names))
        damage(cache, rng)
        said: list[str] = []
        counts.times += 1
        case = f"{i} {damage.__name__}"
        try:
            found = read(said.append)
        except UserError as error:
            counts.check("\n" not in str(error), "tracebacks", f"{case}: {error}")
            counts.end("refused in a line")
        except Exception as error:
            counts.check(False, "tracebacks", f"{case}: {error!r}"[:500])
        else:
            counts.check(equal(found, good), "silently wrong", case)
            again = any("prepared again" in line for line in said)
            counts.end("prepared again, with a line" if again else "read or made as before")
        shutil.rmtree(cache)
    assert prepared.SEAL in {path.name for path in files(whole)}
    record("damaged folders of prepared data", counts)


def equal(found: dict[str, Any], good: dict[str, Any]) -> bool:
    """Returns whether data are the same: what they say of themselves, and every number."""
    pairs = list(zip(found["batches"], good["batches"], strict=False))
    return (
        found["info"] == good["info"]
        and len(found["batches"]) == len(good["batches"])
        and all(a.keys() == b.keys() for a, b in pairs)
        and all(np.array_equal(a[key], b[key]) for a, b in pairs for key in b)
    )
