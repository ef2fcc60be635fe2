"""8 bits: which products are int8; trained and stored ones are the same; nothing rounds to NaN."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.models import model as models
from cerebra_jax.models import quantization as int8
from cerebra_jax.models.quantized_names import holds
from cerebra_jax.trees import named_leaves

pytestmark = pytest.mark.usefixtures("eight_bits")

# as many tokens as features: an operand is no kernel because it has the shape of one
V, B, L = 40, 2, 8
IDS = np.random.RandomState(0).randint(0, V, (B, L)).astype(np.int32)
BATCH = {"inputs_BxL": IDS, "ex_B": np.arange(B)}


def under(place: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{place}/{name}" for name in names)


class Case(NamedTuple):
    """A model: what is int8 in its first layer, and what else is, outside of the layers.

    None: not compared.
    """

    net: dict[str, Any]
    inside: tuple[str, ...] | None
    outside: tuple[str, ...] | None = ()


ATTENTION, FFN = ("q", "kv", "out"), ("up", "down")
LIGHT = under("light", ATTENTION)
HEAVY = under("heavy", ATTENTION)
BLOCK = (*under("attention", ATTENTION), *under("ffn", FFN))
TWO_FFNS = (*under("ffn_light", FFN), *under("ffn_rest", FFN))
CHIAR = (*under("heavy/attention", ATTENTION), *under("mlp/ffn", FFN))
CHIAR_ENDS = (
    *under("first_mlp/ffn", FFN),
    *under("last_heavy/attention", ATTENTION),
    *under("last_mlp/ffn", FFN),
)
OTHER_COMPRESSOR = {"compress": {"kind": "hybrid"}, "route": {"part": "attention"}, "local": 3}
WITH_RBF = {"depth": 3, "route": {"rbf": 0.25}}
CASES = {
    "transformer": Case({}, BLOCK),
    "transformer, gated": Case({"ffn": "gated"}, (*BLOCK, "ffn/gate")),
    "cerebra": Case({}, (*HEAVY, "compressor", *LIGHT, *TWO_FFNS)),
    "cerebra, attention": Case(
        OTHER_COMPRESSOR, (*HEAVY, "compressor/project", *LIGHT, *under("ffn", FFN))
    ),
    "chiar": Case({"depth": 3}, CHIAR, CHIAR_ENDS),
    "chiar, rbf": Case(WITH_RBF, (*CHIAR, *under("rbf/mixer", ATTENTION)), None),
    "mod": Case({}, None, None),
    "cnn": Case({}, ("conv",)),
}
FLOAT = "|".join(
    (
        "bhqc,bhkc->bhqk",
        "bhqk,bhkc->bhqc",
        "router/score",
        "meta_router/.*gate",
        "query",
        "bmwh,bmwhc->bmhc",
        "mixer/bhn",
    )
)


class Made(NamedTuple):
    """A float model and its variables, the same in 8 bits, and the stored one and its variables."""

    model: models.Model
    variables: Any
    eight: models.Model
    stored: models.Model
    rounded: Any


@functools.cache
def made(case: str, depth: int = 2, scan: bool = False) -> Made:
    shape = {"name": case.partition(",")[0], "depth": depth, "scan": scan, "dropout": 0.0}
    shape |= {"width": 16, "heads": 2, "ffn_width": 32}
    net = shape | CASES[case].net
    cfg = config.parse({"task": {"seq_len": L}, "net": net, "quant": {"bits": 8}})
    model = models.build(cfg, V)
    variables = model.init(jax.random.key(0), BATCH)
    quant = dataclasses.replace(cfg.quant, stored=True)
    stored = models.build(dataclasses.replace(cfg, quant=quant), V)
    rounded = variables | {"params": int8.convert(variables["params"], cfg.net.dtype)}
    return Made(model, variables, models.build(cfg, V, quantized=True), stored, rounded)


def forward(model):
    def run(variables, batch):
        out, aux = model.apply(variables, batch, models.neutral_knobs())
        logits = jnp.einsum("bld,vd->blv", out.h.astype(jnp.float32), out.head_VxD)
        return logits, aux.hard_B

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


@pytest.mark.parametrize("case", CASES)
def test_linear_layers_are_int8_and_nothing_else_is(case):
    m = made(case)

    # stored numbers
    leaves, kernels = named_leaves(m.rounded["params"]), []
    for name, leaf in leaves.items():
        if not name.endswith("/int8"):
            assert leaf.dtype == jnp.float32
            continue
        kernels.append(name.removesuffix("/kernel/int8"))
        assert leaf.dtype == jnp.int8
        assert leaves[name.replace("/int8", "/scale")].shape[-1] == leaf.shape[-1]

    # where they stand
    _, inside, outside = CASES[case]
    in_layers = sorted(name for name in kernels if name.startswith("layer_"))
    if inside is not None:
        layer = in_layers[0].split("/")[0]
        first = [name for name in in_layers if name.startswith(layer)]
        assert first == sorted(under(layer, inside))
    if outside is not None:
        assert sorted(set(kernels) - set(in_layers)) == sorted(outside)

    # the products of both programs, and of the float one
    for program, own in ((m.eight, m.variables), (m.stored, m.rounded)):
        found = dots(forward(program), own, BATCH)
        assert sum(dtypes == "int8 int8 int32" for _, dtypes in found) == len(kernels)
        left = [where for where, dtypes in found if dtypes != "int8 int8 int32"]
        assert all(re.search(FLOAT, where) for where in left), left
    plain = dots(forward(m.model), m.variables, BATCH)
    assert not any("int8" in dtypes for _, dtypes in plain)


def size(params, pattern: str) -> int:
    leaves = named_leaves(params).items()
    return sum(x.nbytes for name, x in leaves if re.search(pattern, name))


@pytest.mark.parametrize(
    ("case", "scan"),
    [("transformer", False), ("cerebra", False), ("cerebra", True), ("chiar", False)],
)
def test_stored_weights_give_what_trained_ones_gave(case, scan):
    m = made(case, depth=1, scan=scan)
    compiled = jax.jit(forward(m.stored)).lower(m.rounded, BATCH).compile()
    want, kept = jax.jit(forward(m.eight))(m.variables, BATCH)
    got, same = compiled(m.rounded, BATCH)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(jnp.abs(want).max()))
    np.testing.assert_array_equal(kept, same)

    # it rounds, and not more than 8 bits do
    plain = jax.jit(forward(m.model))(m.variables, BATCH)[0]
    apart = float(jnp.abs(want - plain).max() / jnp.abs(plain).max())
    assert 1e-5 < apart < 0.1
    text = compiled.as_text()
    assert re.search(r"s32\[[\d,]*\][^\n]* dot\(", text), "no int8 product in the compiled program"

    # 16 features: scales weigh most here
    leaves = named_leaves(m.variables["params"]).items()
    whole = sum(x.nbytes for name, x in leaves if holds(name))
    assert size(m.rounded["params"], r"/kernel/(int8|scale)$") <= 0.4 * whole


def test_a_token_is_rounded_by_itself():
    """No other token and no other example moves what 8 bits make of a token."""
    m = made("cerebra", depth=1)
    run = jax.jit(forward(m.eight))
    assert np.isfinite(run(m.variables, BATCH)[0]).all()
    table = m.variables["params"]["embed"]["table"].at[V - 1].mul(50.0)
    loud = m.variables | {"params": m.variables["params"] | {"embed": {"table": table}}}
    ids = np.where(IDS == V - 1, 0, IDS)
    quiet = run(loud, BATCH | {"inputs_BxL": ids})[0]
    ids = ids.copy()
    ids[1, 3:] = V - 1
    ids[0, -1] = V - 1
    noisy = run(loud, BATCH | {"inputs_BxL": ids})[0]
    np.testing.assert_array_equal(quiet[0, : L - 1], noisy[0, : L - 1])
    np.testing.assert_array_equal(quiet[1, :3], noisy[1, :3])
    assert not np.array_equal(quiet[1, 4:], noisy[1, 4:])


def test_what_is_pruned_to_zero_stays_finite_and_gradients_pass_straight_through():
    m = made("cerebra", depth=1)
    params = m.variables["params"]

    def cut(path, x):
        name = "/".join(key.key for key in path)
        if name.endswith("kernel") and "ffn" in name:
            return jnp.zeros_like(x)
        return x.at[..., 0].set(0.0) if name.endswith(("q/kernel", "compressor/kernel")) else x

    def slopes(model):
        def loss(params):
            logits, _ = forward(model)(m.variables | {"params": params}, BATCH)
            return -jax.nn.log_softmax(logits)[..., 0].mean()

        return jax.jit(jax.value_and_grad(loss))

    def flat(tree):
        return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])

    pruned, eight = jax.tree_util.tree_map_with_path(cut, params), slopes(m.eight)
    assert np.isfinite(flat(eight(pruned))).all()
    assert np.isfinite(flat(int8.convert(pruned, "float32"))).all()
    ours, plain = flat(eight(params)[1]), flat(slopes(m.model)(params)[1])
    alike = ours @ plain / jnp.linalg.norm(ours) / jnp.linalg.norm(plain)
    assert float(alike) > 0.99


def test_what_cannot_be_in_8_bits_is_refused(monkeypatch):
    with pytest.raises(UserError, match="lstm; a recurrence"):
        config.parse({"net": {"name": "lstm"}, "quant": {"bits": 8}})
    with pytest.raises(UserError, match="use quant.bits=8"):
        config.parse({"quant": {"stored": True}})
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"pip install 'cerebra-jax\[quant\]'"):
        models.build(config.parse({"quant": {"bits": 8}}), V, quantized=True)
