"""Benchmarks are scripts: a test loads one as the module it is."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """script("decode"): benchmarks/decode.py, with its folder on sys.path as if it were run.

    Cells are short, and the rates of the machine are made up: what is timed is not looked at.
    """

    def load(name: str) -> ModuleType:
        monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        spec = importlib.util.spec_from_file_location(
            f"{name}_benchmark", BENCHMARKS / f"{name}.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if hasattr(module, "timing"):
            monkeypatch.setattr(module.timing, "CELL_SECONDS", 1e-3)
        if hasattr(module, "machine_rates"):
            rates = module.machine_rates.Rates(matmul=1e11, copy=1e10)
            monkeypatch.setattr(module.machine_rates, "machine_rates", lambda: rates)
        return module

    return load


@pytest.fixture
def measure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> Callable[[ModuleType, list[str]], tuple[dict[str, Any], str]]:
    """measure(script("decode"), words): what a benchmark writes with these options, and prints."""

    def run(module: ModuleType, words: list[str]) -> tuple[dict[str, Any], str]:
        out = tmp_path / "found.json"
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *words, f"--out={out}"])
        module.main()
        return json.loads(out.read_text()), capsys.readouterr().out

    return run
