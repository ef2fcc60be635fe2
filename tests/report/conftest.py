"""Finished runs, written without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cerebra_jax import config


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """make_run("folder", "chiar", 0, 200.0, {"net.route.rate": 0.5}): the folder of a run.

    Further keywords replace keys of its result.
    """

    def make(
        folder: str,
        model: str,
        seed: int,
        ppl: float,
        keys: dict[str, Any] | None = None,
        **result: Any,
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        cfg = config.to_dict(config.parse({}))
        for key, value in ({"net.name": model, "seed": seed} | (keys or {})).items():
            *sections, last = key.split(".")
            inside = cfg
            for section in sections:
                inside = inside[section]
            inside[last] = value
        found = {
            "model": model,
            "seed": seed,
            "dataset": "wikitext2",
            "params": 1_500_000,
            "steps": 60,
            "tokens": 6000,
            "val": {"ppl_word": ppl + 10},
            "test": {"ppl_word": ppl, "bits_per_byte": 1.5},
            "step_ms": 100.0 + seed,
            "costs": {
                "relative": {"expected": 0.9, "hard": 0.8, "executed": 0.7},
                "executed": 1.4e6,
                "dense": 2e6,
                "train_total": 6e9,
            },
            "device": {"device": "cpu", "cores": 2, "jax": "0.10.2"},
            "wall_s": 60.0,
            "commit": "abc",
        }
        (path / "result.json").write_text(json.dumps(found | result))
        (path / "config.json").write_text(json.dumps(cfg))
        lines = [
            {"step": i, "split": "train", "loss": 8 - i / 20, "executed_rel_flops": 1.0}
            for i in range(1, 61)
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return make


@pytest.fixture
def folders(make_run) -> list[Path]:
    """Three seeds of a dense model and of CHIAR, which is 11 ± 1 higher."""
    dense = [make_run(f"d{s}", "transformer", s, 200.0 + 3 * s) for s in range(3)]
    return dense + [make_run(f"c{s}", "chiar", s, 210.0 + 4 * s) for s in range(3)]
