"""The rules of the house: what stands where, and that what is written is true."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from cerebra_jax import config
from cerebra_jax.cli import flags
from cerebra_jax.cli import sweep_points as points

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "cerebra_jax").rglob("*.py"))
CODE = PACKAGE + sorted(p for d in ("configs", "benchmarks") for p in (ROOT / d).rglob("*.py"))
ALL_PY = [*CODE, ROOT / "setup.py", *sorted((ROOT / "tests").rglob("*.py"))]
TEXTS = [
    ROOT / f"{where}README.md"
    for where in ("", "benchmarks/", "benchmarks/results/", "configs/", "launch/")
]
TEXTS += [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "papers.md"]
NOTEBOOK = ROOT / "launch" / "colab_tpu.ipynb"
# commands that read the folder of a run, which the documents' commands do not make here
ABOUT_A_RUN = "eval generate predict calibrate shrink heatmap analyze convert".split()


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _trees() -> list[tuple[Path, ast.Module]]:
    return [(p, ast.parse(p.read_text(encoding="utf-8"), _name(p))) for p in CODE]


def test_pmap_stands_in_one_file():
    found = [_name(p) for p in CODE if re.search(r"\bpmap\b", p.read_text(encoding="utf-8"))]
    assert found == ["cerebra_jax/training/parallel.py"]


def test_ml_collections_stops_at_the_door():
    for path, tree in _trees():
        if _name(path).startswith(("cerebra_jax/config/", "cerebra_jax/cli/", "configs/")):
            continue
        names = {
            n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names
        }
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not [n for n in names if n.startswith("ml_collections")], _name(path)


def test_every_configuration_field_is_read():
    read = set()
    for path, tree in _trees():
        if {"config", "configs"} & set(path.parts):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                if not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                    read.add(node.attr)
    dead = [key for key in config.fields() if key.rpartition(".")[2] not in read]
    assert not dead, "configuration fields that nothing reads"


def test_no_code_is_made_from_data():
    for path, tree in _trees():
        for node in ast.walk(tree):
            where = f"{_name(path)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(n.name for n in node.names)]
                unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
                assert not unsafe & {part for n in names for part in n.split(".")}, where
            if isinstance(node, ast.Call):
                assert not (isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")), (
                    where
                )
                if ast.unparse(node.func) == "torch.load":
                    assert {w.arg: ast.unparse(w.value) for w in node.keywords}.get(
                        "weights_only"
                    ) == "True", where
                for word in node.keywords:
                    safe = isinstance(word.value, ast.Constant) and word.value.value is False
                    assert word.arg != "allow_pickle" or safe, where


def test_configuration_has_no_second_defaults():
    for path, tree in _trees():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "get"
            ):
                owner = ast.unparse(node.func.value)
                assert not re.search(r"(^|[._])(config|cfg)(\.\w+)*$", owner), (
                    f"{_name(path)}: {owner}.get("
                )


def test_no_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.])/(work|opt|home|root|Users|mnt)/")
    files = [
        *ALL_PY,
        *TEXTS,
        NOTEBOOK,
        *ROOT.glob("launch/*"),
        *ROOT.glob(".ci/*"),
        ROOT / "pyproject.toml",
    ]
    for path in files:
        if path != Path(__file__).resolve():
            assert not pattern.search(path.read_text(encoding="utf-8")), _name(path)


def _commands() -> list[list[str]]:
    blocks = [
        b
        for p in TEXTS
        for b in re.findall(r"```bash\n(.*?)```", p.read_text(encoding="utf-8"), re.S)
    ]
    headers = [p.read_text(encoding="utf-8") for p in (ROOT / "configs").rglob("*.py")]
    lines = [line.strip() for text in blocks + headers for line in text.splitlines()]
    pattern = re.compile(
        r"^(?:python -m cerebra_jax(?:\.main)?|cerebra|launch/run\.sh) (?!test\b)([^[]+)$"
    )  # [ ] = usage, not a command
    return [shlex.split(m[1], comments=True) for line in lines if (m := pattern.match(line))]


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_written_commands_are_true(words: list[str], monkeypatch: pytest.MonkeyPatch):
    """Every command in a document is read by the real parser; one about a run needs no run here."""
    monkeypatch.chdir(ROOT)
    # launch/run.sh adds the default configuration
    if not words or {"--help", "--version"} & set(words):
        return
    request = flags.read(words)
    needs_run = request.command in ABOUT_A_RUN or (
        request.command == "certify" and not request.config
    )
    if not needs_run:
        flags.parse(words)


def test_written_sweeps_have_points():
    """A part, row or seed that a document names stands in the sweep file."""
    for words in _commands():
        request = flags.read(words) if words and words[0] == "sweep" else None
        if request and "--help" not in words:
            found = points.call(str(ROOT / request.config), ("get_sweep", "get_search"))[1]
            assert found, words


@pytest.mark.parametrize("path", [TEXTS[0], TEXTS[2]], ids=_name)
def test_every_table_of_results_says_how_to_make_it_again(path: Path):
    """One block trains and writes it; a table of several sweeps has them all in that block."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    names = re.findall(r"<!-- RESULTS ?([\w-]*): begin", text)
    assert names and len(names) == len(set(names))
    for name in names:
        writes = re.compile(rf"--into={_name(path)}{'#' * bool(name)}{name}(?!\S)")
        own = [block for block in blocks if writes.search(block)]
        assert len(own) == 1, name
        assert re.search(r"main sweep --config=|python benchmarks/", own[0]), name


def test_written_paths_exist():
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"(?:cerebra_jax|configs|launch|tests|benchmarks|\.ci)/[\w./]*\w", text)
        missing = {n for n in named if not (ROOT / n).exists()}
        assert not missing, _name(path)


def test_the_floor_tested_is_the_floor_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = dict(d.split(">=") for d in project["dependencies"])
    lines = (ROOT / ".ci" / "floor.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert tested.pop("jaxlib") == tested["jax"]
    assert declared.keys() == tested.keys()
    for name, floor in declared.items():
        assert tested[name] == floor or tested[name].startswith(f"{floor}."), name


def test_hooks_run_the_pinned_linters():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pinned = set(re.findall(r"(?:ruff|import-linter)==[\d.]+", hooks))
    assert len(pinned) == 2 and pinned <= set(project["optional-dependencies"]["dev"])


def test_notebook_is_clean_and_its_commands_are_true(monkeypatch: pytest.MonkeyPatch):
    text = NOTEBOOK.read_text(encoding="utf-8")
    book = json.loads(text)
    assert (book["nbformat"], len(text) < 100_000) == (4, True)
    cells = [c for c in book["cells"] if c["cell_type"] == "code"]
    assert cells
    monkeypatch.chdir(ROOT)
    for i, cell in enumerate(cells):
        assert cell["outputs"] == [] and cell["execution_count"] is None, f"cell {i} has output"
        compile("".join(cell["source"]), f"cell {i}", "exec")
    for size in ("cpu", "17m", "smoke"):
        flags.parse([f"--config=configs/wikitext.py:{size}"])
