"""What the project is built and tested from: the lock file, the actions, the wheel."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
LOCKED_EXTRAS = ("test", "dev", "tb")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def declared(extras: tuple[str, ...]) -> list[Requirement]:
    """Returns what the project asks for with these extras, and with the extras that they name."""
    own = project()["project"]
    found = [Requirement(text) for text in own["dependencies"]]
    todo, seen = list(extras), set()
    while todo:
        extra = todo.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for need in map(Requirement, own["optional-dependencies"][extra]):
            if need.name == own["name"]:
                todo += need.extras
            else:
                found.append(need)
    return found


def locked(file: Path) -> list[tuple[Requirement, list[str], bool]]:
    """Returns (package, its hashes, whether the project itself asks for it) of a lock file."""
    entries = re.split(r"\n(?=[A-Za-z0-9])", file.read_text(encoding="utf-8"))
    found = []
    for entry in entries:
        if entry.startswith("#"):
            continue
        need = Requirement(entry.split("\\")[0])
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", entry)
        found.append((need, hashes, "cerebra-jax (pyproject.toml)" in entry))
    return found


def on(python: str, marker: Marker | None) -> bool:
    """Returns whether a package is for a Python on Linux."""
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    return marker is None or marker.evaluate(here | {"sys_platform": "linux", "extra": ""})


def version(need: Requirement) -> str:
    [pin] = need.specifier
    assert pin.operator == "==", need
    return pin.version


@pytest.mark.parametrize("name", ["lock.txt", "tools.txt"])
def test_every_locked_package_has_one_version_and_its_hashes(name):
    packages = locked(ROOT / ".ci" / name)
    for python in PYTHONS:
        names = [need.name for need, _, _ in packages if on(python, need.marker)]
        assert len(names) > 40 and len(set(names)) == len(names), python
    for need, hashes, _ in packages:
        assert version(need) and hashes, need


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_fits_what_is_declared(python):
    """No package that pyproject.toml names is missing, too old, or left over from before."""
    needs = [need for need in declared(LOCKED_EXTRAS) if on(python, need.marker)]
    packages = [x for x in locked(ROOT / ".ci" / "lock.txt") if on(python, x[0].marker)]
    pinned = {canonicalize_name(need.name): version(need) for need, _, _ in packages}
    for need in needs:
        name = canonicalize_name(need.name)
        assert name in pinned, f"{name} is not locked; run bash .ci/lock"
        assert need.specifier.contains(pinned[name]), f"{need} is not {pinned[name]}"
    own = {canonicalize_name(need.name) for need, _, asked in packages if asked}
    assert own == {canonicalize_name(need.name) for need in needs}, "run bash .ci/lock"


def test_the_wheel_is_made_with_the_locked_build_system():
    backend = {Requirement(text).name for text in project()["build-system"]["requires"]}
    assert backend <= {need.name for need, _, _ in locked(ROOT / ".ci" / "lock.txt")}


def test_actions_are_named_by_their_commit_and_may_only_read():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    uses = re.findall(r"uses: (\S+)", text)
    assert uses
    for action in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
    assert re.findall(r"permissions:\n((?: +.+\n)+)", text) == ["  contents: read\n"]
    assert "bash .ci/run" in text and "bash .ci/nightly" in text and "schedule:" in text


@pytest.mark.parametrize("script", ["run", "nightly", "lock", "wheel"])
def test_scripts_of_ci_parse(script):
    done = subprocess.run(["bash", "-n", ROOT / ".ci" / script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_word_is_refused():
    done = subprocess.run(["bash", ROOT / ".ci" / "lock", "--chek"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown word --chek; ")
