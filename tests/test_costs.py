"""The price of every model equals the count of its program, as integers; routing makes programs cheaper."""

import functools

import jax
import jax.numpy as jnp
import pytest

from cerebra_jax.cost import jaxpr
from cerebra_jax.models import build
from cerebra_jax.ops.xent import chunked_xent

VOCAB = 260
B = 2


def shapes(L):
    """The shapes of a batch of two windows."""
    ints, floats = jax.ShapeDtypeStruct((B, L), jnp.int32), jax.ShapeDtypeStruct((B, L), jnp.float32)
    return {"inputs_BxL": ints, "labels_BxL": ints, "w_BxL": floats, "ex_B": jax.ShapeDtypeStruct((B,), jnp.int32)}


def program(cfg):
    """(model, forward pass with its loss, shapes of its arguments)."""
    model = build.build(cfg, VOCAB)
    batch = shapes(cfg.task.seq_len)
    variables = jax.eval_shape(lambda b: model.init(jax.random.key(0), b), batch)

    def forward(params, routing, batch):
        out, aux = model.apply({"params": params, "routing": routing}, batch, build.neutral_knobs())
        loss = chunked_xent(out.h, out.head_VxD, batch["labels_BxL"], batch["w_BxL"], cfg.net.loss_chunk)
        return loss + aux.expected_B.sum() + aux.hard_B.sum()

    return model, forward, (variables["params"], variables["routing"], batch)


CASES = {
    "dense": {"net.name": "transformer"},
    "dense-gated": {"net.name": "transformer", "net.ffn": "gated"},
    "dense-scan": {"net.name": "transformer", "net.scan": True},
    "dense-odd-length": {"net.name": "transformer", "task.seq_len": 333},
    "dense-blockwise": {"net.name": "transformer", "task.seq_len": 2048, "net.attention": "blockwise"},
    "dense-bf16-remat": {"net.name": "transformer", "net.dtype": "bfloat16", "net.remat": True, "net.dropout": 0.1},
    **{
        f"chiar-{mode}-{kv}-{'dispatched' if dispatch else 'masked'}": {
            "net.depth": 4,
            "net.route": {"mode": mode, "kv": kv, "dispatch": dispatch},
        }
        for mode in ("threshold", "hard", "soft")
        for kv in ("all", "routed")
        for dispatch in (True, False)
    },
    "chiar-matmul-dct": {"net.route.dct": "matmul"},
    "chiar-no-meta": {"net.route.meta": "off"},
    "chiar-odd": {"task.seq_len": 97, "net.width": 36, "net.route.rate": 0.31},
    "chiar-long": {"task.seq_len": 4096, "net.route.kv": "routed"},
    "chiar-scan-remat": {"net.depth": 5, "net.scan": True, "net.remat": True, "net.dtype": "bfloat16"},
    "chiar-two-layers": {"net.depth": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_analytic_equals_counted(case, tiny_cfg):
    model, forward, args = program(tiny_cfg(CASES[case]))
    counted = jaxpr.count(forward, *args)
    assert counted.flops == B * model.cost.executed_flops


@pytest.mark.parametrize("name", ["transformer", "chiar"])
def test_backward_is_two_forwards_but_for_the_first_inputs(name, tiny_cfg):
    model, forward, args = program(tiny_cfg({"net.name": name, "net.route.dct": "matmul", "net.route.meta": "off"}))
    once = jaxpr.count(forward, *args).flops
    both = jaxpr.count(jax.value_and_grad(forward), *args).flops
    # 3x, less what needs no gradient: transforms have no weights, scores for the penalty only
    assert 2.5 * once < both <= 3 * once
    if name == "transformer":
        assert both == 3 * once


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_big_models_are_priced_and_counted_without_being_made(scan, tiny_cfg):
    big = {"depth": 28, "width": 1024, "heads": 16, "ffn_width": 4096, "scan": scan}
    model, forward, args = program(tiny_cfg({"net": big, "task.seq_len": 256}))
    assert jaxpr.count(forward, *args).flops == B * model.cost.executed_flops > 1 << 38


@pytest.mark.parametrize("L", [256, 1024, 4096])
def test_routed_programs_cost_less_and_ever_less(L, tiny_cfg):
    @functools.cache
    def counted(name, rate):
        route = {"rate": rate} if name == "chiar" else {}
        _, forward, args = program(tiny_cfg({"net": {"name": name, "depth": 4, "route": route}, "task.seq_len": L}))
        return jaxpr.count(forward, *args).flops

    routed = [counted("chiar", rate) for rate in (0.1, 0.25, 0.5)]
    assert routed == sorted(set(routed))
    assert counted("chiar", 0.25) < counted("transformer", 0.25)


@pytest.mark.parametrize("name", ["transformer", "chiar"])
def test_xla_agrees_within_three_percent_on_an_unrolled_program(name, tiny_cfg):
    """Matmuls dominate at this shape; XLA adds the elementwise work, a matmul DCT keeps FFTs out of it."""
    net = {"name": name, "width": 128, "heads": 2, "ffn_width": 512, "depth": 3, "attention": "full", "loss_chunk": 256}
    model, forward, args = program(tiny_cfg({"net": net, "net.route.dct": "matmul", "task.seq_len": 128}))
    counts = jaxpr.count(forward, *args)
    xla = jaxpr.xla_flops(forward, *args)
    assert abs(counts.flops + counts.elementwise - xla) < 0.03 * xla
