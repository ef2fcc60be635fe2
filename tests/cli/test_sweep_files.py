"""The sweep files of this repository: every point is a model that can be built, and costs what its
name says.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cerebra_jax.cli import sweep_points as points
from cerebra_jax.errors import UserError
from cerebra_jax.models import model as build
from cerebra_jax.models.controls import control

ROOT = Path(__file__).resolve().parents[2]
V = 512


def models(name: str, arg: str):
    """{point: its model}, seed 0."""
    spec = f"{ROOT / 'configs' / 'sweeps' / name}.py:{arg}"
    found = points.load(spec, points.call(spec, ("get_sweep",))[1], {}, Path("runs"))
    assert {p.cfg.seed for p in found} == {0, 1, 2} and len(found) % 3 == 0
    return {p.name[:-3]: build.build(control(p.cfg, V), V) for p in found if p.cfg.seed == 0}


def attention(model, layer: str = "layer_01/attention") -> int:
    return model.cost.executed.get(layer, 0)


@pytest.mark.parametrize("arg", ["smoke", "cpu"])
def test_the_controls_of_chiar_differ_in_what_their_names_say(arg):
    found = models("chiar_controls", arg)
    flops = {name: m.cost.executed_flops for name, m in found.items()}
    routed = ("chiar", "random", "permuted", "no-dct")
    assert len({attention(found[name]) for name in routed}) == 1
    assert {m.net.route.dct for m in found.values()} == {"fft"}  # whatever the device
    assert (
        flops["chiar"]
        == flops["random"]
        == flops["no-dct"]
        < flops["permuted"]
        < 1.02 * flops["chiar"]
    )
    assert attention(found["all-light"]) == 0 and attention(found["all-heavy"]) == attention(
        found["dense"]
    )
    assert flops["all-light"] < flops["chiar"] < flops["all-heavy"] < flops["dense"]
    assert 0.98 * flops["chiar"] < flops["equal-flops"] <= flops["chiar"]
    with pytest.raises(UserError, match="use smoke, cpu"):
        models("chiar_controls", "tiny")


@pytest.mark.parametrize("arg", ["smoke", "mqar-512", "selective-1024"])
def test_slots_are_even_by_hand_and_by_demand_in_one_model(arg):
    found = models("slots", arg)
    routes = {found[f"cerebra-{name}"].net.route for name in ("even", "by-hand", "by-demand")}
    assert len(routes) == 3 and {r.rate for r in routes} == {0.25}
    assert found["cerebra-by-hand"].net.route.by_layer == (0.1, 1.9)
    assert found["cerebra-by-demand"].net.route.by_demand
    assert {m.net.name for m in found.values()} == {"transformer", "mod", "cerebra"}
    with pytest.raises(UserError, match="use smoke, mqar-512"):
        models("slots", "copy")


@pytest.mark.parametrize(("arg", "L"), [("smoke", 64), ("mqar", 128), ("selective-256", 256)])
def test_recall_compares_cerebra_with_chance_and_an_oracle_of_the_same_program(arg, L):  # noqa: N803
    found = models("recall", arg)
    flops = {name: m.cost.executed_flops for name, m in found.items()}
    assert flops["random"] == flops["oracle"] and abs(flops["cerebra"] / flops["oracle"] - 1) < 0.01
    assert flops["cerebra"] < 0.65 * flops["dense"] and flops["window"] <= flops["dense"]
    assert {m.L for m in found.values()} == {L} and found["window"].net.window == L // 4
    for wrong in ("mqar-", "mqar-x", "copy", "128"):
        with pytest.raises(UserError, match="TASK-LENGTH"):
            models("recall", wrong)


def test_the_study_of_collapse_has_three_operators_in_every_point():
    found = models("routing_collapse", "smoke")
    rows = {
        f"{mode}{reward}" for mode in ("threshold", "hard", "soft") for reward in ("", "+reward")
    }
    assert set(found) == rows
    for name, model in found.items():
        assert (
            model.cost.executed["layer_01/rbf"] > 0
            and model.net.route.mode == name.partition("+")[0]
        )
        assert (model.net.route.collapse > 0) == name.endswith("+reward")


def test_long_runs_differ_in_what_their_names_say():
    found = models("longrun", "smoke")
    flops = {name: m.cost.executed_flops for name, m in found.items()}
    assert flops["cerebra"] < flops["chiar"] < flops["dense"] == flops["dense-local"]
    assert 0.98 * flops["cerebra"] < flops["equal-flops"] <= flops["cerebra"]
    assert flops["cerebra-random-gate1"] < flops["cerebra-random"] <= flops["cerebra"]
    assert {m.net.dropout for m in found.values()} == {0.1}
    twins = ("cerebra", "cerebra-random", "dense-local", "equal-flops", "cerebra-random-gate1")
    local = {name: m.net.local for name, m in found.items()}
    assert local == {name: 4 if name in twins else 0 for name in found}
    get_sweep = points.call(f"{ROOT / 'configs' / 'sweeps' / 'longrun'}.py:cpu", ("get_sweep",))[1]
    assert {(point["train.duration"], point["net.dropout"]) for point in get_sweep} == {
        ("8 epochs", 0.1)
    }
    assert set(models("longrun", "smoke,dense,chiar")) == {"dense", "chiar"}
    for wrong, hint in (("tiny", "begin with smoke"), ("cpu,mod", "use dense, cerebra")):
        with pytest.raises(UserError, match=hint):
            models("longrun", wrong)
