"""Damaged, foreign and hostile folders of runs: a table, or one line and status 2. Never a bug.

Nothing in them is executed, and nothing is written but into the folder and the files asked for.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cerebra_jax import config
from cerebra_jax.main import main
from cerebra_jax.tasks import registry
from cerebra_jax.training import preprocessing
from tests.faults.record import Counts, record

ROOT = Path(__file__).resolve().parents[1]
OLD = ("chiar", "cerebra", "dense", "table")  # written by the first version
FILES = ("result.json", "config.json", "metrics.jsonl")
CANARY = "canary"
WORDS = (
    "",
    "x",
    "1",
    "a|b",
    "<b>bold</b>",
    "<!-- RESULTS: end -->",
    "`code`",
    "[a](javascript:b)",
    "two\nlines",
    "\x1b[31mred\x1b[2J",
    "\x9b31m",
    "\u202egnp.exe",
    "\ud800",
    "$a$ $\\frac$",
    r"\input{/etc/passwd}",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(1)",
    f"$(touch {CANARY})",
    f"__import__('os').system('touch {CANARY}')",
    f"../../{CANARY}",
    "/dev/full",
    "é" * 300,
    "nul\0",
)
VALUES: tuple[Any, ...] = (
    None,
    [],
    {},
    True,
    -1,
    0,
    1e308,
    -1e-308,
    10**400,
    [1, "x", None],
    {"a": {"b": 1}},
    float("nan"),
    float("inf"),
    *WORDS,
)
WHOLE = (b"", b"[]", b"null", b"5", b'"x"', b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": NaN}\n')


# ---- damages


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yields the path of every value of a tree but the root."""
    pairs: Any = ()
    if isinstance(tree, dict):
        pairs = tree.items()
    elif isinstance(tree, list):
        pairs = enumerate(tree)
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


def mutated(tree: Any, rng: random.Random) -> Any:
    """Returns a tree in which one to three values are removed, renamed or something else."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        found = list(places(tree))
        if not found:
            return tree
        *inner, key = rng.choice(found)
        node = tree
        for step in inner:
            node = node[step]
        what = rng.randrange(4)
        if what == 0:
            del node[key]
        elif what == 1:
            node[key] = rng.choice(VALUES)
        elif what == 2:
            node[key] = str(node[key])
        elif isinstance(node, dict):
            node[rng.choice(WORDS)] = node.pop(key)
    return tree


def damaged(file: Path, rng: random.Random) -> None:
    """Damages a file of a run in one of many ways."""
    data = file.read_bytes()
    what = rng.randrange(12)
    if what < 7:
        if file.suffix == ".jsonl":
            lines = data.decode().splitlines()
            for _ in range(rng.randint(1, 3)):
                i = rng.randrange(len(lines))
                lines[i] = json.dumps(mutated(json.loads(lines[i]), rng))
            file.write_text("\n".join(lines) + "\n")
        else:
            file.write_text(json.dumps(mutated(json.loads(data), rng)))
    elif what == 7:
        file.write_bytes(data[: rng.randrange(len(data))])
    elif what == 8:
        i = rng.randrange(len(data))
        file.write_bytes(data[:i] + bytes([rng.randrange(256)]) + data[i + 1 :])
    elif what == 9:
        file.write_bytes(rng.choice(WHOLE) + rng.choice((b"", b"\n")))
    else:
        file.unlink()
        rng.choice((lambda: None, file.mkdir, lambda: file.symlink_to(file.name), fifo(file)))()


def fifo(file: Path) -> Callable[[], None]:
    """Returns what makes a pipe that nobody writes into."""
    return lambda: os.mkfifo(file)


# ---- what is watched


class Watch:
    """Notes programs that are started, and writes outside of some folders, while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.allowed: tuple[str, ...] = ()
        self.found: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
            self.found.append(f"{event} {args[0]!r}")
        elif event == "open" and isinstance(args[0], str | bytes):
            flags = args[2] or 0
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._written(event, args[0])
        elif event in ("os.mkdir", "os.remove", "os.rmdir"):
            self._written(event, args[0])
        elif event in ("os.rename", "os.symlink", "os.link"):
            self._written(event, args[1])

    def _written(self, event: str, path: Any) -> None:
        text = os.path.realpath(os.fsdecode(path))
        if "__pycache__" not in text and not text.startswith(self.allowed):
            self.found.append(f"{event} {text}")


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    """Watches this module's commands; caches of libraries may be written."""
    found = Watch()
    import matplotlib

    caches = [matplotlib.get_cachedir(), matplotlib.get_configdir(), os.devnull]
    caches += [os.environ["CEREBRA_CACHE"], os.environ["JAX_COMPILATION_CACHE_DIR"]]
    found.caches = tuple(map(os.path.realpath, caches))
    yield found
    found.on = False


@pytest.fixture
def run(watch, tmp_path, capsys):
    """Returns a function that runs a command about a folder, and judges its end."""
    (tmp_path / "out").mkdir()

    def judged(words: list[str], folder: Path) -> int:
        watch.found.clear()
        watch.allowed = (*watch.caches, str(folder.resolve()), str((tmp_path / "out").resolve()))
        watch.on = True
        try:
            status = main(words)
        finally:
            watch.on = False
        out, err = capsys.readouterr()
        assert status in (0, 2), (words, folder, err)
        assert "Traceback" not in err, (words, folder, err)
        errors = [line for line in err.splitlines() if not line.startswith("notice: ")]
        assert len(errors) == (status == 2), (words, folder, err)
        assert all(x.isprintable() or x == "\n" for x in out + err), (words, folder, out, err)
        assert watch.found == [], (words, folder)
        assert not list(Path(tmp_path.root, "tmp").glob(CANARY)), folder
        assert not Path(CANARY).exists(), folder
        return status

    return judged


# ---- reports and trainings


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> list[Path]:
    """Folders of real runs, finished long ago."""
    folder = tmp_path_factory.mktemp("good")
    for name in OLD:
        with tarfile.open(ROOT / "data" / "old_runs" / f"{name}.tar.gz") as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # none before 3.11.4
            archive.extractall(folder)
        shutil.rmtree(folder / name / "checkpoints")
    return [folder / name for name in OLD]


WRONG = ("another status", "tracebacks", "executions", "writes outside")  # as `run` judges
FIGURES = ("html", "plot", "pareto", "uses", "budgets")


def reports(folder: Path, out: Path, rng: random.Random, figures: bool) -> list[str]:
    """Returns the words of a report into files of some kinds."""
    kinds = {"csv": "csv", "runs-csv": "csv", "latex": "tex"}
    words = ["report", str(folder), *(f"--{k}={out / f'{k}.{e}'}" for k, e in kinds.items())]
    if figures:
        kind = rng.choice(FIGURES)
        ending = "html" if kind == "html" else "svg"
        words.append(f"--{kind}={out / kind}.{ending}")
    return words


def drive(count: int, every: int, good: list[Path], run, tmp_path: Path) -> dict[str, int]:
    """Damages so many folders and runs `report` and `train` on each; returns what came out.

    Every `every`-th report draws a figure.
    """
    rng = random.Random(0)
    found: Counter[str] = Counter({"folders": count})
    for i in range(count):
        base = rng.choice(good)
        folder = tmp_path / f"{i}-s0"
        shutil.copytree(base, folder)
        damaged(folder / rng.choice(FILES), rng)
        words = reports(folder, tmp_path / "out", rng, i % every == 0)
        found["report refused" if run(words, folder) else "report shown"] += 1
        if (folder / "result.json").exists():  # without one it would really train
            words = ["train", f"--config={base / 'config.json'}", f"--workdir={folder}"]
            found["train refused" if run(words, folder) else "train shown"] += 1
        shutil.rmtree(folder)
    return dict(found)


def test_a_damaged_folder_is_a_table_or_one_line(good, run, tmp_path):
    found = drive(40, 8, good, run, tmp_path)
    assert found["report refused"] > 5 and found["report shown"] > 5


@pytest.mark.faults
def test_many_damaged_folders(good, run, tmp_path):
    counts = Counts(*WRONG)
    found = drive(600, 2, good, run, tmp_path)
    assert found["report refused"] > 100 and found["report shown"] > 100
    counts.times, counts.ended = found.pop("folders"), found
    record("damaged or hostile run folders, reported and trained", counts)


# ---- what a run learnt


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, table) -> list[Path]:
    """Folders of a run on a table and of one on texts, before their first step."""
    texts = tmp_path_factory.mktemp("texts") / "t.csv"
    rows = [f"{'please ' * (i % 3)}word{i % 7},{'ab'[i % 2]}" for i in range(60)]
    texts.write_text("text,label\n" + "\n".join(rows) + "\n")
    tasks = {
        "tabular": {"path": str(table), "target": "y", "target_scale": "quantile"},
        "intent": {"path": str(texts), "target": "label", "tokenizer": "words"},
    }
    folders = []
    for name, task in tasks.items():
        net = {"name": "transformer", "causal": False, "width": 8, "ffn_width": 8, "heads": 1}
        cfg = config.parse({"task": {"name": name, "seq_len": 0} | task, "net": net})
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps(config.to_dict(cfg)))
        preprocessing.keep(folder, cfg, registry.build(cfg, lambda line: None))
        (folder / "rows.csv").write_text(Path(task["path"]).read_text())
        folders.append(folder)
    return folders


def learn(count: int, learnt: list[Path], run, tmp_path: Path) -> dict[str, int]:
    """Damages what so many runs learnt, and lets each of them answer."""
    rng = random.Random(1)
    for i in range(count):
        folder = tmp_path / str(i)
        shutil.copytree(rng.choice(learnt), folder)
        damaged(folder / preprocessing.FILE, rng)
        words = ["predict", f"--workdir={folder}", f"--data={folder / 'rows.csv'}"]
        assert run(words, folder) == 2  # there is no checkpoint, at the latest
        shutil.rmtree(folder)
    return {"folders": count, "predict refused": count}


def test_what_a_damaged_run_learnt_is_refused_in_one_line(learnt, run, tmp_path):
    learn(4, learnt, run, tmp_path)


@pytest.mark.faults
def test_much_that_damaged_runs_learnt(learnt, run, tmp_path):
    counts = Counts(*WRONG)
    found = learn(150, learnt, run, tmp_path)
    counts.times, counts.ended = found.pop("folders"), found
    record("damaged preprocessing.json, predicted with", counts)


@pytest.mark.parametrize("name", ["listops", "long_sequence", "mixed"])
def test_what_any_task_keeps_is_read_again(name, tmp_path):
    """Tasks that need their data tell less of them; that is no damage."""
    info = {"dataset": "x", "sha256": "0"}
    kept = {"version": 1, "task": name, "lengths": [], "info": info, "learnt": {}}
    (tmp_path / preprocessing.FILE).write_text(json.dumps(kept))
    assert preprocessing.read(tmp_path) == kept
    assert not hasattr(registry.find(name), "restored")
