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


def listed(name: str, arg: str) -> list[points.Point]:
    """The points of a sweep file of ours."""
    spec = f"{ROOT / 'configs' / 'sweeps' / name}.py:{arg}"
    return points.load(spec, points.call(spec, ("get_sweep",))[1], {}, Path("runs"))


def models(name: str, arg: str):
    """{point: its model}, seed 0."""
    found = listed(name, arg)
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


def test_rows_of_text_differ_in_what_their_names_say():
    found = models("text", "smoke")
    flops = {name: m.cost.executed_flops for name, m in found.items()}
    assert flops["cerebra"] < flops["chiar"] < flops["dense"] == flops["dense-local"]
    assert 0.98 * flops["cerebra"] < flops["equal-flops"] <= flops["cerebra"]
    assert flops["cerebra-random-gate1"] < flops["cerebra-random"] <= flops["cerebra"]
    assert {m.net.dropout for m in found.values()} == {0.1}
    twins = ("cerebra", "cerebra-random", "dense-local", "equal-flops", "cerebra-random-gate1")
    local = {name: m.net.local for name, m in found.items()}
    assert local == {name: 4 if name in twins else 0 for name in found}
    for part, duration, dropout in (("long", "8 epochs", 0.1), ("short", "1000 steps", 0.0)):
        runs = {(p.cfg.train.duration, p.cfg.net.dropout) for p in listed("text", part)}
        assert runs == {(duration, dropout)}


def test_words_choose_rows_and_seeds():
    names = {p.name for p in listed("text", "smoke,dense,s2,chiar")}
    assert names == {"dense-s2", "chiar-s2"}
    names = {p.name for p in listed("slots", "mqar-128,random-by-hand")}
    assert names == {f"random-by-hand-s{seed}" for seed in range(3)}
    for arg, hint in (("tiny", "begin with long"), ("long,mod", "use dense, cerebra")):
        with pytest.raises(UserError, match=hint):
            listed("text", arg)


def test_chance_has_the_slots_of_the_router_that_are_divided_by_hand():
    ours, chance = (
        listed("slots", f"mqar-128,{name}-by-hand")[0] for name in ("cerebra", "random")
    )
    assert (ours.cfg.net.route.mode, chance.cfg.net.route.mode) == ("threshold", "random")
    assert ours.cfg.net.route.by_layer == chance.cfg.net.route.by_layer == (0.1, 1.9)


@pytest.mark.parametrize("part", ["text", "encoder", "smoke"])
def test_both_budgets_have_every_seed(part):
    found = listed("budget", part)
    assert {(p.cfg.objective.budget, p.cfg.seed) for p in found} == {
        (budget, seed) for budget in (0.5, 0.75) for seed in range(3)
    }
    assert {p.cfg.net.causal for p in found} == {part != "encoder"}
    assert {p.cfg.net.route.tau for p in found} == {"learned"}


def test_intents_are_told_by_the_models_that_the_tables_compare():
    assert {p.name for p in listed("intent", "clinc150")} == {
        f"clinc150-{model}-s{seed}"
        for model in ("cerebra", "mlp", "dense", "routed")
        for seed in range(3)
    }
    assert {p.cfg.net.name for p in listed("intent", "banking77")} == {"cerebra", "mlp"}
