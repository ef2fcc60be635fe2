"""What is shown of data and folders steers nothing, and a program ends with one line."""

from __future__ import annotations

import ast
import csv
import errno
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cerebra_jax import config, display, errors, signals
from cerebra_jax.cli import report as command
from cerebra_jax.cli.screen import Screen
from cerebra_jax.config import names
from cerebra_jax.errors import UserError
from cerebra_jax.main import main
from cerebra_jax.report import page, plots, tables
from cerebra_jax.training import metrics
from cerebra_jax.training import workdir as folder

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "\x1b[2J\x9b1m\u202ea\nb\r\ud800"


# ---- text


def test_what_would_steer_a_terminal_is_shown_as_what_it_is():
    assert display.printable(HOSTILE) == r"\x1b[2J\x9b1m\u202ea\nb\r\ud800"
    plain = "Köln 20 °C, 你好, λ ≥ ½"
    assert display.printable(plain) == plain
    assert display.printable_lines("a\tb\n\x07") == "a\tb\n\\x07"


def test_every_way_to_the_screen_is_printable(capsys, tmp_path):
    names._told.clear()
    Screen().say(f"class {HOSTILE}")
    names.tell(f"key {HOSTILE}")
    assert main(["report", str(tmp_path / "\x1b[31m")]) == errors.USER
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and err.count("\n") == 2
    assert all(c.isprintable() or c == "\n" for c in out + err)


def test_nothing_prints_past_it():
    """`print` stands in one module; whatever shows text goes through that."""
    for path in (ROOT / "cerebra_jax").rglob("*.py"):
        if path.name in ("display.py", "readers.py"):  # the second holds Python that users run
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            calls = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            assert not (calls and node.func.id == "print"), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("@SUM(1)", "'@SUM(1)"),
        ("+1+1", "'+1+1"),
        ("\t=1", r"'\t=1"),
        ("-5.2e3", "-5.2e3"),
        ("-inf", "-inf"),
        ("+", "+"),
        ("a=b", "a=b"),
    ],
)
def test_a_cell_is_no_formula_and_a_number_stays_one(text, cell):
    assert display.inert(text) == cell


def test_names_are_escaped_in_every_kind_of_file(folders_of, tmp_path, capsys):
    name = "=1|`x`<b>&$a$ $\\frac$[l](javascript:1)<!-- RESULTS: end -->\x1b"
    paths = folders_of(name)
    table = tables.markdown([["model"], [name]], [name, "# no heading"])
    row, note, plain = table.splitlines()[2::2]
    assert not re.search(r"[<>\x1b]|\]\(|(?<!\\)`", row + note)
    assert row.count("|") - row.count("\\|") == 2
    assert note.startswith("=") is False and plain == r"\# no heading"

    out = {kind: tmp_path / f"f.{kind}" for kind in ("csv", "tex", "html", "svg")}
    words = ["report", *map(str, paths), "--by-folder", f"--csv={out['csv']}"]
    words += [f"--latex={out['tex']}", f"--html={out['html']}", f"--plot={out['svg']}"]
    assert main(words) == errors.DONE
    text = {kind: path.read_text() for kind, path in out.items()}
    capsys.readouterr()
    assert not any("\x1b" in x or "\ud800" in x for x in text.values())
    cells = [row[0] for row in csv.reader(io.StringIO(text["csv"]))]
    assert cells[1].startswith("'=1|")
    assert "<b>" not in text["html"] and "<b>" not in text["svg"]
    assert r"\$a\$" in text["tex"]


def test_a_name_is_no_formula_and_is_not_hidden_in_a_figure():
    pytest.importorskip("matplotlib")
    figure = plots.new_figure(2, 2)
    axes = figure.subplots()
    for name in ("$a$ $\\frac$", "_hidden", "a\\$b$"):
        axes.plot([1, 2], label=plots.plain(name))
    axes.legend()
    plots.save(figure, out := io.BytesIO())
    shown = out.getvalue().decode()
    assert "$a$ $\\frac$" in shown and "_hidden" in shown
    assert page.escape("<\x1b'>") == "&lt;\\x1b&#x27;&gt;"


@pytest.fixture
def folders_of(tmp_path):
    """Returns a function that makes the folder of a run with a name, and of another."""

    def make(name: str) -> list[Path]:
        made = []
        for i, own in enumerate((name.replace("/", "%"), "plain")):
            path = tmp_path / f"{own}-s0"
            path.mkdir()
            cfg = config.to_dict(config.parse({"net": {"width": 8 + 8 * i, "heads": 1}}))
            (path / "config.json").write_text(json.dumps(cfg))
            figures = {"ppl_word": 2.0, "bits_per_byte": 1.0, "loss": 1.0}
            costs = {"expected": 1.0, "hard": 1.0, "executed": 1.0}
            found = {
                "model": "chiar", "dataset": "d$e$", "seed": 0, "params": 1, "steps": 9,
                "tokens": 1, "commit": None, "val": figures, "test": figures, "step_ms": 1.0,
                "wall_s": 1.0, "device": {"device": "<b>", "cores": 1, "jax": "1"},
                "costs": {"relative": costs, "executed": 1.0, "dense": 1.0, "train_total": 1.0},
            }  # fmt: skip
            (path / "result.json").write_text(json.dumps(found))
            line = {"step": 1, "split": "train", "loss": 1.0, "executed_rel_flops": 1.0}
            log = "".join(json.dumps(line | {"phase": f"$p{i}$"}) + "\n" for i in range(9))
            (path / "metrics.jsonl").write_text(log)
            made.append(path)
        return made

    return make


# ---- streams and signals


def test_closed_streams_and_a_plain_encoding(clean_env, folders_of):
    paths = " ".join(f"'{path}'" for path in folders_of("x"))
    program = f"{sys.executable} -m cerebra_jax report {paths}"
    env = clean_env | {"PYTHONIOENCODING": "ascii"}
    shell = ["sh", "-c", f"{program} 2>&- && {program} <&- >&- 2>&-"]
    done = subprocess.run(shell, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "?" in done.stdout and "chiar" in done.stdout


def test_a_closed_descriptor_is_not_given_to_the_next_file():
    code = (
        "import os\nos.close(2)\nfrom cerebra_jax import display\ndisplay.open_streams()\n"
        "print(open('/dev/zero').fileno() > 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_an_import_to_end(tmp_path, monkeypatch, number):
    body = (
        f"import os\nos.kill(os.getpid(), {int(number)})\nfor i in range(9): pass\nwhole = True\n"
    )
    name = f"signalled_{int(number)}"
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), signals.Interrupt() as interrupt:
        importlib.import_module(name)
        time.sleep(5)
    assert sys.modules.pop(name).whole and interrupt.came
    assert signal.getsignal(number) is before


def test_two_signals_at_once_are_one():
    with signals.Interrupt() as interrupt:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.came


def test_an_error_that_a_signal_led_to_is_no_bug(monkeypatch, capsys):
    def broken(request):
        os.kill(os.getpid(), signal.SIGTERM)
        raise ImportError("numpy is half imported")

    monkeypatch.setattr(command, "run", broken)
    monkeypatch.setattr(sys, "argv", ["cerebra", "report", "x"])
    handlers = {number: signal.getsignal(number) for number in signals.NUMBERS}
    try:
        assert main() == errors.PREEMPTED
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err == "error: stopped; the same command starts again\n"


# ---- paths


@pytest.mark.parametrize(
    ("number", "place", "status"),
    [
        (errno.EACCES, "{tmp}/run/x", errors.USER),
        (errno.ENAMETOOLONG, "{tmp}/run", errors.USER),
        (errno.ENOTDIR, "{tmp}", errors.USER),
        (errno.ENOSPC, "/elsewhere", errors.DISK),
        (errno.EIO, None, errors.DISK),
        (errno.ENOENT, "/elsewhere", errors.BUG),
        (errno.ENOENT, None, errors.BUG),
    ],
)
def test_an_error_about_a_path_that_was_named_is_the_users(
    number, place, status, tmp_path, monkeypatch, capsys
):
    def broken(request):
        raise OSError(number, os.strerror(number), place and place.format(tmp=tmp_path))

    monkeypatch.setattr(command, "run", broken)
    assert main(["report", str(tmp_path / "run")]) == status
    err = capsys.readouterr().err
    assert (err.count("\n") == 1) == (status != errors.BUG)
    assert err.splitlines()[-1].startswith("error: ")


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["report", LONG],
        ["train", f"--config={LONG}.py"],
        ["train", "--config=configs/wikitext.py:smoke", f"--workdir={LONG}"],
        ["predict", f"--workdir={LONG}", "--data=x"],
        ["report", "{run}", "--csv={tmp}"],
        ["report", "{run}", "--html={run}/result.json/x.html"],
        ["report", "{run}", "--into={tmp}"],
        ["report", "{run}", "--into={tmp}/latin"],
        ["report", "{run}", f"--latex={LONG}"],
    ],
    ids=lambda words: words[-1][:30],
)
def test_a_path_that_cannot_be_is_one_line(words, folders_of, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (tmp_path / "latin").write_bytes(b"\xe9")
    run = folders_of("x")[0]
    assert main([word.format(run=run, tmp=tmp_path) for word in words]) == errors.USER
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 1200


@pytest.mark.parametrize("name", ["run.lock", "log.txt", "config.json", "result.json"])
def test_a_folder_in_the_place_of_a_file_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (tmp_path / "run" / name).mkdir(parents=True)
    words = ["train", "--config=configs/wikitext.py:smoke", f"--workdir={tmp_path / 'run'}"]
    assert main(words) == errors.USER
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'run' / name}: Is a directory; ")
    assert err.count("\n") == 1


def test_a_result_that_was_written_elsewhere_names_no_place(tmp_path):
    """The steps of a result are part of a file's name when the run becomes longer."""
    cfg = config.parse({"train": {"duration": "9 steps"}})
    folder.claim(tmp_path, cfg)
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "result.json").write_text(json.dumps({"steps": "/../../outside"}))
    longer = config.parse({"train": {"duration": "10 steps"}})
    with pytest.raises(UserError, match=r"result.json: .*; move it away, or use --fresh"):
        folder.claim(tmp_path, longer)


def test_a_full_disk_is_told_by_the_thread_that_trains(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    drawn = metrics.TensorBoard(tmp_path / "tb", 0)
    threads = threading.active_count()
    drawn.scalars(1, "train", {"step": 1, "loss": 1.0, "gates": {"kept": [0.5]}})
    assert threading.active_count() == threads

    def full(event):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(drawn._writer, "write_event", full)
    for step in range(2, 50):  # no queue fills up
        with pytest.raises(OSError, match="No space"):
            drawn.scalars(step, "train", {"step": step, "loss": 1.0, "gates": {}})
    drawn.close()
