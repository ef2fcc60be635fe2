"""launch/run.sh with an interpreter that only says what it was asked.

Nothing is installed here; CI does that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "run.sh"


def _program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def call(tmp_path):
    """Runs the script from an empty folder that stands for the user's own."""
    _program(tmp_path / "bin" / "uv", "exit 127")
    _program(tmp_path / "venv" / "bin" / "python", 'echo "$@" | tee -a "$0.log"')
    (tmp_path / "venv" / ".made-by-run.sh").write_text(f"{ROOT}\n")
    (tmp_path / "user").mkdir()

    def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        own = {
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "VENV": str(tmp_path / "venv"),
            "HOME": str(tmp_path),
        }
        return subprocess.run(
            [SCRIPT, *args],
            cwd=tmp_path / "user",
            env=own | env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    return run


def _asked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_configs_are_found_from_anywhere_and_other_paths_stay_the_users(call):
    main = "-m cerebra_jax.main"
    default = f"{main} --config={ROOT}/configs/wikitext.py"
    assert _asked(call()) == default
    assert (
        _asked(call("--workdir=x", "--config.seed=1")) == f"{default} --workdir=x --config.seed=1"
    )
    assert _asked(call("--config=configs/wikitext.py:smoke")) == f"{default}:smoke"
    assert (
        _asked(call("cost", "--config", "configs/wikitext.py"))
        == f"{main} cost --config {ROOT}/configs/wikitext.py"
    )
    assert _asked(call("eval", "--workdir=configs/x")) == f"{main} eval --workdir=configs/x"
    assert _asked(call("--config=mine.py")) == f"{main} --config=mine.py"


def test_a_configuration_of_the_users_own_comes_first(call, tmp_path):
    _program(tmp_path / "user" / "configs" / "wikitext.py", "")
    assert (
        _asked(call("--config=configs/wikitext.py:a"))
        == "-m cerebra_jax.main --config=configs/wikitext.py:a"
    )


def test_words_are_passed_on_and_the_environment_is_made_once(call, tmp_path):
    assert _asked(call("test", "-k", "a b")) == "-m pytest -q -n 2 --dist worksteal -k a b"
    assert _asked(call("test")) == "-m pytest -q -n 2 --dist worksteal"
    assert _asked(call()).startswith("-m cerebra_jax.main")
    log = (tmp_path / "venv" / "bin" / "python.log").read_text().splitlines()
    assert [line for line in log if "pip install" in line] == [
        f"-m pip install -qq --disable-pip-version-check -e {ROOT}[test,tb]"
    ]
    assert "[test,tb,dev]" in call("test", EXTRA="dev").stdout


def test_one_line_where_it_cannot_go_on(call, tmp_path):
    pretend = f'exec {sys.executable} -c "import sys; sys.version_info = (3, %d, 9); $2"'
    old = _program(tmp_path / "old", f'[ "$1" = -V ] && echo Python 3.10.9 || {pretend % 10}')
    no_venv = _program(
        tmp_path / "no_venv", f'case "$2" in *ensurepip*) exit 1 ;; esac; {pretend % 11}'
    )
    mine = tmp_path / "mine" / "precious"
    _program(mine, "")
    fresh = str(tmp_path / "fresh")
    for done, words in (
        (call(PYTHON=str(old), VENV=fresh), "no Python 3.11 or newer"),
        (call(PYTHON=str(no_venv), VENV=fresh), "apt install python3-venv"),
        (call(VENV=str(mine.parent)), "this script did not make it"),
    ):
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ")
        assert "; " in done.stderr
    assert mine.exists()
    assert not Path(fresh).exists()


def test_a_failed_installation_is_tried_again(call, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    _program(python, 'case "$*" in *pip*) exit 1 ;; esac')
    assert call().returncode == 1
    _program(python, 'echo "$@"')
    assert "pip install" in call().stdout


def test_shell_scripts_parse():
    for script in (SCRIPT, ROOT / "launch" / "slurm.sbatch", ROOT / ".ci" / "run"):
        assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
        assert os.access(script, os.X_OK) or script.suffix == ".sbatch"
    if shutil.which("shellcheck"):
        assert (
            subprocess.run(
                ["shellcheck", "-S", "warning", SCRIPT], capture_output=True, text=True
            ).stdout
            == ""
        )
