"""A filter by any method is the same one; where it is one matrix follows from the settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.kernels import dct as spectral
from cerebra_jax.layers.dct_filter import SpectralFilter
from cerebra_jax.layers.rows import ranks, tokens
from cerebra_jax.models import registry
from cerebra_jax.models import sampling as sample
from cerebra_jax.models.model import build, neutral_knobs

V, B, L = 50, 4, 32


def model_of(tiny_cfg, dct, keys):
    route = {"dct": dct, **keys.get("net.route", {})}
    return build(tiny_cfg({**keys, "net.route": route}), V)


def batch():
    ids = np.random.RandomState(0).randint(0, V, (B, L)).astype(np.int32)
    return {"inputs_BxL": ids, "ex_B": np.arange(B, dtype=np.int32)}


def variables_of(model):
    """Returns variables whose filters do something."""
    made = model.init(jax.random.key(0), batch())

    def uneven(path, leaf):
        if path[-1].key != "w":
            return leaf
        return leaf + jnp.broadcast_to(0.3 * jnp.cos(jnp.arange(leaf.shape[-1])), leaf.shape)

    params = jax.tree_util.tree_map_with_path(uneven, made["params"])
    return made | {"params": params}


KINDS = {
    "threshold": {},
    "hard": {"net.route": {"mode": "hard"}},
    "compressed-scan": {
        "net": {"scan": True, "depth": 4},
        "net.route": {"mode": "always_compressed"},
    },
    "compat": {"net.compat": True, "net.route": {"mode": "random", "dispatch": False}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_model_is_the_same_model_and_has_the_same_gradients(kind, tiny_cfg):
    models = {dct: model_of(tiny_cfg, dct, KINDS[kind]) for dct in ("fft", "folded")}
    variables = variables_of(models["fft"])

    def loss(dct, params, folded=None):
        given = variables | {"params": params}
        if folded is not None:
            given["folded"] = folded
        out, _ = models[dct].apply(given, batch(), neutral_knobs())
        return jnp.square(out.h[..., ::2]).sum(), out.h

    slope = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True), static_argnums=0)
    both = {dct: slope(dct, variables["params"]) for dct in models}
    (_, want), gradients = both["fft"]
    (_, got), folded_gradients = both["folded"]
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    largest = max(np.abs(g).max() for g in jax.tree.leaves(gradients))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * largest),
        folded_gradients,
        gradients,
    )

    made = models["folded"].fold(variables)["folded"]
    assert jax.tree.leaves(made) and not models["fft"].fold(variables)["folded"]
    given = jax.jit(lambda folded: loss("folded", variables["params"], folded=folded)[1])
    np.testing.assert_allclose(given(made), want, atol=1e-5 * np.abs(want).max())
    for name in made:  # they are what is computed with
        silent = made | {name: jax.tree.map(jnp.zeros_like, made[name])}
        assert np.abs(given(silent) - want).max() > 1e-2


def test_only_filters_that_no_router_sees_are_one_matrix(tiny_cfg):
    """Each has 2 D² FLOPs a token; a threshold's need a transform, and another one back."""
    D = 32
    for kind, seen in (("threshold", True), ("hard", False), ("random", False), ("soft", False)):
        cost = {
            dct: model_of(tiny_cfg, dct, {"net.route": {"mode": kind}}).cost.executed
            for dct in spectral.METHODS
        }
        for layer, alone in (("layer_00", True), ("layer_01", not seen)):
            of = {dct: cost[dct][f"{layer}/filter"] / L for dct in cost}
            assert of["matmul"] == 4 * D**2 > of["fft"]
            assert of["folded"] == (2 * D**2 if alone else of["fft"])


def test_matrices_are_made_once_for_all_tokens(tiny_cfg, monkeypatch):
    """Two folded filters: made before the prompt is read and before the scan that writes."""
    model = model_of(tiny_cfg, "folded", {"net.route": {"mode": "always_compressed"}})
    variables, made = variables_of(model), []
    fold = spectral.folded

    def counted(w_D):
        made.append(w_D)
        return fold(w_D)

    monkeypatch.setattr(spectral, "folded", counted)
    prompt, length = np.ones((2, 3), np.int32), np.array([3, 2], np.int32)
    write = jax.make_jaxpr(lambda *args: sample.generate(model, *args, 5)[0])
    write(variables, jax.random.key(0), sample.Prompts(prompt, length))
    assert len(made) == 2


def test_the_method_follows_from_configuration_width_and_backend(tiny_cfg):
    for D in (8, 256, 4096):
        for backend in ("cpu", "gpu", "tpu", "another"):
            for name in spectral.TRANSFORMS:
                assert spectral.methods(name, D, backend) == (name, name)
            auto, folded = (spectral.methods(choice, D, backend) for choice in ("auto", "folded"))
            assert auto.transform in spectral.TRANSFORMS and auto.filter in spectral.METHODS
            assert folded == (auto.transform, "folded")
    assert spectral.methods("auto", 128, "cpu") == ("fft", "fft")
    assert spectral.methods("auto", 128, "another") == ("fft", "fft")
    assert spectral.methods("auto", 128, "gpu") == ("matmul", "folded")
    assert spectral.methods("auto", 4096, "tpu") == ("matmul", "folded")
    assert spectral.methods("auto", 512, "gpu") == ("fft", "folded")
    assert spectral.methods("auto", 512, "gpu", "bfloat16") == ("matmul", "folded")
    assert spectral.methods("auto", 512, "cpu", "bfloat16") == ("fft", "fft")
    net = tiny_cfg({}).net
    assert net.route.dct == "auto"
    assert registry.describe(net, "cpu") == "DCT by fft"
    net = dataclasses.replace(net, route=dataclasses.replace(net.route, dct="folded"))
    assert registry.describe(net, "cpu") == "DCT by fft, folded where no router looks at it"


def test_the_filter_as_a_light_path_is_its_formula():
    """iDCT(w ⊙ DCT(x)) in float64, by any method."""
    D = 8
    rng = np.random.RandomState(0)
    x, w = rng.standard_normal((2, 3, D)), rng.standard_normal(D)
    k, n = np.arange(D)[:, None], np.arange(D)[None]
    basis = np.cos(np.pi * (2 * n + 1) * k / (2 * D)) * np.where(k == 0, 1, 2**0.5) / D**0.5
    want = (x @ basis.T * w) @ basis
    rows = tokens(jnp.float32(x), ranks(3, True), True)
    for method in spectral.METHODS:
        got = SpectralFilter(D, method).apply({"params": {"w": jnp.float32(w)}}, rows, rows)
        np.testing.assert_allclose(got, want, atol=2e-6)
