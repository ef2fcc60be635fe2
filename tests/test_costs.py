"""The price of every model is the count of its program, as integers; routing makes it cheaper."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

from cerebra_jax import config
from cerebra_jax.cost import count, xla
from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models.model import build, neutral_knobs

VOCAB = 260
B = 2


def encoder(cfg, **route):
    """Returns the same as an encoder, which no text task accepts, with other keys of net.route."""
    now = dataclasses.replace(cfg.net.route, **route)
    return dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, causal=False, route=now))


def shapes(L, causal=True):
    """Returns the shapes of a batch of two windows, with padding for an encoder."""
    ints = jax.ShapeDtypeStruct((B, L), jnp.int32)
    floats = jax.ShapeDtypeStruct((B, L), jnp.float32)
    flags = jax.ShapeDtypeStruct((B, L), jnp.bool_)
    batch = {"inputs_BxL": ints, "labels_BxL": ints, "w_BxL": floats, "needed_BxL": flags}
    batch["ex_B"] = jax.ShapeDtypeStruct((B,), jnp.int32)
    return batch if causal else batch | {"mask_BxL": flags}


def program(cfg):
    """Returns (model, forward pass with its loss, shapes of its arguments)."""
    model = build(cfg, VOCAB)
    batch = shapes(cfg.task.seq_len, cfg.net.causal)
    variables = jax.eval_shape(lambda b: model.init(jax.random.key(0), b), batch)

    def forward(params, routing, batch):
        out, aux = model.apply({"params": params, "routing": routing}, batch, neutral_knobs())
        loss = chunked_xent(
            out.h, out.head_VxD, batch["labels_BxL"], batch["w_BxL"], cfg.net.loss_chunk
        )
        return loss + aux.expected_B.sum() + aux.hard_B.sum()

    return model, forward, (variables["params"], variables["routing"], batch)


CASES = {
    "dense": {"net.name": "transformer"},
    "dense-gated": {"net.name": "transformer", "net.ffn": "gated"},
    "dense-scan": {"net.name": "transformer", "net.scan": True},
    "dense-odd-length": {"net.name": "transformer", "task.seq_len": 333},
    "dense-blockwise": {
        "net.name": "transformer",
        "task.seq_len": 2048,
        "net.attention": "blockwise",
    },
    "dense-kept": {"net": {"name": "transformer", "kept": {"heads": "1,0", "ffn": "8,64"}}},
    "chiar-kept": {
        "net": {
            "depth": 4,
            "route": {"kv": "routed"},
            "kept": {"heads": "0,1,2,1", "ffn": "8,0,3,5"},
        }
    },
    "chiar-kept-all": {
        "net": {
            "kept": {"heads": "0,1,1", "ffn": "8,9,3"},
            "route": {"mode": "hard", "dispatch": False},
        }
    },
    **{
        f"cerebra-kept-{kind}-{mode}-{kv}": {
            "net": {
                "name": "cerebra",
                "compress": {"kind": kind, "reconstruct": 0.0, "s": 0.6},
                "route": {"mode": mode, "kv": kv, "dispatch": mode != "soft"},
                "kept": {"heads": "1,0", "ffn": "20,0", "rest": "26,0", "channels": "5,20"},
            }
        }
        for kind, mode, kv in (
            ("conv", "threshold", "routed"),
            ("attention", "soft", "all"),
            ("hybrid", "random", "all"),
            ("conv", "always_compressed", "all"),
        )
    },
    "cerebra-kept-attention-part": {
        "net": {
            "name": "cerebra",
            "route": {"part": "attention"},
            "kept": {"heads": "1,2", "ffn": "9,0"},
        }
    },
    "dense-bf16-remat": {
        "net.name": "transformer",
        "net.dtype": "bfloat16",
        "net.remat": True,
        "net.dropout": 0.1,
    },
    **{
        f"chiar-{mode}-{kv}-{'dispatched' if dispatch else 'masked'}": {
            "net.depth": 4,
            "net.route": {"mode": mode, "kv": kv, "dispatch": dispatch},
        }
        for mode in ("threshold", "hard", "soft")
        for kv in ("all", "routed")
        for dispatch in (True, False)
    },
    **{
        f"chiar-{mode}": {"net.route.mode": mode}
        for mode in ("random", "always_full", "always_compressed")
    },
    **{
        f"chiar-rbf-{mode}-{kv}-{'dispatched' if dispatch else 'masked'}": {
            "net": {"depth": 4, "rbf_features": 5},
            "net.route": {"mode": mode, "kv": kv, "dispatch": dispatch, "rbf": 0.4},
            "task.seq_len": 170,
        }
        for mode, kv, dispatch in (
            ("threshold", "routed", True),
            ("threshold", "all", True),
            ("hard", "routed", True),
            ("hard", "routed", False),
            ("soft", "all", False),
            ("random", "routed", True),
        )
    },
    "chiar-rbf-onehot": {
        "task.seq_len": 1100,
        "net.route": {"kv": "routed", "lowering": "onehot", "rbf": 0.3},
    },
    "chiar-permuted": {"net.route": {"score": "permuted", "kv": "routed"}},
    "chiar-raw-matmul": {"net.route": {"score": "raw", "dct": "matmul"}},
    "chiar-matmul-dct": {"net.route.dct": "matmul"},
    "chiar-folded": {"net.depth": 4, "net.route.dct": "folded"},
    "chiar-folded-hard": {"net.route": {"dct": "folded", "mode": "hard"}},
    "chiar-folded-permuted": {"net.route": {"dct": "folded", "score": "permuted"}},
    "chiar-folded-scan": {
        "net": {"depth": 5, "scan": True, "route": {"dct": "folded", "mode": "always_compressed"}}
    },
    "chiar-no-meta": {"net.route.meta": "off"},
    "chiar-odd": {"task.seq_len": 97, "net.width": 36, "net.route.rate": 0.31},
    "chiar-onehot": {"task.seq_len": 1100, "net.route": {"kv": "routed", "lowering": "onehot"}},
    "chiar-long": {"task.seq_len": 4096, "net.route.kv": "routed"},
    "chiar-scan-remat": {
        "net.depth": 5,
        "net.scan": True,
        "net.remat": True,
        "net.dtype": "bfloat16",
    },
    "chiar-two-layers": {"net.depth": 2},
    "cerebra-long": {
        "net": {"name": "cerebra", "depth": 2, "route": {"kv": "routed"}},
        "task.seq_len": 4096,
    },
    "mod-oracle": {"net": {"name": "mod", "route": {"mode": "oracle", "kv": "routed"}}},
    "cerebra-oracle-long": {
        "net": {"name": "cerebra", "depth": 1, "route": {"mode": "oracle", "kv": "routed"}},
        "task.seq_len": 2048,
    },
    **{
        f"cerebra-by-layer-{mode}-{kv}": {
            "net": {"name": "cerebra", "route": {"mode": mode, "kv": kv, "by_layer": "0.1,9"}},
            "task.seq_len": 200,
        }
        for mode, kv in (("threshold", "routed"), ("threshold", "all"), ("random", "routed"))
    },
    "cerebra-odd": {
        "net": {"name": "cerebra", "width": 36, "compress": {"r": 0.37, "s": 0.7}},
        "task.seq_len": 97,
    },
    "cerebra-scan-remat": {
        "net": {"name": "cerebra", "scan": True, "remat": True, "dtype": "bfloat16"}
    },
    "cerebra-local": {"net": {"name": "cerebra", "local": 4}},
    "window": {"net": {"name": "window", "window": 20}, "task.seq_len": 333},
    "window-blockwise": {
        "net": {"name": "window", "attention": "blockwise", "window": 250},
        "task.seq_len": 2048,
    },
    "mod": {"net": {"name": "mod", "depth": 5}},
    "mod-routed": {
        "net": {"name": "mod", "depth": 4, "route": {"kv": "routed", "rate": 0.125}},
        "task.seq_len": 1200,
    },
    "mod-onehot": {"net": {"name": "mod", "route": {"lowering": "onehot"}}},
    "mod-masked": {"net": {"name": "mod", "route": {"kv": "routed", "dispatch": False}}},
    "mod-random-scan": {
        "net": {"name": "mod", "depth": 5, "scan": True, "route": {"mode": "random"}}
    },
    **{
        f"{name}-random-gate": {
            "net": {"name": name, "route": {"mode": "random", "gate": "learned", "kv": "routed"}}
        }
        for name in ("cerebra", "mod")
    },
    "cnn": {"net": {"name": "cnn", "kernel": 5}},
    "cnn-bf16-scan": {"net": {"name": "cnn", "scan": True, "remat": True, "dtype": "bfloat16"}},
    "lstm": {"net.name": "lstm"},
    "lstm-bf16-scan": {"net": {"name": "lstm", "scan": True, "remat": True, "dtype": "bfloat16"}},
    "ssm": {"net": {"name": "ssm", "ssm_state": 5, "kernel": 3}, "task.seq_len": 97},
    "ssm-bf16-scan": {"net": {"name": "ssm", "scan": True, "remat": True, "dtype": "bfloat16"}},
    **{
        f"cerebra-{heavy}-{light}-{mode}-{'dispatched' if dispatch else 'masked'}": {
            "net": {"name": "cerebra", "depth": 2, "heavy": heavy, "light": light},
            "net.route": {"kv": "routed", "mode": mode, "dispatch": dispatch, "rate": 0.3},
            "task.seq_len": 97,
        }
        for heavy, light, mode, dispatch in (
            ("gla", "compressed", "threshold", True),
            ("gla", "compressed", "threshold", False),
            ("gla", "none", "soft", True),
            ("gla", "gla", "random", True),
            ("gla", "dct", "always_full", True),
            ("ssm", "local", "threshold", True),
            ("ssm", "ssm", "threshold", False),
            ("attention", "gla", "always_compressed", True),
            ("attention", "dct", "threshold", True),
            ("attention", "local", "random", True),
            ("attention", "ssm", "soft", True),
            ("attention", "none", "threshold", True),
        )
    },
    "cerebra-gla-long": {
        "net": {"name": "cerebra", "depth": 1, "heavy": "gla", "light": "ssm", "scan": True},
        "net.route.kv": "routed",
        "task.seq_len": 2000,
    },
    "cerebra-attention-light-none-kv-all": {"net": {"name": "cerebra", "light": "none"}},
    "dense-gla": {"net": {"name": "transformer", "heavy": "gla"}, "task.seq_len": 97},
    "dense-ssm": {"net": {"name": "transformer", "heavy": "ssm"}, "task.seq_len": 97},
    "mod-gla": {
        "net": {"name": "mod", "heavy": "gla", "route": {"kv": "routed", "rate": 0.3}},
        "task.seq_len": 97,
    },
    "mod-ssm-masked": {
        "net": {"name": "mod", "heavy": "ssm", "route": {"kv": "routed", "dispatch": False}},
    },
    "cerebra-gated": {"net": {"name": "cerebra", "ffn": "gated", "compress": {"s": 1.0}}},
}


@pytest.mark.parametrize("case", CASES)
def test_analytic_equals_counted(case, tiny_cfg):
    model, forward, args = program(tiny_cfg(CASES[case], blocks=1))
    counted = count.count(forward, *args)
    assert counted.flops == B * model.cost.executed_flops


@pytest.mark.parametrize(
    "mode", ["threshold", "topk", "random", "oracle", "soft", "always_full", "always_compressed"]
)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "encoder"])
def test_analytic_equals_counted_for_every_part_of_cerebra(mode, causal, tiny_cfg):
    """Routers, compressors, keys, routed parts, dispatched or masked, causal and not."""
    if mode == "topk" and causal:
        with pytest.raises(config.UserError, match="topk"):
            tiny_cfg({"net.name": "cerebra", "net.route.mode": mode})
        return
    # each with another compressor: what a part costs does not depend on its neighbours
    kinds = itertools.cycle(("conv", "attention", "hybrid"))
    choices = itertools.product(("all", "routed"), ("block", "attention"), (True, False))
    for (kv, part, dispatch), kind in zip(choices, kinds, strict=False):
        if not dispatch and mode not in ("threshold", "topk"):
            continue
        lowering = "onehot" if dispatch and part == "block" and kv == "routed" else "gather"
        net = {"name": "cerebra", "depth": 1, "compress": {"kind": kind, "r": 0.3, "s": 0.6}}
        route = {"kv": kv, "part": part, "dispatch": dispatch, "rate": 0.3, "lowering": lowering}
        cfg = tiny_cfg({"net": net, "net.route": route})
        cfg = cfg_of(cfg, mode) if causal else encoder(cfg, mode=mode)
        model, forward, args = program(cfg)
        assert count.count(forward, *args).flops == B * model.cost.executed_flops, (
            kind,
            kv,
            part,
            dispatch,
        )


@pytest.mark.parametrize("mode", ["threshold", "topk"])
@pytest.mark.parametrize(
    ("heavy", "light"),
    [("gla", "gla"), ("ssm", "dct"), ("attention", "local"), ("gla", "none"), ("attention", "ssm")],
)
def test_encoders_of_other_layers_cost_what_is_counted(mode, heavy, light, tiny_cfg):
    net = {"name": "cerebra", "depth": 2, "heavy": heavy, "light": light, "route": {"kv": "routed"}}
    for dispatch in (True, False):
        keys = {"net": net, "net.route": {"dispatch": dispatch, "rate": 0.3}, "task.seq_len": 45}
        model, forward, args = program(encoder(tiny_cfg(keys), mode=mode))
        assert count.count(forward, *args).flops == B * model.cost.executed_flops


def assert_token_priced(cfg):
    """Checks that a decoded token costs what a step's program runs: all branches, and none."""
    model = build(cfg, VOCAB)
    batch = shapes(cfg.task.seq_len)
    variables = jax.eval_shape(lambda b: model.init(jax.random.key(0), b), batch)
    cache = jax.eval_shape(lambda: model.init_cache(jnp.arange(B)))

    def step(variables, cache, ids_B):
        out, cache = model.decode(variables, cache, ids_B)
        return out.logits(), cache

    program = jax.make_jaxpr(step)(variables, cache, jax.ShapeDtypeStruct((B,), jnp.int32))
    assert count.count_jaxpr(program).flops == B * model.token.executed_flops
    assert count.count_jaxpr(program, weights=(1, 0)).flops == B * sum(model.token.always.values())


HAVE_CACHES = ("dense", "window", "chiar", "cerebra", "mod", "ssm", "lstm")
DECODED = [case for case in CASES if case.split("-")[0] in HAVE_CACHES]
# a lowering, a kernel and a mask are of the whole pass alone; an oracle does not decode
OF_A_PASS = {"scan", "oracle", "onehot", "blockwise", "long", "masked"}
DECODED = [case for case in DECODED if OF_A_PASS.isdisjoint(case.split("-"))]


@pytest.mark.parametrize("case", DECODED)
def test_a_decoded_token_costs_what_is_counted(case, tiny_cfg):
    assert_token_priced(tiny_cfg(CASES[case], blocks=1))


@pytest.mark.parametrize(
    "mode", ["threshold", "random", "soft", "always_full", "always_compressed"]
)
def test_a_token_decoded_by_any_part_of_cerebra_costs_what_is_counted(mode, tiny_cfg):
    for kind, kv, part in (
        ("conv", "all", "attention"),
        ("attention", "routed", "block"),
        ("hybrid", "all", "block"),
    ):
        net = {"name": "cerebra", "depth": 1, "compress": {"kind": kind, "r": 0.3, "s": 0.6}}
        route = {"kv": kv, "part": part, "mode": mode, "rate": 0.3, "dispatch": kind != "hybrid"}
        assert_token_priced(tiny_cfg({"net": net, "net.route": route}))


def cfg_of(cfg, mode):
    """Returns the configuration with another router."""
    net = dataclasses.replace(cfg.net, route=dataclasses.replace(cfg.net.route, mode=mode))
    return dataclasses.replace(cfg, net=net)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "encoder"])
def test_the_dense_twin_of_cerebra_is_the_transformer(causal, tiny_cfg):
    """With always_full it executes what the Transformer of its shape executes, and costs it."""
    cfg = cfg_of(tiny_cfg({"net.name": "cerebra"}), "always_full")
    model = build(cfg if causal else encoder(cfg), VOCAB)
    assert model.cost.executed_flops == model.dense.executed_flops
    assert model.cost.model_flops == model.dense.model_flops


@pytest.mark.parametrize("name", ["transformer", "chiar"])
def test_backward_is_two_forwards_but_for_the_first_inputs(name, tiny_cfg):
    model, forward, args = program(
        tiny_cfg({"net.name": name, "net.route.dct": "matmul", "net.route.meta": "off"})
    )
    once = count.count(forward, *args).flops
    both = count.count(jax.value_and_grad(forward), *args).flops
    # 3x, less what needs no gradient: transforms have no weights, scores for the penalty only
    assert 2.5 * once < both <= 3 * once
    if name == "transformer":
        assert both == 3 * once


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_big_models_are_priced_and_counted_without_being_made(scan, tiny_cfg):
    big = {"depth": 28, "width": 1024, "heads": 16, "ffn_width": 4096, "scan": scan}
    model, forward, args = program(tiny_cfg({"net": big, "task.seq_len": 256}))
    assert count.count(forward, *args).flops == B * model.cost.executed_flops > 1 << 38


@pytest.mark.parametrize("routed_name", ["chiar", "cerebra"])
@pytest.mark.parametrize("L", [256, 4096])
def test_routed_programs_cost_less_and_ever_less(L, routed_name, tiny_cfg):
    @functools.cache
    def counted(name, rate):
        route = {} if name == "transformer" else {"rate": rate}
        _, forward, args = program(
            tiny_cfg({"net": {"name": name, "depth": 4, "route": route}, "task.seq_len": L})
        )
        return count.count(forward, *args).flops

    routed = [counted(routed_name, rate) for rate in (0.1, 0.25, 0.5)]
    assert routed == sorted(set(routed))
    assert counted(routed_name, 0.25) < counted("transformer", 0.25)


@pytest.mark.parametrize("name", ["transformer", "chiar", "cerebra"])
def test_xla_agrees_within_three_percent_on_an_unrolled_program(name, tiny_cfg):
    """Matmuls dominate here; XLA adds the elementwise work; a matmul DCT keeps FFTs out of it."""
    net = {
        "name": name,
        "width": 128,
        "heads": 2,
        "ffn_width": 512,
        "depth": 3,
        "attention": "full",
        "loss_chunk": 256,
    }
    model, forward, args = program(
        tiny_cfg({"net": net, "net.route.dct": "matmul", "task.seq_len": 128})
    )
    counts = count.count(forward, *args)
    theirs = xla.xla_flops(forward, *args)
    assert abs(counts.flops + counts.elementwise - theirs) < 0.03 * theirs
