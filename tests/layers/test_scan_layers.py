"""Layers recompute what net.remat says, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models.model import build, neutral_knobs

V, B, L = 40, 2, 16
MODELS = {
    "dense": {"net.name": "transformer", "net.local": 3},
    "chiar": {},
    "cerebra": {"net.name": "cerebra", "net.route.kv": "routed", "net.route.part": "block"},
    "mod": {"net.name": "mod"},
}


def loss_of(tiny_cfg, name: str, scan: bool, remat: str, platform: str = ""):
    """Returns (the loss as a function of the parameters, parameters)."""
    keys = {"task.seq_len": L, "net.scan": scan, "net.remat": remat}
    model = build(tiny_cfg(keys | MODELS[name], blocks=1), V, platform=platform)
    ids = np.random.default_rng(0).integers(0, V, (B, L), dtype=np.int32)
    batch = {"inputs_BxL": ids, "ex_B": np.arange(B, dtype=np.int32)}

    def loss(params, routing):
        out, aux = model.apply({"params": params, "routing": routing}, batch, neutral_knobs())
        nats = chunked_xent(out.h, out.head_VxD, ids, jnp.ones((B, L)), B * L)
        return nats + aux.expected_B.sum()

    return loss, model, batch


def weight_products(jaxpr) -> int:
    """Returns the matmuls without batch axes in a program and in what it calls."""
    found = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            found += not eqn.params["dimension_numbers"][1][0]
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            found += weight_products(inner) if hasattr(inner, "eqns") else 0
    return found


def products_of(loss, model, batch) -> int:
    """Returns the matmuls with weights in the program of a gradient."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))
    traced = jax.make_jaxpr(jax.grad(loss))(shapes["params"], shapes["routing"])
    return weight_products(traced.jaxpr)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_dots_multiplies_with_each_weight_as_often_as_off(tiny_cfg, name, scan):
    modes = ("off", "dots", "full")
    counts = {remat: products_of(*loss_of(tiny_cfg, name, scan, remat)) for remat in modes}
    assert counts["off"] == counts["dots"] < counts["full"]


def test_auto_recomputes_what_suits_the_platform(tiny_cfg):
    platforms = ("cpu", "gpu", "tpu")
    cpu, gpu, tpu = (loss_of(tiny_cfg, "dense", True, "auto", on) for on in platforms)
    assert products_of(*cpu) == products_of(*gpu) < products_of(*tpu)
    assert [made[1].module.net.remat for made in (cpu, gpu, tpu)] == ["off", "dots", "full"]


@pytest.mark.parametrize(
    ("name", "scan"), [("dense", False), ("chiar", True), ("cerebra", True), ("mod", False)]
)
def test_gradients_do_not_depend_on_what_is_recomputed(tiny_cfg, name, scan):
    found = {}
    for remat in ("off", "dots", "full"):
        loss, model, batch = loss_of(tiny_cfg, name, scan, remat)
        if not found:
            variables = model.init(jax.random.key(0), batch)
        found[remat] = jax.jit(jax.grad(loss))(variables["params"], variables["routing"])
    for remat in ("dots", "full"):
        for want, got in zip(*map(jax.tree.leaves, (found["off"], found[remat])), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6 + 1e-5 * np.abs(want).max())
