"""Every model and mode of one table keeps one contract; a new model enters by a line here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import trees
from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models import registry
from cerebra_jax.models.model import build, neutral_knobs
from cerebra_jax.policies import thresholds
from cerebra_jax.testing import assert_causal, assert_decodes

V, B, L = 50, 8, 32
ROUTE = ("mode", "dispatch", "lowering")


def cerebra(**keys) -> dict:
    """Returns the changes of a Cerebra of two layers with keys of its own; its keys are routed."""
    route = {"kv": "routed"} | {key: keys.pop(key) for key in ROUTE if key in keys}
    return {"net": {"name": "cerebra", "ssm_state": 4, "route": route} | keys}


VARIANTS = {
    "dense": {"net.name": "transformer"},
    "dense-kept": {"net.name": "transformer", "net.kept": {"heads": "1,0", "ffn": "8,48"}},
    "chiar-kept": {"net.route.kv": "routed", "net.kept": {"heads": "0,1,1", "ffn": "8,0,3"}},
    "cerebra-kept": {
        "net.name": "cerebra",
        "net.kept": {"heads": "1,0", "rest": "24,0", "channels": "5,0"},
    },
    "dense-gated": {"net.name": "transformer", "net.ffn": "gated"},
    "dense-gated-scan-remat": {
        "net.name": "transformer",
        "net.ffn": "gated",
        "net.scan": True,
        "net.remat": True,
    },
    "dense-post": {"net.name": "transformer", "net.norm": "post"},
    "chiar-threshold": {},
    "chiar-threshold-masked": {"net.route.dispatch": False},
    "chiar-kv-routed-masked": {"net.route.kv": "routed", "net.route.dispatch": False},
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
        "net.route": {"kv": "routed", "by_layer": "0.4,3"},
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
    "cerebra-random": {"net.name": "cerebra", "net.route.mode": "random", "net.ffn": "gated"},
    "cerebra-random-gate": {
        "net.name": "cerebra",
        "net.route": {"mode": "random", "gate": "learned", "kv": "routed"},
    },
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
    "cerebra-heavy-gla": cerebra(heavy="gla"),
    "cerebra-heavy-gla-masked": cerebra(heavy="gla", dispatch=False),
    "cerebra-heavy-gla-onehot": cerebra(heavy="gla", lowering="onehot"),
    "cerebra-heavy-gla-soft": cerebra(heavy="gla", mode="soft"),
    "cerebra-heavy-ssm": cerebra(heavy="ssm"),
    "cerebra-heavy-ssm-masked": cerebra(heavy="ssm", dispatch=False),
    "cerebra-light-ssm": cerebra(light="ssm"),
    "cerebra-light-gla": cerebra(light="gla"),
    "cerebra-light-dct": cerebra(light="dct"),
    "cerebra-light-local": cerebra(light="local"),
    "cerebra-light-none": cerebra(light="none"),
    "cerebra-gla-gla": cerebra(heavy="gla", light="gla", mode="random"),
    "cerebra-gla-gla-scan-remat": cerebra(heavy="gla", light="gla", scan=True, remat=True),
    "cerebra-gla-full": cerebra(heavy="gla", light="none", mode="always_full"),
    "cerebra-gla-light-alone": cerebra(light="gla", mode="always_compressed"),
    "dense-gla": {"net.name": "transformer", "net.heavy": "gla"},
    "dense-ssm": {"net.name": "transformer", "net.heavy": "ssm", "net.ssm_state": 4},
    "mod-gla": {"net.name": "mod", "net.heavy": "gla", "net.route.kv": "routed"},
    "mod-gla-masked": {
        "net.name": "mod",
        "net.heavy": "gla",
        "net.route": {"kv": "routed", "dispatch": False},
    },
    "mod": {"net.name": "mod", "net.depth": 4, "net.route.kv": "routed"},
    "mod-kv-all": {"net.name": "mod"},
    "mod-masked": {"net.name": "mod", "net.route.kv": "routed", "net.route.dispatch": False},
    "mod-learned": {"net.name": "mod", "net.route.tau": "learned"},
    "mod-random": {"net.name": "mod", "net.route.mode": "random"},
    "mod-random-gate": {"net.name": "mod", "net.route": {"mode": "random", "gate": "learned"}},
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
    """A model of a variant with random parameters; run(ids) -> (logits, aux) is compiled once.

    with_slopes: so is learn(ids) -> (logits, aux, gradients), and `run` is a part of it.
    """

    def __init__(self, cfg, with_slopes: bool = False):
        self.model = build(cfg, V)
        shapes = jax.eval_shape(
            lambda key: self.model.init(key, batch_of(tokens())), jax.random.key(0)
        )
        # weights are larger than at the start of training, so that differences between tokens are
        # far above rounding
        rng = np.random.RandomState(1)

        def fill(path, s):
            centre = 1.0 if path[-1].key in ("scale", "w") else 0.0
            return jnp.asarray(centre + 0.1 * rng.standard_normal(s.shape), jnp.float32)

        params = jax.tree_util.tree_map_with_path(fill, shapes["params"])
        self.variables = {"params": params, "routing": registry.init_routing(cfg.net)}
        self._forward = jax.jit(self.forward)
        self._learn = jax.jit(self.learned)
        self.with_slopes = with_slopes
        if self.variables["routing"]:  # some tokens, but not all, are routed
            observed = self.run(tokens())[1].observed
            self.variables["routing"] = {key: x.mean(1) for key, x in observed.items()}

    def forward(self, ids, variables=None):
        variables = self.variables if variables is None else variables
        out, aux = self.model.apply(variables, batch_of(ids), neutral_knobs())
        return out.logits(), aux

    def learned(self, ids, variables):
        """Returns (logits, aux, gradients of the loss that every parameter should be felt in)."""
        batch = batch_of(ids)

        def loss(params):
            out, aux = self.model.apply(variables | {"params": params}, batch, neutral_knobs())
            nats = chunked_xent(out.h, out.head_VxD, batch["labels_BxL"], batch["w_BxL"], 16)
            if self.model.name not in ("cerebra", "mod"):
                return nats + aux.expected_B.sum(), (out.logits(), aux)
            # its routers learn from the task itself, through the gates: no penalty, no z-loss here
            losses = {name: loss_B for name, loss_B in aux.losses.items() if name != "z_loss"}
            return nats + sum(loss_B.sum() for loss_B in losses.values()), (out.logits(), aux)

        slopes, (logits, aux) = jax.grad(loss, has_aux=True)(variables["params"])
        return logits, aux, slopes

    def learn(self, ids):
        return self._learn(ids, self.variables)

    def run(self, ids, variables=None):
        variables = self.variables if variables is None else variables
        return (
            self._learn(ids, variables)[:2] if self.with_slopes else self._forward(ids, variables)
        )


# A scanned model is its unrolled one, a dispatched one its masked one: tests below.
PLAIN = [name for name in VARIANTS if {"scan", "masked"}.isdisjoint(name.split("-"))]
LEARNS = [name for name in PLAIN if "two" not in name]


@pytest.fixture(scope="module")
def make(tiny_cfg):
    """Returns a factory of `Made`; each variant is made once."""
    made = {}

    def get(name: str, **extra) -> Made:
        key = (name, repr(sorted(extra.items())))
        if key not in made:
            keys = {"task.seq_len": L, "net.ffn_width": 48} | VARIANTS.get(name, {}) | extra
            made[key] = Made(tiny_cfg(keys, blocks=1), name in LEARNS and not extra)
        return made[key]

    return get


@pytest.mark.parametrize("name", PLAIN)
def test_contract_and_causality(make, name):
    """Outputs are finite and depend on no later token and no other example; they have a cost."""
    m = make(name)
    logits, aux = m.run(tokens())
    assert logits.shape == (B, L, V)
    assert np.isfinite(logits).all()
    for cost_B in (aux.expected_B, aux.hard_B):
        assert cost_B.shape == (B,)
        assert (cost_B > 0).all()
    assert m.model.cost.executed_flops > 0
    assert m.model.causal
    assert_causal(lambda ids: m.run(ids)[0], tokens())


def decoded(name: str) -> bool:
    """Returns whether a variant decodes; kernels and lowerings are not part of a step."""
    words = name.split("-")
    model = {"dense": "transformer"}.get(words[0], words[0])
    return registry.decodes(model) and {"oracle", "blockwise", "onehot", "matmul"}.isdisjoint(words)


DECODED = [name for name in VARIANTS if decoded(name)]


@pytest.mark.parametrize("name", DECODED)
def test_cached_decoding_is_the_full_pass(make, name):
    """Random prompts are read at random paces: same decisions exactly, logits within 1e-5."""
    m = make(name)

    def full(ids):
        logits, aux = m.run(ids)
        return logits, aux.scores.get("kept", np.zeros((0, B, L), bool))

    def decode(cache, ids_Bxn, new_B):
        out, cache = m.model.decode(m.variables, cache, ids_Bxn, new_B)
        return out.logits(), cache

    cache = m.model.init_cache(batch_of(tokens())["ex_B"])
    assert_decodes(full, decode, cache, tokens(5), decisions=lambda cache: cache.kept_RxBxL)


EAGER = ["dense", "lstm", "chiar-threshold", "chiar-hard-kv-routed", "cerebra-gla-gla"]


@pytest.mark.parametrize("name", EAGER)
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


@pytest.mark.parametrize("name", LEARNS)
def test_every_parameter_gets_a_gradient(make, name):
    found = trees.named_leaves(make(name).learn(tokens())[2])
    assert all(np.isfinite(g).all() for g in found.values())
    assert not [name for name, g in found.items() if not np.abs(g).max() > 0]


@pytest.mark.parametrize("name", ["chiar-onehot", "cerebra-onehot", "cerebra-heavy-gla-onehot"])
def test_onehot_products_are_the_gathers(make, name):
    """The outputs, decisions and gradients are the same; no batched gather and no scatter runs."""
    m, plain = make(name), make(name, **{"net.route.lowering": "gather"})
    got, aux = m.run(tokens(2))
    want, plain_aux = plain.run(tokens(2))
    np.testing.assert_array_equal(aux.scores["kept"], plain_aux.scores["kept"])
    np.testing.assert_array_equal(aux.hard_B, plain_aux.hard_B)
    np.testing.assert_allclose(got, want, atol=1e-6 * float(np.abs(want).max()))

    def slope(made):
        def loss(params):
            return (made.forward(tokens(2), m.variables | {"params": params})[0] ** 2).mean()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(m.variables["params"]))

    for g, h in zip(slope(m), slope(plain), strict=True):
        np.testing.assert_allclose(g, h, atol=1e-5 * float(np.abs(h).max()))

    # what moves rows: tables only
    moves = [op for op in equations(m) if op.primitive.name.startswith(("gather", "scatter"))]
    assert moves
    for op in moves:
        assert op.primitive.name == "gather"
        assert op.invars[0].aval.ndim == 2
    assert any(op.primitive.name == "scatter" for op in equations(plain))

    # what it costs more
    cost, cheaper = m.model.cost, plain.model.cost
    products = sum(v for k, v in cost.executed.items() if k.endswith("/dispatch"))
    assert cost.executed_flops - cheaper.executed_flops == products > 0
    assert cost.model_flops == cheaper.model_flops


def equations(made):
    """Returns every equation of a model's forward pass."""
    return trees_of(jax.make_jaxpr(made.forward)(tokens()))


def trees_of(jaxpr):
    """Yields every equation of a program, of what it calls too."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for value in eqn.params.values():
            for body in value if isinstance(value, tuple | list) else (value,):
                if hasattr(getattr(body, "jaxpr", body), "eqns"):
                    yield from trees_of(body)


@pytest.mark.parametrize(
    ("name", "mode", "kv"),  # every pair of model and keys, and of model and mode
    [
        ("chiar", "threshold", "all"),
        ("chiar", "hard", "routed"),
        ("chiar", "random", "all"),
        ("cerebra", "threshold", "all"),
        ("cerebra", "random", "routed"),
        ("cerebra", "oracle", "all"),
        ("mod", "threshold", "routed"),
        ("mod", "oracle", "all"),
    ],
)
def test_dispatch_without_overflow_equals_the_masked_model(make, name, mode, kv):
    """Gathered tokens only, or everything and a mask: two ways to compute one model."""
    route = {"mode": mode, "kv": kv}
    assert_dispatch_is_the_mask(make, {"net.name": name, "net.route": route})


@pytest.mark.parametrize(
    ("name", "heavy", "mode"),  # every pair of these
    [
        ("cerebra", "gla", "threshold"),
        ("cerebra", "ssm", "random"),
        ("mod", "gla", "random"),
        ("mod", "ssm", "threshold"),
    ],
)
def test_a_recurrence_reads_the_same_tokens_dispatched_or_masked(make, name, heavy, mode):
    """A state that skips tokens is the state of the tokens laid side by side."""
    net = {"name": name, "heavy": heavy, "ssm_state": 4}
    if name == "cerebra":
        net["light"] = "none"
    assert_dispatch_is_the_mask(make, {"net": net, "net.route": {"mode": mode, "kv": "routed"}})


def assert_dispatch_is_the_mask(make, keys):
    keys["net.route"] |= {"capacity": 4.0, "rate": 0.25}
    m, masked = make("", **keys), make("", **keys, **{"net.route.dispatch": False})
    got, aux = m.run(tokens(3))
    assert 0 < float(aux.stats["kept"].mean()) < 1
    assert float(jnp.abs(aux.stats["overflow"]).max()) < 1e-6
    want, same = masked.run(tokens(3))
    np.testing.assert_array_equal(aux.scores["kept"], same.scores["kept"])
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


SCANNED = [
    "dense",
    "chiar-threshold",
    "chiar-hard-kv-routed",
    "cerebra-threshold",
    "cerebra-random",
]
SCANNED += ["cerebra-oracle", "cerebra-gla-gla", "mod-learned", "window", "lstm", "ssm", "cnn"]


@pytest.mark.parametrize("name", SCANNED)
def test_scanned_equals_unrolled_and_remat_changes_nothing(make, name):
    depth = 4 if name.startswith("chiar") else 3
    m = make(name, **{"net.depth": depth})
    scanned = make(name, **{"net.depth": depth, "net.scan": True, "net.remat": True})
    params = dict(m.variables["params"])
    layers = [params.pop(k) for k in sorted(params) if k.startswith("layer_")]
    params["layers"] = jax.tree.map(lambda *p: jnp.stack(p), *layers)
    got = scanned.run(tokens(), m.variables | {"params": params})[0]
    np.testing.assert_allclose(got, m.run(tokens())[0], rtol=2e-4, atol=2e-4)


LOW = ["dense", "chiar-threshold", "chiar-soft", "cerebra-threshold", "cerebra-soft"]
LOW += ["cerebra-heavy-gla-soft", "window", "dense-gla", "lstm", "ssm", "cnn"]


@pytest.mark.parametrize("name", LOW)
def test_bfloat16_stays_near_float32(make, name):
    m, low = make(name), make(name, **{"net.dtype": "bfloat16"})
    variables = m.variables
    if name.endswith("threshold"):
        # decisions near the threshold may flip, so nothing is routed; soft ones blend smoothly
        routing = {k: v + 10 * (k == "tau") for k, v in variables["routing"].items()}
        variables = variables | {"routing": routing}
    want = m.run(tokens(), variables)[0]
    got = low.run(tokens(), variables)[0]
    assert jnp.abs(got - want).max() < 0.05 * jnp.abs(want).max()


def test_soft_blend_reports_that_it_saves_nothing(make):
    m = make("chiar-soft")
    aux = m.run(tokens())[1]
    assert (np.asarray(aux.hard_B) > np.asarray(aux.expected_B)).all()
    masked = make("chiar-threshold-masked").model.cost.executed_flops
    assert m.model.cost.executed_flops >= masked > make("chiar-threshold").model.cost.executed_flops


def test_calibration_puts_the_threshold_between_the_thirds(make):
    m = make("chiar-threshold", **{"net.depth": 4})

    def scores_of(routing, ids):
        return m.run(ids, m.variables | {"routing": routing})[1].scores["score"]

    batches = [tokens(s) for s in range(4)]
    routing = thresholds.calibrate(scores_of, m.variables["routing"], batches)
    for i in range(2):
        scores = np.concatenate([np.asarray(scores_of(routing, b)[i]).ravel() for b in batches])
        low, high = np.quantile(scores, [1 / 3, 2 / 3])
        assert low < routing["tau"][i] < high
        # between the same two scores as the middle of the thirds
        above = [(scores > tau).sum() for tau in (routing["tau"][i], (low + high) / 2)]
        assert above[0] == above[1] and not np.isin(routing["tau"][i], scores)


ENCODERS = [("gla", "gla"), ("ssm", "dct"), ("attention", "local"), ("gla", "none")]
ENCODERS += [("attention", "ssm"), ("gla", "compressed")]


@pytest.mark.parametrize(
    ("heavy", "light", "mode"),
    [(*layers, mode) for layers, mode in zip(ENCODERS, ["threshold", "topk"] * 3, strict=True)],
)
def test_padding_changes_nothing_in_an_encoder(tiny_cfg, heavy, light, mode):
    """Whatever stands there: the same outputs and decisions for the real tokens, not few of them.

    Every second recurrence reads from the last token to the first; one example has fewer real
    tokens than top-k has slots.
    """
    keys = {"task.seq_len": L, "net.ffn_width": 48} | cerebra(heavy=heavy, light=light)
    cfg = tiny_cfg(keys | {"net.kernel": 3})
    route = dataclasses.replace(cfg.net.route, mode=mode)
    cfg = dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, causal=False, route=route))
    m = Made(cfg)
    real = np.arange(L)[None] < np.array([L, L - 1, 20, 9, 5, 3, 2, 1])[:, None]

    @jax.jit
    def run(ids):
        out, aux = m.model.apply(m.variables, batch_of(ids) | {"mask_BxL": real}, neutral_knobs())
        return out.logits(), aux.scores["kept"]

    ids = tokens(1)
    want, kept = run(ids)
    assert np.isfinite(want).all()
    assert 0 < np.asarray(kept)[:, :3].mean() < 1
    for other in (tokens(2), np.zeros_like(ids)):
        got, same = run(np.where(real, ids, other))
        np.testing.assert_array_equal(np.asarray(same)[:, real], np.asarray(kept)[:, real])
        np.testing.assert_array_equal(np.asarray(got)[real], np.asarray(want)[real])
    # real tokens do change the others, those before them too
    moved = ids.copy()
    moved[0, L // 2 :] = (moved[0, L // 2 :] + 1) % V
    changed = np.abs(np.asarray(run(moved)[0])[0] - np.asarray(want)[0]).max(-1) > 0
    assert changed[: L // 2].any()
