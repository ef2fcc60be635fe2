"""Every parameter of configurations drawn at random gets a gradient from the task alone."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from cerebra_jax import trees
from cerebra_jax.config import CompressCfg, NetCfg, RouteCfg, RunCfg
from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models import registry, rules
from cerebra_jax.models.model import build, neutral_knobs
from cerebra_jax.training.objective import Conditions, Objective

V, B, L, N = 24, 3, 16, 5
DRAWS = 29
LAYERS = (  # (heavy, light) of the draws after those, all of them cerebra
    ("gla", "compressed"),
    ("ssm", "gla"),
    ("gla", "local"),
    ("attention", "ssm"),
    ("ssm", "dct"),
    ("gla", "none"),
)
MODES = {
    "chiar": ("threshold", "hard", "soft", "random", "always_full", "always_compressed"),
    "cerebra": ("threshold", "soft", "topk", "random", "always_full", "always_compressed"),
}


def draw(seed: int) -> RunCfg:
    """Returns an accepted configuration; models and routers take turns, the rest is drawn."""
    rng = np.random.RandomState(seed)

    def pick(*choices):
        return choices[rng.randint(len(choices))]

    name = ("cerebra", "cerebra", "cerebra", "chiar", "transformer")[seed % 5]
    if seed >= DRAWS:
        name = "cerebra"
    causal = name == "chiar" or pick(True, False)
    modes = MODES.get(name, ("threshold",))
    turn = seed // 5 * 3 + seed % 5 if name == "cerebra" else seed // 5
    mode = modes[turn % len(modes)]
    if mode == "topk":
        causal = False
    learns = name == "cerebra" and mode == "threshold"
    tau = pick("running", "learned") if learns else "running"
    route = RouteCfg(
        mode=mode,
        z_loss=0.0,
        rate=pick(0.25, 0.4),
        kv=pick("all", "routed"),
        part=pick("attention", "block"),
        tau=tau,
        dispatch=pick(True, True, False),
        meta=pick("prefix", "batch", "off"),
        dct=pick("fft", "matmul", "folded"),
    )
    compress = CompressCfg(
        kind=pick("conv", "attention", "hybrid"),
        r=pick(0.25, 0.3, 0.6),
        s=pick(0.5, 0.7, 1.0),
        reconstruct=pick(0.0, 0.1),
    )
    free = name != "chiar"
    net = NetCfg(
        name=name,
        causal=causal,
        depth=3 if name == "chiar" else 1,
        width=16,
        heads=2,
        ffn_width=32,
        ffn=pick("gelu", "gated"),
        norm=pick("pre", "post"),
        loss_chunk=64,
        features=pick(0, N) if free else 0,
        outputs=pick(0, 3) if free else 0,
        dtype=pick("float32", "bfloat16"),
        route=route,
        compress=compress,
    )
    if seed >= DRAWS:
        heavy, light = LAYERS[seed - DRAWS]
        route = dataclasses.replace(route, kv="routed")
        if light != "compressed":
            compress = dataclasses.replace(compress, reconstruct=0.0)
        layers = {"heavy": heavy, "light": light, "route": route, "compress": compress}
        net = dataclasses.replace(net, **layers)
    assert not list(rules.check(RunCfg(net=net)))
    cfg = RunCfg(net=net)
    return dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, seq_len=L))


def label(seed: int) -> str:
    net = draw(seed).net
    words = [net.name]
    if net.name == "cerebra":
        words += [net.heavy, net.light]
    if net.name != "transformer":
        words += [net.route.mode, net.route.kv, net.compress.kind]
    return "-".join([*words, "causal" if net.causal else "encoder"])


class Task:
    """Cross-entropy of every token, or of the pooled row, whichever the head gives."""

    def loss(self, out, batch, chunk):
        labels, w = (batch[k][:, : out.h.shape[1]] for k in ("labels_BxL", "w_BxL"))
        nats = chunked_xent(out.h, out.head_VxD, labels % out.head_VxD.shape[0], w, chunk)
        return nats, {"loss": (nats, w.sum())}


def batch_of(net: NetCfg) -> dict:
    rng = np.random.RandomState(0)
    ids = rng.randint(0, V, (B, L)).astype(np.int32)
    batch = {
        "labels_BxL": np.roll(ids, -1, 1),
        "w_BxL": np.ones((B, L), np.float32),
        "ex_B": np.arange(B, dtype=np.int32),
    }
    features = {"features_BxLxN": rng.standard_normal((B, L, N)).astype(np.float32)}
    batch |= features if net.features else {"inputs_BxL": ids}
    mask_BxL = np.arange(L)[None] < np.array([[L], [L - 3], [5]])
    return batch if net.causal else batch | {"mask_BxL": mask_BxL}


@pytest.mark.parametrize("seed", range(DRAWS + len(LAYERS)), ids=label)
def test_every_parameter_of_a_random_configuration_learns(seed):
    """Routers too, through their gates: no penalty and no z-loss here.

    No exception is needed: where nothing could be learned (CHIAR's entropy, a random router) there
    are no parameters.
    """
    cfg = draw(seed)
    model, batch = build(cfg, V), batch_of(cfg.net)
    shapes = jax.eval_shape(lambda key: model.init(key, batch), jax.random.key(0))
    rng, routing = np.random.RandomState(seed), registry.init_routing(cfg.net)

    def fill(path, s):  # numbers as at the start, without compiling their making
        return np.float32((path[-1].key in ("scale", "w")) + 0.05 * rng.standard_normal(s.shape))

    @jax.jit
    def grad(params, key):
        def total(params):
            variables = {"params": params, "routing": routing}
            conditions = Conditions(neutral_knobs(), key, B * L, B)
            return Objective(model, Task())(variables, batch, conditions)[0]

        return jax.grad(total)(params)

    params = jax.tree_util.tree_map_with_path(fill, shapes["params"])
    found = trees.named_leaves(grad(params, jax.random.key(seed)))
    found = {name: np.asarray(g, np.float32) for name, g in found.items()}
    assert not [name for name, g in found.items() if not np.isfinite(g).all()]
    assert not [name for name, g in found.items() if not np.abs(g).max() > 0]


def test_the_draw_covers_what_it_should():
    """Each choice of each field stands in some configuration; what is not drawn is not tested."""
    nets = [draw(seed).net for seed in range(DRAWS)]
    cerebra = [net for net in nets if net.name == "cerebra"]
    assert {net.route.mode for net in cerebra} == set(MODES["cerebra"])
    assert {net.route.mode for net in nets if net.name == "chiar"} == set(MODES["chiar"])
    for field in ("causal", "features", "outputs", "ffn", "dtype"):
        assert len({getattr(net, field) for net in cerebra}) == 2, field
    scored = [net for net in cerebra if not net.route.mode.startswith("always")]
    assert {(net.route.kv, net.route.part) for net in scored} == {
        (kv, part) for kv in ("all", "routed") for part in ("attention", "block")
    }
    assert {net.compress.kind for net in scored} == {"conv", "attention", "hybrid"}
    assert {net.route.tau for net in scored} == {"running", "learned"}
    assert {net.route.dispatch for net in scored} == {True, False}
