"""Baselines: each computes what its paper says, sees no padding, and can learn."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cerebra_jax.checks import UNROUTED
from cerebra_jax.config import NetCfg, RouteCfg
from cerebra_jax.cost import count
from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.layers import fnet, gated_conv, lstm, ssm
from cerebra_jax.layers.rows import ranks
from cerebra_jax.models import dense_block, mod, mod_block, stack
from cerebra_jax.models.model import Model, build, neutral_knobs

V, B, L = 30, 3, 40
IDS = np.random.RandomState(0).randint(0, V, (B, L)).astype(np.int32)
OTHER = (IDS + 7) % V
PLACE = np.arange(L)[None]
MASK = np.array([[L], [11], [L - 7]]) > PLACE
ALL = ("mod", *UNROUTED)
LANGUAGE = tuple(name for name in ALL if name not in ("fnet", "mlp"))


def batch_of(ids, mask=None):
    batch = {"inputs_BxL": ids, "ex_B": jnp.arange(len(ids))}
    return batch if mask is None else batch | {"mask_BxL": mask}


def made(tiny_cfg, name: str, causal: bool = True, **net) -> Model:
    """A tiny baseline; an encoder has a pooled head of 3 outputs, which no text task accepts."""
    base = {"task.seq_len": L, "net.name": "transformer", "net.window": 7, "net.ssm_state": 4}
    cfg = tiny_cfg(base | net)
    mode = "threshold" if causal else "topk"
    route = dataclasses.replace(cfg.net.route, mode=mode, kv="routed")
    changes = {"name": name, "route": route}
    if not causal:
        changes |= {"causal": False, "outputs": 3}
    return build(dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, **changes)), V)


def shapes_of(model: Model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), batch_of(IDS)))


def drawn(model: Model):
    """Variables with random numbers of size 0.2, which take no program to make."""
    rng = np.random.RandomState(1)

    def draw(shape):
        return jnp.asarray(0.2 * rng.standard_normal(shape.shape), jnp.float32)

    return shapes_of(model) | {"params": jax.tree.map(draw, shapes_of(model)["params"])}


def hidden(model: Model, variables, batch):
    """What the last LayerNorm gives, (B, L, D), before any pooling."""
    tokens = model.module.clone(net=dataclasses.replace(model.net, outputs=0))
    params = {name: x for name, x in variables["params"].items() if name != "head"}
    knobs = neutral_knobs()
    return tokens.apply({"params": params}, batch, knobs, variables["routing"])[0].h


class Encoder:
    """An encoder as it is initialised; run(params, ids, mask) -> (features, pooled features)."""

    def __init__(self, model: Model):
        self.model = model
        self.variables = model.init(jax.random.key(0), batch_of(IDS))
        self.params = self.variables["params"]
        self.run = jax.jit(self.forward)

    def forward(self, params, ids, mask):
        variables, batch = self.variables | {"params": params}, batch_of(ids, mask)
        pooled = self.model.apply(variables, batch, neutral_knobs())[0]
        if self.model.name == "mlp":  # it has no features of single tokens
            return None, pooled
        return hidden(self.model, variables, batch), pooled


@pytest.fixture(scope="module")
def encoder(tiny_cfg):
    found: dict[str, Encoder] = {}

    def get(name: str) -> Encoder:
        if name not in found:
            found[name] = Encoder(made(tiny_cfg, name, causal=False))
        return found[name]

    return get


@pytest.mark.parametrize("name", ALL)
def test_the_price_of_an_encoder_is_the_count_of_its_program(tiny_cfg, name):
    model = made(tiny_cfg, name, causal=False)
    variables = shapes_of(model)

    def forward(params, ids, mask):
        own = variables | {"params": params}
        out, aux = model.apply(own, batch_of(ids, mask), neutral_knobs())
        return out.logits(), aux.expected_B

    counted = count.count(forward, variables["params"], IDS, MASK).flops
    assert counted == B * model.cost.executed_flops


@pytest.mark.parametrize("name", [name for name in ALL if name != "mlp"])
def test_an_encoder_sees_both_sides_and_no_padding(encoder, name):
    made = encoder(name)
    h = np.asarray(made.run(made.params, IDS, MASK)[0])
    assert np.isfinite(h).all()
    other = np.asarray(made.run(made.params, np.where(MASK, IDS, OTHER), MASK)[0])
    np.testing.assert_array_equal(h[MASK], other[MASK])

    everyone = np.ones_like(MASK)
    full = made.run(made.params, IDS, everyone)[0]
    changed = made.run(made.params, np.where(PLACE == L // 2, OTHER, IDS), everyone)[0]
    moved = np.abs(full - changed).max(-1)
    if name == "mod":  # the others skip the routed blocks
        assert (moved[:, [0, L - 1]] > 0).all()
    assert (moved[:, L // 2 - 1] > 0).all()
    assert (moved[:, L // 2 + 1] > 0).all()


@pytest.mark.parametrize("name", ["window", "lstm", "ssm", "cnn"])
def test_padding_is_as_if_it_were_not_there(encoder, name):
    """Not for FNet and the top k of Mixture-of-Depths, which depend on the length of the window."""
    made, rng = encoder(name), np.random.RandomState(2)

    def shake(p):  # biases start at 0 and would hide what padding does to a state
        return p + 0.1 * rng.standard_normal(p.shape).astype(np.float32)

    params = jax.tree.map(shake, made.params)
    padded = made.run(params, IDS, MASK)[0][1, :11]
    alone = made.run(params, IDS[1:2, :11], None)[0][0]
    np.testing.assert_allclose(padded, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_pooled_head_sees_no_padding(encoder, name):
    made = encoder(name)
    out = made.run(made.params, IDS, MASK)[1]
    assert out.h.shape == (B, 1, 32) and out.head_VxD.shape == (3, 32)
    padded = made.run(made.params, np.where(MASK, IDS, OTHER), MASK)[1]
    np.testing.assert_array_equal(out.h, padded.h)
    other = made.run(made.params, np.where(MASK, OTHER, IDS), MASK)[1]
    assert np.abs(out.h - other.h).max() > 1e-3


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_learns_one_batch_by_heart(tiny_cfg, name):
    """The loss of a random sequence falls from ln V to nearly nothing: initial weights let it."""
    model = made(tiny_cfg, name, **{"net.depth": 2})
    batch, labels = batch_of(IDS[:2]), jnp.roll(IDS[:2], -1, axis=1)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train():
        variables = model.init(jax.random.key(0), batch)

        def loss(params):
            out, _ = model.apply(variables | {"params": params}, batch, neutral_knobs())
            nats = chunked_xent(out.h, out.head_VxD, labels, jnp.ones((2, L)), 128)
            return nats / (2 * L)

        def step(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grad, state)
            return (optax.apply_updates(params, updates), state), value

        params = variables["params"]
        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=120)[1]

    losses = train()
    assert abs(losses[0] - np.log(V)) < 0.5, losses[0]
    assert losses[-1] < 0.1, losses[-1]


@pytest.mark.parametrize("name", UNROUTED)
def test_what_cannot_change_costs_the_share_of_its_price(tiny_cfg, name):
    model = made(tiny_cfg, name, name in LANGUAGE)
    variables = drawn(model)
    aux = jax.jit(lambda: model.apply(variables, batch_of(IDS), neutral_knobs())[1])()
    want = np.full(B, model.cost.model_flops / model.dense.model_flops, np.float32)
    np.testing.assert_allclose(aux.expected_B, want, rtol=1e-6)
    np.testing.assert_allclose(aux.hard_B, want, rtol=1e-6)
    assert not np.allclose(want, 1.0)


def test_the_selective_scan_is_its_recurrence():
    rng, n, E, S = np.random.default_rng(0), 37, 5, 3
    dt, u, b, c = (rng.standard_normal((2, n, w)).astype(np.float32) for w in (E, E, S, S))
    dt = np.log1p(np.exp(dt))
    a = -np.exp(rng.standard_normal((S, E))).astype(np.float32)
    h, want = np.zeros((2, S, E)), []
    for t in range(n):
        h = np.exp(dt[:, t, None] * a) * h + (dt * u)[:, t, None] * b[:, t, :, None]
        want.append((h * c[:, t, :, None]).sum(1))
    got = ssm.selective_scan(dt, u, b, c, a)
    np.testing.assert_allclose(got, np.stack(want, 1), rtol=1e-4, atol=1e-5)


def test_the_weights_of_recurrences_start_where_their_papers_put_them(encoder):
    bias = encoder("lstm").params["layer_00"]["input"]["bias"].reshape(4, -1)
    gates = np.tile([0, 1, 0, 0], (bias.shape[1], 1))  # i, f, g, o
    np.testing.assert_array_equal(bias.T, gates)
    layer = encoder("ssm").params["layer_00"]
    states = np.arange(1, 5)[:, None] * np.ones((1, 64))
    np.testing.assert_allclose(np.exp(layer["log_a"]), states, rtol=1e-6)
    dt = np.log1p(np.exp(np.asarray(layer["dt"]["bias"])))
    assert 9e-4 < dt.min() < 3e-3 and 3e-2 < dt.max() < 0.11


def test_the_lstm_has_the_gradient_of_its_recurrence():
    rng, T, D = np.random.default_rng(1), 9, 6
    kernel = jnp.asarray(rng.standard_normal((D, 4 * D)), jnp.float32)
    pre, v = (jnp.asarray(rng.standard_normal((T, 2, n)), jnp.float32) for n in (4 * D, D))
    keep = jnp.asarray(rng.random((T, 2)) < 0.7)

    def slopes(recurrence):
        def loss(kernel, pre):
            return (recurrence(kernel, pre, keep) * v).sum()

        return jax.grad(loss, argnums=(0, 1))(kernel, pre)

    for got, want in zip(slopes(lstm.recur), slopes(lstm._run), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_fnet_mixes_by_the_real_part_of_the_fourier_transform():
    for n, D in ((12, 8), (9, 7), (5, 2)):
        x = np.random.default_rng(n).standard_normal((2, n, D)).astype(np.float32)
        np.testing.assert_allclose(fnet.mix(x), np.fft.fft2(x, norm="ortho").real, atol=1e-5)


def moved_by(model: Model, place: int) -> np.ndarray:
    """Which tokens of a model with random weights move when the token at `place` changes, (L,)."""
    variables = drawn(model)
    run = jax.jit(lambda ids: hidden(model, variables, batch_of(ids)))
    changed = run(np.where(PLACE == place, OTHER, IDS))
    return np.abs(run(IDS) - changed).max((0, 2)) > 0


@pytest.mark.parametrize("taps", [2, 3, 4])
def test_the_dilations_of_a_cnn_let_a_token_see_everything_before_it(tiny_cfg, taps):
    """As many tokens as the dilations promise, and with a layer less not all."""
    depth = gated_conv.cycle(taps, L)
    for layers in (depth, depth - 1):
        model = made(tiny_cfg, "cnn", **{"net.depth": layers, "net.kernel": taps})
        moved = moved_by(model, 0)
        assert moved.sum() == min(L, 1 + (taps - 1) * (2**layers - 1))
        assert moved.all() == (layers == depth)


def test_a_window_bounds_how_far_a_token_sees(tiny_cfg):
    """One layer: the token sees window − 1 others; as an encoder, half of them on each side."""
    for causal, reach in ((True, (6, 0)), (False, (3, 3))):
        model = made(tiny_cfg, "window", causal, **{"net.depth": 1})
        assert dense_block.reach(model.net) == reach
        seen = range(20 - reach[1], 20 + reach[0] + 1)
        assert moved_by(model, 20).nonzero()[0].tolist() == list(seen)


class Layer(NamedTuple):
    """One routed block of Mixture-of-Depths with random weights, and what it is given."""

    block: mod_block.RoutedBlock
    own: stack.Own
    shared: stack.Shared


def routed_layer(net: NetCfg) -> Layer:
    pairs = mod.Mod.blocks(net, L, "cpu")
    own = jax.tree.map(lambda x: x[0], stack.owns({}, 1))
    place_1xL = jnp.arange(L)[None]
    one = jnp.float32(1)
    rank = ranks(L, net.causal)
    return Layer(
        pairs[0].routed, own, stack.Shared(one, one, place_1xL, rank, jnp.arange(B), None, None)
    )


def test_tokens_that_a_mixture_of_depths_does_not_keep_skip_the_block():
    route = RouteCfg(mode="topk", k=5, kv="routed")
    sizes = {"depth": 2, "width": 16, "heads": 2, "ffn_width": 32}
    layer, own, shared = routed_layer(NetCfg(name="mod", causal=False, route=route, **sizes))
    x = jax.random.normal(jax.random.key(0), (B, L, 16))
    params = jax.jit(lambda: layer.init(jax.random.key(1), x, own, shared))()
    run = jax.jit(lambda x: layer.apply(params, x, own, shared))

    y, report = run(x)
    moved = np.abs(y - x).max(-1) > 0
    assert (moved.sum(1) == 5).all()
    score = report.scores["score"]
    least = np.where(moved, score, np.inf).min(1)
    assert (least > np.where(moved, -np.inf, score).max(1)).all()
    other = run(jnp.where(moved[..., None], x, x + 1e-4))[0]  # the rest are no keys either
    np.testing.assert_allclose(other[moved], y[moved], rtol=1e-5, atol=1e-6)


def test_a_mixture_of_depths_pays_for_what_it_keeps(tiny_cfg):
    """Everything kept is the whole model; nothing kept leaves only routers of routed blocks."""
    route = {"dispatch": False, "kv": "routed"}
    model = made(tiny_cfg, "mod", **{"net.depth": 5, "net.route": route})
    params = drawn(model)["params"]

    @jax.jit
    def run(tau):
        routing = {"tau": jnp.full(2, tau), "spread": jnp.ones(2)}
        variables = {"params": params, "routing": routing}
        return model.apply(variables, batch_of(IDS), neutral_knobs())[1]

    cost, dense = model.cost.model, model.dense.model_flops
    routed = sum(cost[f"layer_{i:02d}/{part}"] for i in (1, 3) for part in ("attention", "ffn"))
    for tau, want in ((-1e6, sum(cost.values())), (1e6, sum(cost.values()) - routed)):
        aux = run(tau)
        np.testing.assert_allclose(aux.hard_B, np.full(B, want / dense, np.float32), rtol=1e-5)
        np.testing.assert_allclose(aux.expected_B, aux.hard_B, rtol=1e-5)
    some = run(0.0).hard_B
    assert (some < run(-1e6).hard_B).all()
    assert (some > run(1e6).hard_B).all()


@pytest.mark.parametrize("name", ALL)
def test_features_have_the_dtype_of_the_net_and_weights_are_float32(tiny_cfg, name):
    model = made(tiny_cfg, name, name in LANGUAGE, **{"net.dtype": "bfloat16"})
    variables = shapes_of(model)

    def features(variables):
        return model.apply(variables, batch_of(IDS), neutral_knobs())[0].h

    assert jax.eval_shape(features, variables).dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
