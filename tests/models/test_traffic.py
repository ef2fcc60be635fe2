"""Bytes of every part: the same FLOPs as the price of the model, and the bytes that its program is counted to move."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cerebra_jax.models.traffic import table as traffic

from cerebra_jax.cost import count as jaxpr
from cerebra_jax.cost import units
from cerebra_jax.errors import UserError
from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.layers import shapes
from cerebra_jax.models import model as build
from cerebra_jax.routing import routers as router

V, B = 260, 4
BYTES = units.Unit("bytes", 0, 1, B)
SECONDS = units.Unit("seconds", 1 / 3e11, 1 / 2e10, B)
SHAPE = {"net": {"depth": 4, "width": 64, "heads": 4, "ffn_width": 256, "loss_chunk": B * 4096}}
CASES = {
    "dense": {"net.name": "transformer"},
    "dense-gated-bf16": {"net.name": "transformer", "net.ffn": "gated", "net.dtype": "bfloat16"},
    "dense-kept": {"net.name": "transformer", "net.kept": {"heads": "1,0,2,3", "ffn": "8,256,3,9"}},
    "chiar-kept": {"net.route.kv": "routed", "net.kept": {"heads": "0,1,3,2", "ffn": "80,0,3,9"}},
    "cerebra-kept": {
        "net.name": "cerebra",
        "net.kept": {
            "heads": "1,2,0,3",
            "ffn": "20,0,9,9",
            "rest": "3,24,0,9",
            "channels": "16,5,0,20",
        },
    },
    "cerebra-by-layer": {
        "net.name": "cerebra",
        "net.route": {"kv": "routed", "by_layer": "0.1,3,1,2"},
    },
    "dense-subwords": {"net.name": "transformer", "net.subwords": 7, "net.depth": 1},
    "dense-long": {"net.name": "transformer", "task.seq_len": 2048, "net.depth": 1},
    "chiar": {},
    "chiar-hard-routed-odd": {"net.route": {"mode": "hard", "kv": "routed"}, "task.seq_len": 97},
    "chiar-random": {"net.route.mode": "random"},
    "chiar-always_full": {"net.route.mode": "always_full"},
    "chiar-permuted": {"net.route.score": "permuted"},
    "chiar-raw": {"net.route.score": "raw"},
    "chiar-soft-matmul": {"net.route": {"mode": "soft", "dct": "matmul", "meta": "off"}},
    "chiar-masked": {"net.route": {"dispatch": False, "kv": "routed"}},
    "cerebra": {"net.name": "cerebra", "net.route": {"kv": "routed"}},
    "cerebra-bf16-hybrid": {
        "net.name": "cerebra",
        "net.dtype": "bfloat16",
        "net.compress": {"kind": "hybrid", "r": 0.3},
    },
    "cerebra-attention-part": {
        "net.name": "cerebra",
        "net.route.part": "attention",
        "net.compress.kind": "attention",
    },
    "cerebra-onehot": {"net.name": "cerebra", "net.route.lowering": "onehot"},
    "chiar-onehot": {"net.route.lowering": "onehot"},
    "mod": {"net.name": "mod"},
    "mod-onehot": {"net.name": "mod", "net.route.lowering": "onehot"},
    "mod-routed-masked": {"net.name": "mod", "net.route": {"kv": "routed", "dispatch": False}},
    "cerebra-long": {"net.name": "cerebra", "task.seq_len": 2048, "net.depth": 1},
}


def variants(tiny_cfg):
    """Every model x router x keys x part x dispatch x compressor, causal and not."""
    both = ("all", "routed"), (True, False)
    for mode, kv, dispatch in itertools.product(("threshold", "hard", "soft"), *both):
        yield tiny_cfg(SHAPE | {"net.route": {"mode": mode, "kv": kv, "dispatch": dispatch}}).net
    for mode, kv in itertools.product(("random", "always_full", "always_compressed"), both[0]):
        yield tiny_cfg(SHAPE | {"net.route": {"mode": mode, "kv": kv}}).net
    for score, dct in itertools.product(
        ("permuted", "raw", "spectral"), ("fft", "matmul", "folded")
    ):
        yield tiny_cfg(SHAPE | {"net.route": {"score": score, "dct": dct}}).net
    for mode, kv, dispatch in itertools.product(("threshold", "random"), *both):
        route = {
            "mode": mode,
            "kv": kv,
            "dispatch": dispatch,
            "lowering": "onehot" if mode == "random" else "gather",
        }
        yield tiny_cfg(SHAPE | {"net.name": "mod", "net.route": route}).net
    base = tiny_cfg(SHAPE | {"net.name": "cerebra"}).net
    choices = itertools.product(
        ("threshold", "soft", "topk", "random", "always_full", "always_compressed"), ("all", "routed"),
        ("block", "attention"), (True, False), ("conv", "attention", "hybrid"), (True, False))  # fmt: skip
    for mode, kv, part, dispatch, kind, causal in choices:
        lowering = "onehot" if kind == "hybrid" else "gather"
        route = dataclasses.replace(
            base.route, mode=mode, kv=kv, part=part, dispatch=dispatch, lowering=lowering
        )
        compress = dataclasses.replace(base.compress, kind=kind, r=0.3, s=0.6)
        yield dataclasses.replace(
            base, causal=causal and mode != "topk", route=route, compress=compress
        )
    for causal, features, outputs, pool in itertools.product(
        (True, False), (0, 3), (0, 2), ("", "mean")
    ):
        more = {"causal": causal, "features": features, "outputs": outputs, "pool": pool}
        yield dataclasses.replace(base, name="transformer", **more)
    for case, kv in itertools.product(("chiar-kept", "cerebra-kept"), ("all", "routed")):
        net = tiny_cfg(SHAPE | CASES[case]).net
        yield dataclasses.replace(net, route=dataclasses.replace(net.route, kv=kv))


def test_the_operations_of_a_part_have_the_flops_of_its_price(tiny_cfg):
    """As integers, for model and executed costs; and what decisions cost at the ceiling is the whole price, in any
    unit, with nothing below zero."""
    for net, L in itertools.product(variants(tiny_cfg), (48, 97)):
        cost, parts = build.MODELS[net.name].cost(net, L, V), traffic.parts(net, L, V)
        for want, got in ((cost.model, parts.model), (cost.executed, parts.executed)):
            flops = {name: sum(op.flops for op in ops) for name, ops in got.items()}
            assert {k: v for k, v in flops.items() if v} == {k: v for k, v in want.items() if v}, (
                net
            )
        if net.name == "transformer":
            continue
        flops, dense = build.MODELS[net.name].decisions(net, L, V), build.dense_of(net)
        routed = [shapes.of(net, i) for i in build.MODELS[net.name].layers(net)]
        got = traffic.decisions(net, L, V, dense, units.FLOPS, routed)
        np.testing.assert_allclose(got[:5], flops[:5], rtol=1e-9)
        np.testing.assert_allclose(got.each, flops.each, rtol=1e-9)
        assert bool(got.each) == (net.kept != shapes.WHOLE)
        for unit in (BYTES, SECONDS):
            each = traffic.decisions(net, L, V, dense, unit, routed)
            assert min(np.ravel([*each[:5], *np.ravel(each.each)])) >= 0 < each.fixed
            whole = traffic.total(parts.model, unit) / traffic.total(
                traffic.parts(dense, L, V).model, unit
            )
            np.testing.assert_allclose(router.kept_cost(net, L, each, 1.0), whole, rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_those_of_the_program(case, tiny_cfg):
    """Never more than the counter's, and at most 4 % less: positions, masks and decisions are left out."""
    cfg = tiny_cfg({"task.seq_len": 128} | SHAPE | CASES[case])
    model, L = build.build(cfg, V), cfg.task.seq_len
    ints, floats = (
        jax.ShapeDtypeStruct((B, L), jnp.int32),
        jax.ShapeDtypeStruct((B, L), jnp.float32),
    )
    batch = {
        "inputs_BxL": ints,
        "labels_BxL": ints,
        "w_BxL": floats,
        "ex_B": jax.ShapeDtypeStruct((B,), jnp.int32),
    }
    if cfg.net.subwords:
        batch["subwords_BxLxG"] = jax.ShapeDtypeStruct((B, L, cfg.net.subwords), jnp.int32)
    variables = jax.eval_shape(lambda b: model.init(jax.random.key(0), b), batch)

    def forward(params, routing, batch):
        out, aux = model.apply({"params": params, "routing": routing}, batch, build.neutral_knobs())
        nats = chunked_xent(
            out.h, out.head_VxD, batch["labels_BxL"], batch["w_BxL"], cfg.net.loss_chunk
        )
        return nats + aux.expected_B.sum() + aux.hard_B.sum()

    counted = jaxpr.count(forward, variables["params"], variables["routing"], batch).bytes
    assert (
        0.96 * counted <= B * traffic.total(traffic.parts(cfg.net, L, V).executed, BYTES) <= counted
    )


@pytest.mark.parametrize("unit", ["flops", "seconds"])
@pytest.mark.parametrize("name", ["chiar", "cerebra", "mod"])
def test_a_model_reports_its_costs_in_the_unit_of_its_configuration(name, unit, tiny_cfg):
    """hard_B is the price of the decisions taken, counted here from how many tokens each layer kept."""
    keys = {
        "net.name": name,
        "objective.unit": unit,
        "objective.device": "t4",
        "train.batch_size": B,
        "task.seq_len": 48,
    }
    cfg = tiny_cfg(SHAPE | keys | {"net.route.kv": "routed", "net.route.capacity": 4.0})
    model = build.build(cfg, V)
    assert model.unit.name == unit and 0 < model.executed < 2
    ids = np.random.RandomState(0).randint(0, V, (B, 48)).astype(np.int32)
    batch = {"inputs_BxL": ids, "ex_B": np.arange(B)}
    variables = jax.jit(lambda: model.init(jax.random.key(0), batch))()
    aux = jax.jit(lambda: model.apply(variables, batch, build.neutral_knobs())[1])()
    each = build.decisions(cfg.net, 48, V, model.unit)
    kept_RxB = np.asarray(aux.stats["kept"], np.float64) * 48
    pairs_RxB = kept_RxB * (kept_RxB + 1) / 2
    want_B = each.fixed + (kept_RxB * each.token + pairs_RxB * each.pair).sum(0)
    np.testing.assert_allclose(aux.hard_B, want_B, rtol=1e-5)
    assert 0 < kept_RxB.sum() and np.isfinite(np.asarray(aux.expected_B)).all()


def test_the_three_units_are_three_numbers_and_a_memory_bound_device_counts_bytes(tiny_cfg):
    def executed(**keys):
        return build.build(
            tiny_cfg(SHAPE | {"net.name": "cerebra", "task.seq_len": 256} | keys), V
        ).executed

    flops, moved = executed(), executed(**{"objective.unit": "bytes"})
    fast = {"objective.unit": "seconds", "objective.device": "1e18/1e9"}
    slow = {"objective.unit": "seconds", "objective.device": "1e9/1e18"}
    assert abs(flops - moved) > 0.01
    np.testing.assert_allclose([executed(**fast), executed(**slow)], [moved, flops], rtol=1e-9)


def test_a_model_whose_bytes_are_not_priced_is_refused(tiny_cfg):
    with pytest.raises(UserError, match="net.name=lstm.*objective.unit=flops"):
        build.build(tiny_cfg({"net.name": "lstm", "objective.unit": "bytes"}), V)
