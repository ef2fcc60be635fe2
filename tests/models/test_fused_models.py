"""Models of fused attention compute what others do, decide alike, and cost what is said."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.cost import count
from cerebra_jax.cost.units import FLOPS, Unit
from cerebra_jax.kernels import fused_attention as fused
from cerebra_jax.models import registry
from cerebra_jax.models.model import neutral_knobs, price_list
from cerebra_jax.models.stack import Decisions
from cerebra_jax.types import DecisionCost

V, B = 260, 2
CEREBRA = {"net.name": "cerebra", "task.seq_len": 1024, "net.depth": 1}
CASES = {
    "dense-encoder": {"net.name": "transformer", "net.causal": False},
    "dense-odd-length": {"net.name": "transformer", "task.seq_len": 35},
    "cerebra": CEREBRA | {"net.route.kv": "routed"},
    "cerebra-every-token-a-key": CEREBRA | {"net.route": {"kv": "all", "part": "attention"}},
    "cerebra-windows-of-other-sizes": CEREBRA | {"net.route.kv": "routed", "net.compress.r": 0.3},
    "cerebra-encoder": CEREBRA | {"net.causal": False, "task.seq_len": 96},
    "cerebra-encoder-routed": CEREBRA
    | {"net.causal": False, "net.route.kv": "routed", "task.seq_len": 96},
    "mod": {"net.name": "mod", "net.depth": 2, "task.seq_len": 1024, "net.route.kv": "routed"},
    "chiar": {"task.seq_len": 1024},
    "chiar-short": {"task.seq_len": 96},
    "chiar-routed": {"net.route.kv": "routed", "task.seq_len": 1024},
}


class Made:
    """A model on the platform cpu and, with the same parameters, on gpu."""

    def __init__(self, name, tiny_cfg):
        keys = CASES[name] | {"net.width": 32, "net.heads": 4}
        causal = keys.pop("net.causal", True)
        self.net = dataclasses.replace(tiny_cfg(keys).net, causal=causal)
        self.length = keys.get("task.seq_len", 32)
        make = registry.model_class(self.net.name)
        decisions = Decisions(DecisionCost(0.0))
        self.modules = {p: make(self.net, V, decisions, p) for p in ("cpu", "gpu")}
        self.routing = registry.init_routing(self.net)
        self.batch = {"ex_B": jnp.arange(B)}
        key = jax.random.key(0)
        self.batch["inputs_BxL"] = jax.random.randint(key, (B, self.length), 0, V)
        if not causal:
            lengths_B = jnp.array([self.length, self.length // 3])
            self.batch["mask_BxL"] = jnp.arange(self.length)[None] < lengths_B[:, None]
        init = jax.jit(self.modules["cpu"].init)
        made = init(key, self.batch, neutral_knobs(), self.routing)
        # larger weights: attention that differs is felt
        self.params = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, made["params"])

    def features(self, platform, params):
        """Returns (features of the real tokens, who took the heavy path)."""
        out, aux = self.modules[platform].apply(
            {"params": params}, self.batch, neutral_knobs(), self.routing
        )
        real = self.batch.get("mask_BxL", jnp.ones((B, self.length), bool))
        return jnp.where(real[..., None], out.h, 0), aux.hard_B

    def gradient(self, platform):
        """Returns (features, decisions, gradients of all parameters) as one program."""

        def run(params):
            h, back, decided = jax.vjp(
                functools.partial(self.features, platform), params, has_aux=True
            )
            return h, decided, back(jnp.cos(jnp.arange(h.size, dtype=h.dtype)).reshape(h.shape))

        return jax.jit(run)


@pytest.fixture
def any_dtype(monkeypatch):
    """Lets float32 be fused, so that what differs is rounding alone."""
    monkeypatch.setattr(fused, "_problem", lambda *_: "")


@pytest.mark.parametrize("name", CASES)
def test_the_fused_model_computes_the_same_and_has_the_same_gradients(name, tiny_cfg, any_dtype):
    made = Made(name, tiny_cfg)
    h, decided, slopes = made.gradient("cpu")(made.params)
    fused_h, fused_decided, fused_slopes = made.gradient("gpu")(made.params)
    assert (np.array(decided) == fused_decided).all()
    for one, other in zip(
        jax.tree.leaves((h, slopes)), jax.tree.leaves((fused_h, fused_slopes)), strict=True
    ):
        assert np.abs(one - other).max() <= 2e-4 * max(1e-3, np.abs(one).max())


@pytest.mark.parametrize("name", CASES)
def test_its_price_is_the_count_of_its_program(name, tiny_cfg, any_dtype):
    made = Made(name, tiny_cfg)
    prices = price_list(made.net, made.length, V, "gpu")
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), made.batch)
    one.pop("mask_BxL", None)

    def forward(params, batch):
        out, aux = made.modules["gpu"].apply(
            {"params": params}, batch, neutral_knobs(), made.routing
        )
        return (out.h @ out.head_VxD.T).max(-1), aux.hard_B, aux.expected_B

    counted = count.total(count.operations(forward, made.params, one))
    own = [part for block in prices.blocks if block.name != "head" for part in block.parts]
    flops = sum(FLOPS.price(part.executed()) for part in own)
    assert flops == counted.flops - 2 * V * made.length * made.net.width
    assert counted.by["attention"] > 0


@pytest.mark.parametrize("name", ["dense-odd-length", "cerebra", "mod"])
def test_no_array_has_a_number_for_each_pair(name, tiny_cfg, any_dtype):
    """Fused attention reads and writes its rows: fewer bytes than one number a pair."""
    made = Made(name, tiny_cfg)
    sizes = {}
    for platform in ("cpu", "gpu"):
        prices = price_list(made.net, made.length, V, platform)
        sizes[platform] = prices.executed(Unit("bytes", 0, 1))
    L = made.length
    assert sizes["gpu"] < sizes["cpu"] - 4 * L * L / 8
