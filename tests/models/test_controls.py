"""Controls: what a routed model is compared with has its shape, its FLOPs, or its rate."""

from __future__ import annotations

import dataclasses

import pytest

from cerebra_jax import checks
from cerebra_jax.errors import UserError
from cerebra_jax.models.controls import control
from cerebra_jax.models.model import build

V = 300


def executed(cfg) -> int:
    return build(cfg, V).cost.executed_flops


@pytest.mark.parametrize("name", ["chiar", "cerebra"])
@pytest.mark.parametrize("width, heads, depth", [(64, 2, 3), (96, 4, 2), (48, 1, 5)])
def test_the_equal_flops_control_is_the_largest_dense_model_within_the_flops(
    tiny_cfg, name, width, heads, depth
):
    shape = {"width": width, "heads": heads, "depth": depth, "ffn_width": 3 * width}
    cfg = tiny_cfg({"twin": "equal_flops", "net": {"name": name} | shape})
    routed, found = dataclasses.replace(cfg, twin=""), control(cfg, V)
    assert found.net.name == "transformer" and found.twin == ""
    assert (found.net.depth, found.net.heads) == (depth, heads)
    assert (found.task, found.train) == (cfg.task, cfg.train)
    target = executed(routed)
    assert 0.98 * target < executed(found) <= target
    wider = dataclasses.replace(found.net, ffn_width=found.net.ffn_width + 1)
    assert executed(dataclasses.replace(found, net=wider)) > target


def test_the_equal_flops_control_is_priced_for_the_device_of_the_run(tiny_cfg):
    """A fused kernel of a GPU runs other FLOPs than the blocks of a CPU."""
    net = {"name": "cerebra", "width": 64, "ffn_width": 192, "dtype": "bfloat16"}
    keys = {"net": net, "task.seq_len": 1024, "objective.device": "h100"}
    target = executed(tiny_cfg(keys))
    found = control(tiny_cfg(keys | {"twin": "equal_flops"}), V)
    assert executed(found) <= target
    wider = dataclasses.replace(found.net, ffn_width=found.net.ffn_width + 1)
    assert executed(dataclasses.replace(found, net=wider)) > target


def test_the_random_router_of_chiar_keeps_its_rate_in_its_program(tiny_cfg):
    route = {"score": "permuted", "rate": 0.3}
    cfg = tiny_cfg({"twin": "random", "net.route": route, "task.seq_len": 256})
    random = control(cfg, V)
    found = random.net.route
    assert (found.mode, found.score, found.rate) == ("random", "spectral", 0.3)
    route = dataclasses.replace(cfg.net.route, score="spectral")
    plain = dataclasses.replace(cfg, twin="", net=dataclasses.replace(cfg.net, route=route))
    assert build(random, V).cost == build(plain, V).cost


CHIARS = [
    {"mode": "hard", "rbf": 0.3, "collapse": 0.1},
    {"score": "raw", "rbf": 0.2, "floor": 0.1},
    {"score": "permuted", "collapse": 0.1},
]


@pytest.mark.parametrize("kind", ["dense", "equal_flops", "random"])
@pytest.mark.parametrize("keys", CHIARS)
def test_every_chiar_has_controls_that_are_configurations_themselves(tiny_cfg, kind, keys):
    found = control(tiny_cfg({"twin": kind, "net.route": keys}), V)
    checks.together(found)
    assert control(found, V) == found
    assert executed(found) > 0


def test_the_other_controls_change_one_thing(tiny_cfg):
    cfg = tiny_cfg({"net.name": "cerebra", "objective.lam": 0.5})
    dense, random = (
        control(dataclasses.replace(cfg, twin=kind), V) for kind in ("dense", "random")
    )
    assert dense.net == dataclasses.replace(cfg.net, name="transformer")
    assert random.net.route == dataclasses.replace(cfg.net.route, mode="random")
    gated = tiny_cfg({"net.name": "cerebra", "net.route.gate": "learned", "twin": "random"})
    assert control(gated, V).net.route == dataclasses.replace(random.net.route, gate="learned")
    assert dense.objective.lam == random.objective.lam == 0.0
    first, second = (build(own, V).cost.executed["layer_00/attention"] for own in (random, cfg))
    assert first == second
    assert control(cfg, V) is cfg


@pytest.mark.parametrize(
    "change, said",
    [
        ({"net.name": "transformer", "twin": "equal_flops"}, "its own"),
        ({"net.name": "cnn", "twin": "random"}, "cnn routes nothing"),
        ({"net.name": "lstm", "twin": "random"}, "lstm routes nothing"),
    ],
)
def test_controls_that_do_not_exist_are_refused(tiny_cfg, change, said):
    with pytest.raises(UserError, match=said):
        control(tiny_cfg(change), V)
