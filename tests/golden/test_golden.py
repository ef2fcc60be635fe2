"""What the rebuild of the inside must not change: the recorded runs, and runs written by the code
of before.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from cerebra_jax.main import main

ROOT = Path(__file__).resolve().parents[2]
OLD = ROOT / "tests" / "data" / "old_runs"
spec = importlib.util.spec_from_file_location("record", Path(__file__).parent / "record.py")
record = importlib.util.module_from_spec(spec)
spec.loader.exec_module(record)


def tolerance(where: str) -> dict[str, float]:
    """Returns how far a figure may be off; in 8 bits a rounding may flip a decision."""
    if "/costs/" in where or where.endswith("executed_rel_flops"):
        return {"rel": 1e-9}
    if where.startswith("cerebra-full"):
        return {"rel": 2e-3, "abs": 1e-2}
    return {"rel": 2e-4 if where.endswith("grad_norm") else 2e-5, "abs": 1e-7}


def assert_close(found, recorded, where: str) -> None:
    """Costs agree to 1e-9 of their size (they are integers or ratios of integers), the rest to
    1e-5.
    """
    if isinstance(recorded, dict):
        assert found.keys() >= recorded.keys(), where
        for key, value in recorded.items():
            assert_close(found[key], value, f"{where}/{key}")
    elif isinstance(recorded, list):
        assert len(found) == len(recorded), where
        for i, value in enumerate(recorded):
            assert_close(found[i], value, f"{where}/{i}")
    elif isinstance(recorded, int | float):
        assert found == pytest.approx(recorded, **tolerance(where)), where
    else:
        assert found == recorded, where


@pytest.mark.parametrize("name", sorted(record.RUNS))
def test_the_first_steps_are_those_of_before(name, tmp_path, request):
    if name == "cerebra-full":
        request.getfixturevalue("eight_bits")
    found = record.read(record.train(name, tmp_path))
    assert_close(found, json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text()), name)


def unpacked(name: str, folder: Path) -> Path:
    """Unpacks a run of before beside the data that it was trained on."""
    shutil.copytree(ROOT / "tests" / "data" / "input", folder / "tests" / "data" / "input")
    with tarfile.open(OLD / f"{name}.tar.gz") as packed:
        packed.extraction_filter = getattr(tarfile, "data_filter", None)  # none before 3.11.4
        packed.extractall(folder)
    return folder / name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("chiar", ["eval"]),
        ("cerebra", ["generate", "--prompt=a", "--max_tokens=4"]),
        ("dense", ["generate", "--prompt=a", "--max_tokens=4"]),
        ("stopped", ["train"]),
        ("table", ["predict", "--data=tests/data/input/table.csv"]),
    ],
)
def test_runs_of_before_load_answer_and_resume(name, words, tmp_path, monkeypatch, capsys):
    workdir = unpacked(name, tmp_path)
    before = json.loads((workdir / "result.json").read_text()) if name != "stopped" else None
    if words == ["train"]:
        words = [f"--config={workdir / 'config.json'}"]
    else:
        words = [*words, f"--workdir={workdir}"]
    monkeypatch.chdir(tmp_path)
    status = main(words)
    shown = capsys.readouterr()
    assert status == 0, shown.out + shown.err
    if words[0] == "eval":
        assert f"loss {before['test']['loss']:.4f}" in shown.out
    if name == "stopped":
        assert "resuming at step 4 of 8" in shown.out and (workdir / "result.json").exists()
