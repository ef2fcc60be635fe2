"""One contract over the whole table of models and modes: what a new model must keep to enter the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cerebra_jax.models.decoders import DECODERS

from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models.model import MODELS, build, neutral_knobs
from cerebra_jax.policies import thresholds
from cerebra_jax.testing import assert_causal, assert_decodes

V, B, L = 50, 8, 32
VARIANTS = {
    "dense": {"net.name": "transformer"},
    "dense-kept": {"net.name": "transformer", "net.kept": {"heads": "1,0,2", "ffn": "8,48,3"}},
    "chiar-kept": {"net.route.kv": "routed", "net.kept": {"heads": "0,1,1", "ffn": "8,0,3"}},
    "cerebra-kept": {
        "net.name": "cerebra",
        "net.kept": {"heads": "1,2,0", "rest": "3,24,0", "channels": "16,5,0"},
    },
    "dense-gated-scan-remat": {
        "net.name": "transformer",
        "net.ffn": "gated",
        "net.scan": True,
        "net.remat": True,
    },
    "dense-post": {"net.name": "transformer", "net.norm": "post"},
    "chiar-threshold": {},
    "chiar-threshold-masked": {"net.route.dispatch": False},
    "chiar-threshold-kv-routed": {"net.route.kv": "routed"},
    "chiar-kv-routed-masked": {"net.route.kv": "routed", "net.route.dispatch": False},
    "chiar-hard": {"net.route.mode": "hard"},
    "chiar-hard-kv-routed": {"net.route.mode": "hard", "net.route.kv": "routed"},
    "chiar-soft": {"net.route.mode": "soft"},
    "chiar-random": {"net.route": {"mode": "random", "kv": "routed"}},
    "chiar-always_full": {"net.route.mode": "always_full"},
    "chiar-always_compressed": {"net.route.mode": "always_compressed", "net.route.kv": "routed"},
    "chiar-rbf-threshold": {"net.route": {"rbf": 0.3, "kv": "routed"}},
    "chiar-rbf-hard": {"net.route": {"rbf": 0.3, "kv": "routed", "mode": "hard", "rate": 0.4}},
    "chiar-rbf-soft": {"net.route": {"rbf": 0.3, "mode": "soft"}},
    "chiar-permuted": {"net.route.score": "permuted"},
    "chiar-raw": {"net.route.score": "raw"},
    "chiar-meta-off": {"net.route.meta": "off"},
    "chiar-dct-matmul": {"net.route.dct": "matmul"},
    "chiar-dct-folded": {"net.route": {"dct": "folded", "mode": "hard"}},
    "chiar-scan-remat": {"net.scan": True, "net.remat": True, "net.depth": 5},
    "chiar-compat": {"net.compat": True, "net.route.dispatch": False},
    "chiar-blockwise": {"net.attention": "blockwise"},
    "chiar-two-layers": {"net.depth": 2},
    "cerebra-threshold": {"net.name": "cerebra", "net.route.kv": "routed"},
    "cerebra-kv-all": {"net.name": "cerebra", "net.compress.kind": "attention"},
    "cerebra-by-layer": {
        "net.name": "cerebra",
        "net.route": {"kv": "routed", "by_layer": "0.4,3,1"},
    },
    "cerebra-masked": {
        "net.name": "cerebra",
        "net.route.kv": "routed",
        "net.route.dispatch": False,
    },
    "cerebra-local": {"net.name": "cerebra", "net.route.kv": "routed", "net.local": 4},
    "dense-local": {"net.name": "transformer", "net.local": 3},
    "cerebra-attention-part": {
        "net.name": "cerebra",
        "net.route.part": "attention",
        "net.compress.r": 0.6,
    },
    "cerebra-hybrid-odd": {
        "net.name": "cerebra",
        "net.compress": {"kind": "hybrid", "r": 0.3, "s": 0.72},
    },
    "chiar-onehot": {"net.route.lowering": "onehot", "net.route.kv": "routed"},
    "cerebra-onehot": {
        "net.name": "cerebra",
        "net.route.lowering": "onehot",
        "net.route.kv": "routed",
    },
    "cerebra-learned": {
        "net.name": "cerebra",
        "net.route.tau": "learned",
        "net.compress.reconstruct": 0.1,
    },
    "cerebra-soft": {"net.name": "cerebra", "net.route.mode": "soft"},
    "cerebra-random": {"net.name": "cerebra", "net.route.mode": "random"},
    "cerebra-oracle": {"net.name": "cerebra", "net.route.mode": "oracle", "net.route.kv": "routed"},
    "cerebra-always_full": {"net.name": "cerebra", "net.route.mode": "always_full"},
    "cerebra-always_compressed": {"net.name": "cerebra", "net.route.mode": "always_compressed"},
    "cerebra-scan-remat": {
        "net.name": "cerebra",
        "net.scan": True,
        "net.remat": True,
        "net.ffn": "gated",
    },
    "cerebra-blockwise": {
        "net.name": "cerebra",
        "net.attention": "blockwise",
        "net.compress.r": 1.0,
    },
    "mod": {"net.name": "mod", "net.depth": 4, "net.route.kv": "routed"},
    "mod-kv-all": {"net.name": "mod"},
    "mod-masked": {"net.name": "mod", "net.route.kv": "routed", "net.route.dispatch": False},
    "mod-learned": {"net.name": "mod", "net.route.tau": "learned"},
    "mod-random": {"net.name": "mod", "net.route.mode": "random"},
    "mod-scan-remat": {"net.name": "mod", "net.depth": 5, "net.scan": True, "net.remat": True},
    "window": {"net.name": "window", "net.window": 5},
    "window-scan-remat": {
        "net.name": "window",
        "net.window": 9,
        "net.scan": True,
        "net.remat": True,
    },
    "lstm": {"net.name": "lstm"},
    "lstm-scan-remat": {"net.name": "lstm", "net.scan": True, "net.remat": True},
    "ssm": {"net.name": "ssm", "net.ssm_state": 4},
    "cnn": {"net.name": "cnn"},
    "cnn-scan-remat": {"net.name": "cnn", "net.kernel": 3, "net.scan": True, "net.remat": True},
    "ssm-scan-remat": {"net.name": "ssm", "net.ssm_state": 4, "net.scan": True, "net.remat": True},
}


def batch_of(ids: np.ndarray) -> dict:
    return {
        "inputs_BxL": ids,
        "labels_BxL": jnp.roll(ids, -1, axis=1),
        "w_BxL": np.ones(ids.shape, np.float32),
        "ex_B": np.arange(ids.shape[0], dtype=np.int32),
        "needed_BxL": np.arange(ids.size).reshape(ids.shape) % 5 == 0,  # of an oracle router
    }


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, V, (B, L)).astype(np.int32)


class Made:
    """A model of a variant with random parameters, and its forward pass compiled once: run(ids) -> (logits, aux)."""

    def __init__(self, cfg):
        self.model = build(cfg, V)
        shapes = jax.eval_shape(
            lambda key: self.model.init(key, batch_of(tokens())), jax.random.key(0)
        )
        rng = np.random.RandomState(
            1
        )  # larger weights than at the start of training: differences between tokens are then far above rounding

        def fill(path, s):
            centre = 1.0 if path[-1].key in ("scale", "w") else 0.0
            return jnp.asarray(centre + 0.1 * rng.standard_normal(s.shape), jnp.float32)

        params = jax.tree_util.tree_map_with_path(fill, shapes["params"])
        self.variables = {"params": params, "routing": MODELS[self.model.name].routing(cfg.net)}
        if self.variables["routing"]:  # some tokens, but not all, are routed
            self.variables["routing"] = {
                key: x.mean(1) for key, x in jax.jit(self.forward)(tokens())[1].observed.items()
            }
        self.run = jax.jit(lambda ids: self.forward(ids))

    def forward(self, ids, variables=None):
        out, aux = self.model.apply(variables or self.variables, batch_of(ids), neutral_knobs())
        return jnp.einsum("bld,vd->blv", out.h.astype(jnp.float32), out.head_VxD), aux


@pytest.fixture(scope="module")
def make(tiny_cfg):
    """A factory of `Made`, each variant made once a module."""
    made = {}

    def get(name: str, **extra) -> Made:
        key = (name, tuple(sorted(extra.items())))
        if key not in made:
            made[key] = Made(
                tiny_cfg({"task.seq_len": L, "net.ffn_width": 48} | VARIANTS.get(name, {}) | extra)
            )
        return made[key]

    return get


@pytest.mark.parametrize("name", VARIANTS)
def test_contract_and_causality(make, name):
    """Finite, right shapes, a cost, and no output that depends on later tokens or on other examples."""
    m = make(name)
    logits, aux = m.run(tokens())
    assert logits.shape == (B, L, V) and np.isfinite(logits).all()
    assert (
        aux.expected_B.shape == aux.hard_B.shape == (B,)
        and (aux.hard_B > 0).all()
        and (aux.expected_B > 0).all()
    )
    assert m.model.cost.executed_flops > 0 and m.model.causal
    assert_causal(lambda ids: m.run(ids)[0], tokens())


@pytest.mark.parametrize("name", [n for n, net in VARIANTS.items()
                                  if not {"oracle", "blockwise", "onehot", "matmul"} & set(n.split("-"))
                                  and net.get("net.name", "chiar") in DECODERS])  # fmt: skip
def test_cached_decoding_is_the_full_pass(make, name):
    """Random prompts at random paces: the decisions of the full pass exactly, its logits within 1e-5. (An oracle cannot
    decode; kernels and lowerings are not part of the step.)"""
    m = make(name)

    def full(ids):
        logits, aux = m.run(ids)
        return logits, aux.scores.get("kept", np.zeros((0, B, L), bool))

    def decode(cache, ids_Bxn, new_B):
        out, cache = m.model.decode(m.variables, cache, ids_Bxn, new_B)
        return jnp.einsum("bld,vd->blv", out.h.astype(jnp.float32), out.head_VxD), cache

    cache = m.model.init_cache(batch_of(tokens())["ex_B"])
    assert_decodes(full, decode, cache, tokens(5), decisions=lambda cache: cache.kept_RxBxL)


@pytest.mark.parametrize("name", ["dense", "ssm", "lstm", "chiar-threshold", "chiar-hard-kv-routed", *(
    f"cerebra-{kind}" for kind in ("threshold", "kv-all", "hybrid-odd", "learned", "soft"))])  # fmt: skip
def test_jit_equals_eager(make, name):
    m = make(name)
    np.testing.assert_allclose(m.forward(tokens())[0], m.run(tokens())[0], rtol=2e-4, atol=2e-4)


def test_assert_causal_catches_the_batch_meta_router(make):
    m = make("chiar-threshold", **{"net.route.meta": "batch"})
    assert not m.model.causal
    with pytest.raises(AssertionError, match="tokens from"):
        assert_causal(lambda ids: m.run(ids)[0], tokens(), batch_mates=False)
    with pytest.raises(AssertionError, match="other examples"):
        assert_causal(lambda ids: m.run(ids)[0], tokens(), cuts=[])


@pytest.mark.parametrize("name", [n for n in VARIANTS if "scan" not in n and "two" not in n])
def test_every_parameter_gets_a_gradient(make, name):
    m, batch = make(name), batch_of(tokens())
    routing = m.variables["routing"]

    @jax.jit
    def grad(params):
        def loss(params):
            out, aux = m.model.apply({"params": params, "routing": routing}, batch, neutral_knobs())
            nats = chunked_xent(out.h, out.head_VxD, batch["labels_BxL"], batch["w_BxL"], 16)
            if m.model.name not in ("cerebra", "mod"):
                return nats + aux.expected_B.sum()
            # its routers learn from the task itself, through the gates: no penalty and no z-loss here
            return nats + sum(
                loss_B.sum() for name, loss_B in aux.losses.items() if name != "z_loss"
            )

        return jax.grad(loss)(params)

    dead = [jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(grad(m.variables["params"]))
            if not (np.isfinite(g).all() and np.abs(g).max() > 0)]  # fmt: skip
    assert not dead


@pytest.mark.parametrize("name", ["chiar-onehot", "cerebra-onehot"])
def test_onehot_products_are_the_gathers(make, name):
    """The same outputs, decisions and gradients, without a batched gather or any scatter in the program."""
    m, plain = make(name), make(name, **{"net.route.lowering": "gather"})
    (got, aux), (want, plain_aux) = m.run(tokens(2)), plain.run(tokens(2))
    np.testing.assert_array_equal(aux.scores["kept"], plain_aux.scores["kept"])
    np.testing.assert_array_equal(aux.hard_B, plain_aux.hard_B)
    np.testing.assert_allclose(got, want, atol=1e-6 * float(np.abs(want).max()))

    def slope(m):
        return jax.jit(
            jax.grad(
                lambda params: (
                    m.forward(tokens(2), m.variables | {"params": params})[0] ** 2
                ).mean()
            )
        )

    for g, h in zip(
        *(jax.tree.leaves(slope(m)(m.variables["params"])) for m in (m, plain)), strict=True
    ):
        np.testing.assert_allclose(g, h, atol=1e-5 * float(np.abs(h).max()))
    moves = [
        e
        for e in trees_of(jax.make_jaxpr(m.forward)(tokens()))
        if e.primitive.name.startswith(("gather", "scatter"))
    ]
    assert moves and all(
        e.primitive.name == "gather" and e.invars[0].aval.ndim == 2 for e in moves
    )  # tables only
    assert any(
        e.primitive.name == "scatter" for e in trees_of(jax.make_jaxpr(plain.forward)(tokens()))
    )
    extra = m.model.cost.executed_flops - plain.model.cost.executed_flops
    assert extra == sum(v for k, v in m.model.cost.executed.items() if k.endswith("/dispatch")) > 0
    assert m.model.cost.model_flops == plain.model.cost.model_flops


def trees_of(jaxpr):
    """Every equation of a program, of what it calls too."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for value in eqn.params.values():
            for body in value if isinstance(value, tuple | list) else (value,):
                if hasattr(getattr(body, "jaxpr", body), "eqns"):
                    yield from trees_of(body)


@pytest.mark.parametrize("kv", ["all", "routed"])
@pytest.mark.parametrize(("name", "mode"), [
    ("chiar", "threshold"), ("chiar", "hard"), ("chiar", "random"), ("cerebra", "threshold"), ("cerebra", "random"),
    ("cerebra", "oracle"), ("mod", "threshold"), ("mod", "oracle")])  # fmt: skip
def test_dispatch_without_overflow_equals_the_masked_model(make, name, mode, kv):
    """Two ways to compute one model: gathered tokens only, or everything and a mask."""
    extra = {
        "net.route.mode": mode,
        "net.route.kv": kv,
        "net.route.capacity": 4.0,
        "net.route.rate": 0.25,
    }
    extra["net.name"] = name
    m, masked = make("", **extra), make("", **extra, **{"net.route.dispatch": False})
    got, aux = m.run(tokens(3))
    assert (
        0 < float(aux.stats["kept"].mean()) < 1
        and float(jnp.abs(aux.stats["overflow"]).max()) < 1e-6
    )
    np.testing.assert_allclose(got, masked.run(tokens(3))[0], rtol=2e-4, atol=2e-4)


SCANNED = ["dense", "chiar-threshold", "chiar-hard", "cerebra-threshold", "cerebra-random", "cerebra-oracle", "lstm",
           "ssm", "cnn"]  # fmt: skip


@pytest.mark.parametrize("name", SCANNED)
def test_scanned_equals_unrolled_and_remat_changes_nothing(make, name):
    m, scanned = (
        make(name, **{"net.depth": 4}),
        make(name, **{"net.depth": 4, "net.scan": True, "net.remat": True}),
    )
    params = dict(m.variables["params"])
    layers = [params.pop(k) for k in sorted(params) if k.startswith("layer_")]
    params["layers"] = jax.tree.map(lambda *p: jnp.stack(p), *layers)
    got = jax.jit(scanned.forward)(tokens(), m.variables | {"params": params})[0]
    np.testing.assert_allclose(got, m.run(tokens())[0], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["dense", "chiar-threshold", "chiar-soft", "cerebra-threshold", "cerebra-soft",
                                  "window", "lstm", "ssm", "cnn"])  # fmt: skip
def test_bfloat16_stays_near_float32(make, name):
    m, low = make(name), make(name, **{"net.dtype": "bfloat16"})
    variables = m.variables
    if name.endswith(
        "threshold"
    ):  # decisions near the threshold may flip: route nothing (soft blends smoothly)
        variables = variables | {
            "routing": {k: v + 10 * (k == "tau") for k, v in variables["routing"].items()}
        }
    want = jax.jit(m.forward)(tokens(), variables)[0]
    got = jax.jit(low.forward)(tokens(), variables)[0]
    assert jnp.abs(got - want).max() < 0.05 * jnp.abs(want).max()


def test_soft_blend_reports_that_it_saves_nothing(make):
    m = make("chiar-soft")
    aux = m.run(tokens())[1]
    assert (np.asarray(aux.hard_B) > np.asarray(aux.expected_B)).all()
    masked = make("chiar-threshold-masked").model.cost.executed_flops
    assert m.model.cost.executed_flops >= masked > make("chiar-threshold").model.cost.executed_flops


def test_calibration_puts_the_threshold_between_the_thirds(make):
    m = make("chiar-threshold", **{"net.depth": 4})

    @jax.jit
    def scores_of(routing, ids):
        return m.forward(ids, {"params": m.variables["params"], "routing": routing})[1].scores[
            "score"
        ]

    batches = [tokens(s) for s in range(4)]
    routing = thresholds.calibrate(scores_of, m.variables["routing"], batches)
    for i in range(2):
        scores = np.concatenate([np.asarray(scores_of(routing, b)[i]).ravel() for b in batches])
        low, high = np.quantile(scores, [1 / 3, 2 / 3])
        assert low < routing["tau"][i] < high
        np.testing.assert_allclose(routing["tau"][i], (low + high) / 2, rtol=1e-5)
