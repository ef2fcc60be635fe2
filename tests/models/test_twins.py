"""Twins: what a routed model is compared with has its shape, its FLOPs, or its rate."""

from __future__ import annotations

import dataclasses

import pytest

from cerebra_jax import checks
from cerebra_jax.errors import UserError
from cerebra_jax.models import model as build

V = 300


def executed(cfg) -> int:
    return build.build(cfg, V).cost.executed_flops


@pytest.mark.parametrize("name", ["chiar", "cerebra"])
@pytest.mark.parametrize("width, heads, depth", [(64, 2, 3), (96, 4, 2), (48, 1, 5)])
def test_the_equal_flops_twin_is_the_largest_dense_model_within_the_flops(
    tiny_cfg, name, width, heads, depth
):
    shape = {"net.width": width, "net.heads": heads, "net.depth": depth, "net.ffn_width": 3 * width}
    cfg = tiny_cfg({"net.name": name, "twin": "equal_flops"} | shape)
    routed, found = dataclasses.replace(cfg, twin=""), build.twin(cfg, V)
    assert found.net.name == "transformer" and found.twin == ""
    assert (
        (found.net.depth, found.net.heads) == (depth, heads)
        and found.task == cfg.task
        and found.train == cfg.train
    )
    target = executed(routed)
    assert 0.98 * target < executed(found) <= target
    wider = dataclasses.replace(found.net, ffn_width=found.net.ffn_width + 1)
    assert executed(dataclasses.replace(found, net=wider)) > target


def test_the_random_router_of_chiar_keeps_its_rate_in_its_program(tiny_cfg):
    cfg = tiny_cfg(
        {"twin": "random", "net.route": {"score": "permuted", "rate": 0.3}, "task.seq_len": 256}
    )
    random = build.twin(cfg, V)
    assert (random.net.route.mode, random.net.route.score, random.net.route.rate) == (
        "random",
        "spectral",
        0.3,
    )
    route = dataclasses.replace(cfg.net.route, score="spectral")
    plain = dataclasses.replace(cfg, twin="", net=dataclasses.replace(cfg.net, route=route))
    assert build.build(random, V).cost == build.build(plain, V).cost


@pytest.mark.parametrize("kind", ["dense", "equal_flops", "random"])
@pytest.mark.parametrize("keys", [
    {"mode": "hard", "rbf": 0.3, "collapse": 0.1}, {"score": "raw", "rbf": 0.2, "floor": 0.1},
    {"score": "permuted", "collapse": 0.1}])  # fmt: skip
def test_every_chiar_has_twins_that_are_configurations_themselves(tiny_cfg, kind, keys):
    found = build.twin(tiny_cfg({"twin": kind, "net.route": keys}), V)
    checks.together(found)
    assert build.twin(found, V) == found and executed(found) > 0


def test_the_other_twins_change_one_thing(tiny_cfg):
    cfg = tiny_cfg({"net.name": "cerebra", "objective.lam": 0.5})
    dense, random = (
        build.twin(dataclasses.replace(cfg, twin=kind), V) for kind in ("dense", "random")
    )
    assert (
        dense.net == dataclasses.replace(cfg.net, name="transformer") and dense.objective.lam == 0.0
    )
    assert (
        random.net.route == dataclasses.replace(cfg.net.route, mode="random")
        and random.objective.lam == 0.0
    )
    assert (
        build.build(random, V).cost.executed["layer_00/attention"]
        == build.build(cfg, V).cost.executed["layer_00/attention"]
    )
    assert build.twin(cfg, V) is cfg


@pytest.mark.parametrize(
    "change, said",
    [
        ({"net.name": "transformer", "twin": "equal_flops"}, "its own"),
        ({"net.name": "cnn", "twin": "random"}, "cnn routes nothing"),
        ({"net.name": "lstm", "twin": "random"}, "lstm routes nothing"),
    ],
)
def test_twins_that_do_not_exist_are_refused(tiny_cfg, change, said):
    with pytest.raises(UserError, match=said):
        build.twin(tiny_cfg(change), V)
