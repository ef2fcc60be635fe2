"""A run that divides its slots by demand: stopped anywhere it is the same run, it executes what it
would with even slots, and whatever reads its folder runs the division that it ended with.
"""

from __future__ import annotations

import dataclasses

import pytest

from cerebra_jax.errors import Preempted
from cerebra_jax.policies import division
from cerebra_jax.tasks.long_sequence import task as long_sequence
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import finished, imported
from cerebra_jax.training import trainer as loop
from cerebra_jax.training.experiment import prepare
from cerebra_jax.training.sizes import with_division

L = 64
BUDGET = {"objective.budget": 0.8, "objective.buckets": 2, "objective.ramp": "4 steps"}
ONCE = {"objective.budget": 0.0, "net.route.divide_at": "5 steps", "net.route.rate": 0.5}


@pytest.fixture(scope="module")
def cfg_of(tiny_cfg):
    """Returns a function that makes a configuration whose slots are divided by demand."""

    def make(keys):
        base = {
            "task": {"name": "long_sequence", "seq_len": L, "vocab_size": 64, "pairs": 4},
            "net": {"name": "cerebra", "depth": 2, "local": 4},
            "net.route": {"by_demand": True, "tau": "learned", "kv": "routed"},
            "train": {"duration": "12 steps", "lr": 0.05, "eval_every": "12 steps"},
            "train.checkpoint_every": "3 steps",
            "objective.warm": "2 steps",
        }
        return tiny_cfg(base | keys)

    return make


@pytest.fixture(autouse=True)
def few_examples(monkeypatch):
    """Makes an evaluation one batch: the tests are about the steps."""
    monkeypatch.setattr(long_sequence, "HELD_OUT", {"valid": 8, "test": 8})


@pytest.fixture
def wanting(monkeypatch):
    """Lets the second layer want thrice as much as its router does, so that slots do move."""
    asked = division.by_demand
    monkeypatch.setattr(division, "by_demand", lambda wanted: asked([wanted[0], 3 * wanted[1]]))


def stopped(go, cfg, folder, step):
    """Returns result and lines of a run that is stopped before a step, and goes on."""

    def written():
        file = folder / "metrics.jsonl"  # its lines are one step late
        return file.exists() and file.read_text().count('"train"') >= step - 1

    with pytest.raises(Preempted):
        go(cfg, folder, written)
    found, lines, _ = go(cfg, folder)
    return found, lines


@pytest.mark.parametrize("keys", [BUDGET, ONCE], ids=["budget", "once"])
def test_a_run_moves_its_slots_at_the_same_cost_and_resumes_exactly(
    keys, go, cfg_of, tmp_path, wanting, Screen
):
    cfg = cfg_of(keys)
    want, lines, screen = go(cfg, tmp_path / "whole")
    e = prepare(cfg, build(cfg, print))
    train = [line for line in lines if line["split"] == "train"]
    divisions = [tuple(line["gates"]["by_layer"]) for line in train]
    (change,) = (i for i in range(1, 12) if divisions[i] != divisions[i - 1])

    # even at first; then one line, and one program more where no budget changes it anyway
    assert divisions[0] == (1.0, 1.0) and divisions[-1][1] > 1.2 > 0.8 > divisions[-1][0]
    assert sum("slots of the layers" in line for line in screen.lines) == 1
    assert sum("compiling" in line for line in screen.lines) == 1
    assert change == (e.sizes.plan.changes(12)[0] if e.sizes.plan else 5)

    # each step at the price of its program: that of even slots, or the budget, up to a slot each
    slot = (e.sizes.model(0).executed - priced(e, rate=1e-6)) / L
    for at, line in enumerate(train):
        size = e.sizes.plan.bucket(at) if e.sizes.plan else 0
        model = e.sizes.model(size, by_layer=division.stored(divisions[at]))
        level = e.sizes.model(size).executed
        if e.sizes.plan and at >= change:
            level = cfg.objective.budget
        assert line["executed_rel_flops"] == model.executed
        assert level - 2 * slot <= model.executed <= level + 1e-9, at
    flops = sum(line["executed_rel_flops"] for line in train) * e.model.dense.executed_flops
    assert want["costs"]["train_total"] == pytest.approx(3 * cfg.train.batch_size * flops)

    # stopped where it changes, or behind that; then what a reader of its folder has
    got, again = stopped(go, cfg, tmp_path / "run", change if e.sizes.plan else change + 2)
    assert again == lines
    assert got["params_sha256"] == want["params_sha256"] and got["test"] == want["test"]
    measured = loop.measure(cfg, e.task, tmp_path / "run", "test", Screen())
    assert measured.items() >= got["test"].items()
    best = finished.load(cfg, e.task, tmp_path / "run", print)
    assert dataclasses.asdict(best.model.net) == got["net"]
    assert best.serving.by_layer == divisions[best.step - 1]
    # the same division by hand is the same program at the end, and so is an exported file's
    named = imported.load(tmp_path / "run", print)
    by_hand = prepare(with_division(cfg, named.by_layer), e.task)
    assert by_hand.model.net == best.model.net


def priced(e, rate: float) -> float:
    """Returns the executed cost of the model at another rate."""
    net = e.sizes.cfgs[0].net
    route = dataclasses.replace(net.route, rate=rate)
    return e.model.pricing.relative(dataclasses.replace(net, route=route))


def test_a_flat_demand_moves_nothing_and_compiles_nothing(go, cfg_of, tmp_path, monkeypatch):
    monkeypatch.setattr(division, "by_demand", lambda wanted: (1.0,) * len(wanted))
    found, lines, screen = go(cfg_of(ONCE), tmp_path)
    assert not [x for x in screen.lines if "compiling" in x or "slots of the layers" in x]
    assert all(line["gates"]["by_layer"] == [1.0, 1.0] for line in lines)
    assert found["net"]["route"]["by_layer"] == ()
