"""8 bits: which products are int8, that trained and stored ones are the same, that nothing rounds to NaN."""

from __future__ import annotations

import dataclasses
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.models import model as build
from cerebra_jax.models import quantization as int8
from cerebra_jax.models import quantized_names as names
from cerebra_jax.trees import named_leaves

pytestmark = pytest.mark.usefixtures("eight_bits")

V, B, L = (
    40,
    2,
    8,
)  # as many tokens as features: an operand is no kernel because it has the shape of one
BATCH = {
    "inputs_BxL": np.random.RandomState(0).randint(0, V, (B, L)).astype(np.int32),
    "ex_B": np.arange(B),
}
ATTENTION, FFN = ("q", "kv", "out"), ("up", "down")
LIGHT = ("compressor", *(f"light/{x}" for x in ATTENTION))
BLOCK = (*(f"attention/{x}" for x in ATTENTION), *(f"ffn/{x}" for x in FFN))
HEAVY = tuple(f"heavy/{x}" for x in ATTENTION)
CHIAR = (*(f"heavy/attention/{x}" for x in ATTENTION), *(f"mlp/ffn/{x}" for x in FFN))
MODELS = {  # what is int8 in layer 1 of each, and what else is, outside of the layers
    "transformer": ({}, BLOCK, ()),
    "transformer, gated": ({"ffn": "gated"}, (*BLOCK, "ffn/gate"), ()),
    "cerebra": ({}, (*HEAVY, *LIGHT, *(f"{x}/{y}" for x in ("ffn_light", "ffn_rest") for y in FFN)), ()),
    "cerebra, attention": (
        {"compress": {"kind": "hybrid"}, "route": {"part": "attention"}, "local": 3},
        (*HEAVY, "compressor/project", *LIGHT[1:], "ffn/up", "ffn/down"),
        (),
    ),
    "chiar": (
        {"depth": 3},
        CHIAR,
        (*(f"first_mlp/ffn/{x}" for x in FFN), *(f"last_heavy/attention/{x}" for x in ATTENTION),
         *(f"last_mlp/ffn/{x}" for x in FFN)),
    ),
    "chiar, rbf": ({"depth": 3, "route": {"rbf": 0.25}}, (*CHIAR, *(f"rbf/mixer/{x}" for x in ATTENTION)), None),
    "mod": ({}, None, None),
    "cnn": ({}, ("conv",), ()),
}  # fmt: skip
FLOAT = r"bhqc,bhkc->bhqk|bhqk,bhkc->bhqc|router/score|meta_router/gate|query|bmwh,bmwhc->bmhc|mixer/bhn"


def made(case: str, **net):
    """(float model, its variables, the model in 8 bits, the stored one and its variables)."""
    more, name = MODELS[case][0] | net, case.partition(",")[0]
    shape = {"name": name, "depth": 2, "width": 16, "heads": 2, "ffn_width": 32, "dropout": 0.0}
    cfg = config.parse({"task": {"seq_len": L}, "net": shape | more, "quant": {"bits": 8}})
    model = build.build(cfg, V)
    variables = jax.jit(lambda: model.init(jax.random.key(0), BATCH))()
    stored = build.build(
        dataclasses.replace(cfg, quant=dataclasses.replace(cfg.quant, stored=True)), V
    )
    rounded = variables | {"params": int8.convert(variables["params"], cfg.net.dtype)}
    return model, variables, build.build(cfg, V, eight=True), stored, rounded


def forward(model):
    def run(variables, batch):
        out, aux = model.apply(variables, batch, build.neutral_knobs())
        return jnp.einsum("bld,vd->blv", out.h.astype(jnp.float32), out.head_VxD), aux.hard_B

    return run


def dots(fn, *args) -> list[tuple[str, str]]:
    """(where it stands, dtypes) of each product of matrices, the logits left out."""
    found = []

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                dtypes = [str(v.aval.dtype) for v in (*eqn.invars, *eqn.outvars)]
                found.append((str(eqn.source_info.name_stack), " ".join(dtypes)))
            for value in eqn.params.values():
                for body in value if isinstance(value, tuple | list) else (value,):
                    body = getattr(body, "jaxpr", body)
                    if hasattr(body, "eqns"):
                        walk(body)

    walk(jax.make_jaxpr(fn)(*args).jaxpr)
    return [x for x in found if "bld,vd->blv" not in x[0]]


@pytest.mark.parametrize("case", MODELS)
def test_linear_layers_are_int8_and_nothing_else_is(case):
    model, variables, eight, stored, rounded = made(case)
    leaves, kernels = named_leaves(rounded["params"]), []
    for name, leaf in leaves.items():
        if name.endswith("/int8"):
            kernels.append(name.removesuffix("/kernel/int8"))
            assert (
                leaf.dtype == jnp.int8
                and leaves[name.replace("/int8", "/scale")].shape[-1] == leaf.shape[-1]
            )
        else:
            assert leaf.dtype == jnp.float32
    _, inside, outside = MODELS[case]
    if inside is not None:
        layers = sorted({k.split("/")[0] for k in kernels if k.startswith("layer_")})
        assert sorted(k for k in kernels if k.startswith(layers[0])) == sorted(
            f"{layers[0]}/{x}" for x in inside
        )
    if outside is not None:
        assert sorted(k for k in kernels if not k.startswith("layer_")) == sorted(outside)
    for program, own in ((eight, variables), (stored, rounded)):
        found = dots(forward(program), own, BATCH)
        assert sum(dtypes == "int8 int8 int32" for _, dtypes in found) == len(kernels)
        left = [where for where, dtypes in found if dtypes != "int8 int8 int32"]
        assert all(re.search(FLOAT, where) for where in left), left
    assert not any("int8" in dtypes for _, dtypes in dots(forward(model), variables, BATCH))


@pytest.mark.parametrize(("case", "net"), [("transformer", {}), ("cerebra", {}), ("cerebra", {"scan": True}),
                                           ("chiar", {})], ids=str)  # fmt: skip
def test_stored_weights_give_what_trained_ones_gave(case, net):
    model, variables, eight, stored, rounded = made(case, depth=3 if case == "chiar" else 1, **net)
    compiled = jax.jit(forward(stored)).lower(rounded, BATCH).compile()
    (want, kept), (got, same) = jax.jit(forward(eight))(variables, BATCH), compiled(rounded, BATCH)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(jnp.abs(want).max()))
    np.testing.assert_array_equal(kept, same)
    plain = jax.jit(forward(model))(variables, BATCH)[0]
    apart = float(jnp.abs(want - plain).max() / jnp.abs(plain).max())
    assert 1e-5 < apart < 0.1  # it rounds, and not more than 8 bits do
    text = compiled.as_text()
    assert re.search(r"s32\[[\d,]*\][^\n]* dot\(", text), "no int8 product in the compiled program"
    size = lambda params, pattern: sum(  # noqa: E731
        x.nbytes for n, x in named_leaves(params).items() if re.search(pattern, n)
    )
    whole = sum(x.nbytes for n, x in named_leaves(variables["params"]).items() if names.holds(n))
    assert (
        size(rounded["params"], r"/kernel/(int8|scale)$") <= 0.4 * whole
    )  # 16 features: scales weigh most here


def test_a_token_is_rounded_by_itself():
    """No other token and no other example moves what 8 bits make of a token."""
    _, variables, eight, _, _ = made("cerebra", depth=1)
    run = jax.jit(forward(eight))
    want = run(variables, BATCH)[0]
    loud = variables["params"] | {
        "embed": {"table": variables["params"]["embed"]["table"].at[V - 1].mul(50.0)}
    }
    ids = np.where(BATCH["inputs_BxL"] == V - 1, 0, BATCH["inputs_BxL"])
    quiet = run(variables | {"params": loud}, BATCH | {"inputs_BxL": ids})[0]
    ids = ids.copy()
    ids[1, 3:], ids[0, -1] = V - 1, V - 1
    noisy = run(variables | {"params": loud}, BATCH | {"inputs_BxL": ids})[0]
    np.testing.assert_array_equal(quiet[0, : L - 1], noisy[0, : L - 1])
    np.testing.assert_array_equal(quiet[1, :3], noisy[1, :3])
    assert np.isfinite(want).all() and not np.array_equal(quiet[1, 4:], noisy[1, 4:])


def test_what_is_pruned_to_zero_stays_finite_and_gradients_pass_straight_through():
    model, variables, eight, *_ = made("cerebra", depth=1)
    params = variables["params"]

    def cut(path, x):
        name = "/".join(key.key for key in path)
        if name.endswith("kernel") and "ffn" in name:
            return jnp.zeros_like(x)
        return x.at[..., 0].set(0.0) if name.endswith(("q/kernel", "compressor/kernel")) else x

    pruned = jax.tree_util.tree_map_with_path(cut, params)

    def loss(model):
        def of(params):
            logits, _ = forward(model)(variables | {"params": params}, BATCH)
            return -jax.nn.log_softmax(logits)[..., 0].mean()

        return jax.jit(jax.value_and_grad(of))

    value, grads = loss(eight)(pruned)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(int8.convert(pruned, "float32")))
    flat = lambda tree: jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])  # noqa: E731
    ours, plain = flat(loss(eight)(params)[1]), flat(loss(model)(params)[1])
    assert float(ours @ plain / jnp.linalg.norm(ours) / jnp.linalg.norm(plain)) > 0.99


def test_what_cannot_be_in_8_bits_is_refused(monkeypatch):
    with pytest.raises(UserError, match="lstm; a recurrence"):
        config.parse({"net": {"name": "lstm"}, "quant": {"bits": 8}})
    with pytest.raises(UserError, match="use quant.bits=8"):
        config.parse({"quant": {"stored": True}})
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"pip install 'cerebra-jax\[quant\]'"):
        build.build(config.parse({"quant": {"bits": 8}}), V, eight=True)
