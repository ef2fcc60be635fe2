"""Runs as training leaves them, with the parameters that they begin with: nothing is trained."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.tasks.registry import build
from cerebra_jax.training.checkpoint import Checkpoints
from cerebra_jax.training.experiment import prepare


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_cfg) -> Callable[..., Path]:
    """trained({"net.name": "cerebra"}): the folder of a run on a made-up text, or on other data."""
    folder = tmp_path_factory.mktemp("runs")
    rng = random.Random(0)
    words = ["the", "cat", "sat", "naïve", "12", "7", "and", ",", ".", "Der", "Hügel"]
    for split, lines in (("train", 200), ("valid", 60), ("test", 20)):
        rows = (" ".join(rng.choices(words, k=9)) for _ in range(lines))
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    texts = [f"{rng.choice(words[:5])} {word}" for word in words for _ in range(20)]
    rows = "".join(f'"{text}",{text.split()[0]}\n' for text in texts)
    (folder / "intents.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    made: dict[str, Path] = {}

    def make(keys: dict[str, Any]) -> Path:
        name = json.dumps(keys)
        if name not in made:
            here = (
                {"task.path": str(folder / "intents.csv")}
                if "task.name" in keys
                else {"task.data_dir": str(folder)}
            )
            cfg = tiny_cfg({"train.devices": 1, "train.batch_size": 4, **here, **keys})
            made[name] = folder / f"run{len(made)}"
            made[name].mkdir()
            (made[name] / "config.json").write_text(json.dumps(config.to_dict(cfg)))
            task = build(cfg, lambda line: None)
            state = prepare(cfg, task).fresh().replace(step=np.int32(2))
            meta = {
                "step": 2,
                "score": 1.0,
                "wall_s": 0.0,
                "config": config.to_dict(cfg),
                "data": task.info(),
            }
            with contextlib.closing(Checkpoints(made[name] / "checkpoints", print)) as checkpoints:
                checkpoints.save(2, state, meta | {"environment": {}}, 1.0)
                checkpoints.wait()
        return made[name]

    return make
