"""The configurations of tables and intents: every part is one, and Cerebra runs at most half of the dense FLOPs."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import pytest

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.models.build import build as build_model
from cerebra_jax.tasks import build

ROOT = Path(__file__).resolve().parents[2]


def module(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("name", ["tabular", "intent"])
def test_every_part_is_a_configuration_and_others_are_refused(name):
    make = module(name)
    for part in make.PARTS:
        cfg = config.parse(make.get_config(part))
        assert cfg.task.name == name and not cfg.net.causal
    dense, smoke = (config.parse(make.get_config(part)) for part in ("dense", "cerebra-smoke"))
    assert (dense.net.name, smoke.net.name) == ("transformer", "cerebra")
    assert config.parse(make.get_config("dense-smoke")).net.width == smoke.net.width < dense.net.width
    for wrong in ("nothing", "cerebra-dense"):
        with pytest.raises(UserError):
            make.get_config(wrong)


SHARES = [("tabular", "cerebra", 0.3), ("intent", "routed", 0.3), ("intent", "cerebra", 0.2)]


@pytest.mark.parametrize(("name", "model", "least"), SHARES)
def test_cerebra_executes_at_most_half_of_the_dense_model(name, model, least):
    make = module(name)
    sizes = {}
    for part, size in itertools.product((model, "dense"), ("", "smoke")):
        cfg = config.parse(make.get_config(f"{part}-{size}"))
        task = build.build(cfg, lambda line: None)
        sizes[part, size] = build_model(build.fitted(cfg, task.shape), task.shape.vocab_size).cost.executed_flops
    for size in ("", "smoke"):
        assert least < sizes[model, size] / sizes["dense", size] <= 0.5
