"""What a person sees: a bar on a terminal, plain lines elsewhere, and a run that outlives its
reader.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest

from cerebra_jax.cli.screen import Screen
from cerebra_jax.cli.train import Stop


def show(screen: Screen) -> None:
    screen.say("hello")
    screen.begin(10, 2)
    screen.step(3, "loss 1", due=False)
    screen.step(4, "loss 2", due=True)
    screen.end()
    screen.end()
    screen.say("bye [not markup]")


def test_plain_lines_where_nobody_looks_on(capsys):
    show(Screen())
    assert capsys.readouterr().out == "hello\nstep 4 · loss 2\nbye [not markup]\n"


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    show(Screen())
    shown = sys.stdout.getvalue()
    assert "step 4/10" in shown and "loss 2" in shown and "bye [not markup]" in shown
    assert "step 4 ·" not in shown


def test_a_run_goes_on_when_its_reader_leaves(clean_env):
    code = (
        "import sys\nfrom cerebra_jax.cli.screen import Screen\ns = Screen()\n"
        "for i in range(2000): s.say('x' * 100)\nsys.stderr.write('went on')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=clean_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "went on"
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_the_program_before_the_loop_and_are_a_question_in_it(number):
    found = signal.signal(number, signal.SIG_DFL)  # tests under nohup ignore SIGHUP
    try:
        with Stop() as stop:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
            stop.asked, stop.in_loop = False, True
            assert not stop()
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # a second one while it saves changes nothing
            assert stop()
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, found)


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)
