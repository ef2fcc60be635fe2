"""Configurations of tables and intents: every part is one, Cerebra runs half of the dense FLOPs."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from pathlib import Path

import pytest

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.main import main
from cerebra_jax.models.model import build as build_model
from cerebra_jax.tasks import registry
from cerebra_jax.training import pruning_rounds as rounds

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
    assert (
        config.parse(make.get_config("dense-smoke")).net.width == smoke.net.width < dense.net.width
    )
    for wrong in ("nothing", "cerebra-dense"):
        with pytest.raises(UserError):
            make.get_config(wrong)


@pytest.mark.usefixtures("eight_bits")
def test_the_whole_recipe_is_for_cerebra_and_its_phases_follow_each_other(tmp_path):
    """Warm, ramp, prune, 8 bits, sampler in one run; then the smaller run, and its int8 weights."""
    file = str(ROOT / "configs" / "tabular.py")
    for wrong in ("dense-full", "full-dense"):
        with pytest.raises(UserError, match="full is for cerebra"):
            module("tabular").get_config(wrong)
    with pytest.raises(UserError, match="cerebra-full"):
        module("wikitext").get_config("full")
    for part in ("smoke", "cpu", "17m", "400m"):  # the target can be reached
        cfg = config.parse(module("wikitext").get_config(f"cerebra-full-{part}"))
        task = registry.sketch(cfg)
        cfg, vocab = registry.fitted(cfg, task.shape), task.shape.vocab_size
        length = rounds.Length(1000, 100)
        assert rounds.Rounds(cfg, build_model(cfg, vocab), vocab, length).last == 700
    full = config.parse(module("wikitext").get_config("cerebra-full-400m"))
    assert (
        full.prune.on
        and full.quant.bits == 8
        and full.sampler.on
        and full.objective.lam > 0
        and not full.net.scan
    )
    rows = "\n".join(f"{'abc'[i % 3]},{i % 7},{i % 5 + 10 * (i % 3)}" for i in range(200))
    (tmp_path / "t.csv").write_text(f"kind,x,y\n{rows}\n")
    data = [f"--config.task.path={tmp_path / 't.csv'}", "--config.task.target=y"]
    keys = {"net.depth": "1", "train.duration": "20 steps", "train.batch_size": "16"}
    words = [f"--config={file}:full-smoke", "--config.train.devices=1", *data]
    words += [f"--config.{key}={value}" for key, value in keys.items()]
    words += [f"--workdir={tmp_path / 'run'}"]
    assert main(words) == 0
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    steps = [line for line in lines if line["split"] == "train"]
    assert list(dict.fromkeys(line["phase"] for line in steps)) == ["warm", "ramp", "prune", "qat"]
    assert [line["step"] for line in steps if "sampler_effective" in line] == [18, 19, 20]
    assert (
        all(math.isfinite(line["loss"]) for line in lines)
        and steps[-1]["kept_rel_flops"] < 0.8 * steps[0]["kept_rel_flops"]
    )
    small, stored = (f"--to={tmp_path / name}" for name in ("small", "int8"))
    assert main(["shrink", f"--workdir={tmp_path / 'run'}", small]) == 0
    assert main(["convert", f"--workdir={tmp_path / 'small'}", stored]) == 0
    assert main(["eval", f"--workdir={tmp_path / 'int8'}", "--split=valid"]) == 0
    found = [
        json.loads((tmp_path / path).read_text())
        for path in ("run/result.json", "int8/eval-valid.json")
    ]
    assert abs(found[1]["rmse"] / found[0]["val"]["rmse"] - 1) < 0.02


SHARES = [("tabular", "cerebra", 0.3), ("intent", "routed", 0.3), ("intent", "cerebra", 0.2)]


@pytest.mark.parametrize(("name", "model", "least"), SHARES)
def test_cerebra_executes_at_most_half_of_the_dense_model(name, model, least):
    make = module(name)
    sizes = {}
    for part, size in itertools.product((model, "dense"), ("", "smoke")):
        cfg = config.parse(make.get_config(f"{part}-{size}"))
        task = registry.build(cfg, lambda line: None)
        sizes[part, size] = build_model(
            registry.fitted(cfg, task.shape), task.shape.vocab_size
        ).cost.executed_flops
    for size in ("", "smoke"):
        assert least < sizes[model, size] / sizes["dense", size] <= 0.5
