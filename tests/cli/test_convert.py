"""convert: the folder of a run whose weights are int8, which every other command takes."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

import cerebra_jax
from cerebra_jax import config
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.main import main
from cerebra_jax.models import model as models
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import certificate, finished
from cerebra_jax.training import trainer as loop
from cerebra_jax.trees import named_leaves

pytestmark = pytest.mark.usefixtures("eight_bits")


@pytest.fixture(scope="module")
def runs(tiny_cfg, Screen, tmp_path_factory):
    """(a run trained in 8 bits, the same converted, what convert said)."""
    folder = tmp_path_factory.mktemp("eight")
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(f"the {split} text is short\n" * 9)
    net = {
        "name": "cerebra",
        "depth": 1,
        "width": 64,
        "ffn_width": 128,
        "route": {"tau": "learned"},
    }
    train, quant = {"duration": "4 steps", "devices": 1}, {"bits": 8, "start": "2 steps"}
    prune = {"unstructured": 0.5, "start": "1 steps", "end": "2 steps", "rounds": 2}
    cfg = tiny_cfg(
        {
            "task.data_dir": str(folder),
            "net": net,
            "objective": {"lam": 0.1, "buckets": 2},
            "train": train,
            "quant": quant,
            "prune": prune,
        }
    )
    run, eight = folder / "run", folder / "int8"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config.to_dict(cfg)))
    loop.run(cfg, build(cfg, print), run, Screen())
    return run, eight


@pytest.fixture(scope="module")
def converted(runs):
    run, eight = runs
    assert main(["convert", f"--workdir={run}", f"--to={eight}"]) == 0
    return run, eight


def test_a_converted_run_is_small_and_answers_alike(converted, capsys):
    run, eight = converted
    sizes = json.loads((eight / "convert.json").read_text())
    before, after = sizes["bytes_before"], sizes["bytes_after"]
    assert after["linear"] <= 0.3 * before["linear"]
    assert after["all"] == before["all"] - before["linear"] + after["linear"]
    old, new = cerebra_jax.load(run), cerebra_jax.load(eight)
    leaves = named_leaves(new.variables["params"])
    assert sum(np.asarray(x).nbytes for x in leaves.values()) == after["all"]
    kernels = {n.removesuffix("/int8") for n in leaves if n.endswith("/int8")}
    assert kernels and not kernels & leaves.keys()  # the float ones are gone
    assert not [n for n in leaves if n.endswith("kernel") and not n.endswith("router/score/kernel")]
    up = leaves["layer_00/ffn_light/up/kernel/int8"]
    assert 0.4 < np.mean(np.asarray(up) == 0) < 0.6  # what was pruned stays so
    batch = next(iter(build(old.cfg, print).eval_batches("valid", 2)))
    (want, aux), (got, same) = (
        jax.jit(lambda v, b, m=x.model: m.apply(v, b, models.neutral_knobs()))(x.variables, batch)
        for x in (old, new)
    )
    np.testing.assert_allclose(got.h, want.h, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(aux.hard_B, same.hard_B)
    assert old.generate(["the"], 4, 0.0).texts == new.generate(["the"], 4, 0.0).texts
    for folder in (run, eight):
        assert main(["eval", f"--workdir={folder}"]) == 0
    lines = [json.loads((folder / "eval-test.json").read_text()) for folder in (run, eight)]
    assert lines[0]["bits"] == lines[1]["bits"] == 8
    assert abs(lines[0]["loss"] - lines[1]["loss"]) < 1e-5 * lines[0]["loss"]


def test_operations_in_int8_are_counted_apart_and_certified(converted):
    cfg = config.parse((converted[1] / "config.json").read_text())
    task = build(cfg, print)
    state = finished.load(cfg, task, converted[1], print).state
    found = certificate.Variant(cfg, task, state)
    row = found.row | {"masked_flops": None}
    assert list(found.runs) == ["forward"] and row["counted_train_flops"] is None
    assert row["counted_flops"] + row["counted_int8"] == row["executed_flops"]
    assert row["counted_int8"] > row["counted_flops"] / 10 > 0
    plain = {
        "counted_flops": row["executed_flops"],
        "counted_int8": 0,
        "executed_flops": row["executed_flops"],
        "counted_train_flops": 1,
        "counted_train_int8": 0,
    }
    (problem,) = certificate.verdict(
        {"model": row, "dense": plain}
    )  # int8 alone is no saving of FLOPs
    assert "forward pass has 1.0000 of the FLOPs" in problem
    more = plain | {
        "counted_flops": 2 * row["executed_flops"],
        "executed_flops": 2 * row["executed_flops"],
    }
    assert certificate.verdict({"model": row, "dense": more}) == []
    trained = dataclasses.replace(cfg, quant=dataclasses.replace(cfg.quant, stored=False))
    s = certificate.prepare(trained, task)
    forward = certificate.forward_pass(s, s.sizes.model(0, 0, True))
    counted = jaxpr.count(forward, s.like, task.example(2))
    assert counted.int8 == 2 * row["counted_int8"] and counted.flops == 2 * row["counted_flops"]


def test_what_cannot_be_converted_is_one_line(converted, tmp_path, capsys):
    run, eight = converted
    capsys.readouterr()
    for words, line in (
        ([f"--workdir={run}"], "--to is missing"),
        ([f"--workdir={eight}", f"--to={tmp_path / 'again'}"], "are int8 already"),
        ([f"--workdir={run}", f"--to={eight}"], "is not empty"),
    ):
        assert main(["convert", *words]) == 2
        assert line in capsys.readouterr().err
    plain = config.to_dict(config.parse((run / "config.json").read_text())) | {"quant": {}}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    assert main(["convert", f"--workdir={tmp_path}", f"--to={tmp_path / 'to'}"]) == 2
    assert "not trained in 8 bits" in capsys.readouterr().err
    assert main([f"--config={eight / 'config.json'}"]) == 2
    assert re.search(r"weights of this run are int8.*; train the run", capsys.readouterr().err)


def test_integer_products_are_no_flops():
    a, b = (jax.ShapeDtypeStruct((8, 8), "int8"),) * 2
    dot = lambda x, y: jax.lax.dot(x, y, preferred_element_type="int32")  # noqa: E731
    found = jaxpr.count(lambda x, y: dot(x, y).astype("float32") @ x.astype("float32"), a, b)
    assert (found.flops, found.int8, found.by) == (1024, 1024, {"dot": 1024})
