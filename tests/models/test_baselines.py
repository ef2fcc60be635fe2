"""Baselines: each computes what its paper says, sees no padding, and can learn."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cerebra_jax.checks import UNROUTED
from cerebra_jax.config import NetCfg, RouteCfg
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models import model as build
from cerebra_jax.models.baselines import cnn, fnet, lstm, mod, ssm, window

V, B, L = 30, 3, 40
IDS = np.random.RandomState(0).randint(0, V, (B, L)).astype(np.int32)
MASK = np.arange(L)[None] < np.array([[L], [11], [L - 7]])
ALL = ("mod", *UNROUTED)
LANGUAGE = tuple(name for name in ALL if name not in ("fnet", "mlp"))


def batch_of(ids, mask=None):
    batch = {"inputs_BxL": ids, "ex_B": jnp.arange(len(ids))}
    return batch if mask is None else batch | {"mask_BxL": mask}


def made(tiny_cfg, name, causal=True, **net):
    """(model, parameters) of a tiny baseline; an encoder has a pooled head of 3 outputs, which no text task accepts."""
    cfg = tiny_cfg(
        {"task.seq_len": L, "net.name": "transformer", "net.window": 7, "net.ssm_state": 4} | net
    )
    route = dataclasses.replace(cfg.net.route, mode="threshold" if causal else "topk", kv="routed")
    encoder = {"name": name, "route": route} | ({} if causal else {"causal": False, "outputs": 3})
    cfg = dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, **encoder))
    model = build.build(cfg, V)
    return model, jax.jit(lambda: model.init(jax.random.key(0), batch_of(IDS)))()


def hidden(model, variables, batch):
    """What the last LayerNorm gives, (B, L, D), before any pooling."""
    tokens = model.module.clone(net=dataclasses.replace(model.net, outputs=0))
    params = {k: v for k, v in variables["params"].items() if k != "head"}
    return tokens.apply({"params": params}, batch, build.neutral_knobs(), variables["routing"])[0].h


@pytest.mark.parametrize("name", ALL)
def test_the_price_of_an_encoder_is_the_count_of_its_program(tiny_cfg, name):
    model, variables = made(tiny_cfg, name, causal=False)

    def forward(params, ids, mask):
        out, aux = model.apply(
            variables | {"params": params}, batch_of(ids, mask), build.neutral_knobs()
        )
        return jnp.einsum("bld,vd->blv", out.h, out.head_VxD), aux.expected_B

    assert (
        jaxpr.count(forward, variables["params"], IDS, MASK).flops == B * model.cost.executed_flops
    )


@pytest.mark.parametrize("name", [name for name in ALL if name != "mlp"])
def test_an_encoder_sees_both_sides_and_no_padding(tiny_cfg, name):
    model, variables = made(tiny_cfg, name, causal=False)
    run = jax.jit(lambda ids, mask=None: hidden(model, variables, batch_of(ids, mask)))
    h, other = run(IDS, MASK), run(np.where(MASK, IDS, (IDS + 7) % V), MASK)
    assert np.isfinite(h).all()
    np.testing.assert_array_equal(np.asarray(h)[MASK], np.asarray(other)[MASK])
    middle = np.arange(L)[None] == L // 2
    moved = np.abs(run(IDS) - run(np.where(middle, (IDS + 7) % V, IDS))).max(-1)
    if name == "mod":  # the others skip the routed blocks
        assert (moved[:, [0, L - 1]] > 0).all()
    assert (moved[:, L // 2 - 1] > 0).all() and (moved[:, L // 2 + 1] > 0).all()


@pytest.mark.parametrize("name", ["window", "lstm", "ssm", "cnn"])
def test_padding_is_as_if_it_were_not_there(tiny_cfg, name):
    """Not for FNet and the top k of Mixture-of-Depths, which depend on the length of the window."""
    model, variables = made(tiny_cfg, name, causal=False)
    rng = np.random.RandomState(2)  # biases start at 0 and would hide what padding does to a state
    shaken = jax.tree.map(
        lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), variables["params"]
    )
    run = jax.jit(
        lambda ids, mask=None: hidden(model, variables | {"params": shaken}, batch_of(ids, mask))
    )
    np.testing.assert_allclose(
        run(IDS[1:2], MASK[1:2])[:, :11], run(IDS[1:2, :11]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ALL)
def test_a_pooled_head_sees_no_padding(tiny_cfg, name):
    model, variables = made(tiny_cfg, name, causal=False)
    pooled = jax.jit(
        lambda ids: model.apply(variables, batch_of(ids, MASK), build.neutral_knobs())[0]
    )
    out, padded = pooled(IDS), pooled(np.where(MASK, IDS, (IDS + 7) % V))
    assert out.h.shape == (B, 1, 32) and out.head_VxD.shape == (3, 32)
    np.testing.assert_array_equal(out.h, padded.h)
    assert np.abs(out.h - pooled(np.where(MASK, (IDS + 7) % V, IDS)).h).max() > 1e-3


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_learns_one_batch_by_heart(tiny_cfg, name):
    """The loss of a random sequence falls from ln V to nearly nothing: the initial weights let it."""
    model, variables = made(tiny_cfg, name, **{"net.depth": 2})
    batch, labels = batch_of(IDS[:2]), jnp.roll(IDS[:2], -1, axis=1)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(params):
        def loss(params):
            out, _ = model.apply(variables | {"params": params}, batch, build.neutral_knobs())
            return chunked_xent(out.h, out.head_VxD, labels, jnp.ones((2, L)), 128) / (2 * L)

        def step(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grad, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=120)[1]

    losses = train(variables["params"])
    assert abs(losses[0] - np.log(V)) < 0.5 and losses[-1] < 0.1, (losses[0], losses[-1])


@pytest.mark.parametrize("name", UNROUTED)
def test_what_cannot_change_costs_the_share_of_its_price(tiny_cfg, name):
    model, variables = made(tiny_cfg, name, name in LANGUAGE)
    aux = jax.jit(lambda: model.apply(variables, batch_of(IDS), build.neutral_knobs())[1])()
    want = np.full(B, model.cost.model_flops / model.dense.model_flops, np.float32)
    np.testing.assert_allclose(aux.expected_B, want, rtol=1e-6)
    np.testing.assert_allclose(aux.hard_B, want, rtol=1e-6)
    assert not np.allclose(want, 1.0)


def test_the_selective_scan_is_its_recurrence():
    rng, n, E, S = np.random.default_rng(0), 37, 5, 3
    dt, u, b, c = (rng.standard_normal((2, n, w)).astype(np.float32) for w in (E, E, S, S))
    dt, a = np.log1p(np.exp(dt)), -np.exp(rng.standard_normal((S, E))).astype(np.float32)
    h, want = np.zeros((2, S, E)), []
    for t in range(n):
        h = np.exp(dt[:, t, None] * a) * h + (dt * u)[:, t, None] * b[:, t, :, None]
        want.append((h * c[:, t, :, None]).sum(1))
    np.testing.assert_allclose(
        ssm.selective_scan(dt, u, b, c, a), np.stack(want, 1), rtol=1e-4, atol=1e-5
    )


def test_the_weights_of_recurrences_start_where_their_papers_put_them(tiny_cfg):
    bias = made(tiny_cfg, "lstm")[1]["params"]["layer_00"]["input"]["bias"].reshape(4, -1)
    np.testing.assert_array_equal(
        bias.T, np.tile([0, 1, 0, 0], (bias.shape[1], 1))
    )  # gates i, f, g, o
    layer = made(tiny_cfg, "ssm")[1]["params"]["layer_00"]
    np.testing.assert_allclose(
        np.exp(layer["log_a"]), np.arange(1, 5)[:, None] * np.ones((1, 64)), rtol=1e-6
    )
    dt = np.log1p(np.exp(np.asarray(layer["dt"]["bias"])))
    assert 9e-4 < dt.min() < 3e-3 and 3e-2 < dt.max() < 0.11


def test_the_lstm_has_the_gradient_of_its_recurrence():
    rng, T, D = np.random.default_rng(1), 9, 6
    kernel = jnp.asarray(rng.standard_normal((D, 4 * D)), jnp.float32)
    pre, v = (jnp.asarray(rng.standard_normal((T, 2, n)), jnp.float32) for n in (4 * D, D))
    keep = jnp.asarray(rng.random((T, 2)) < 0.7)
    got, want = (jax.grad(lambda k, p, f=f: (f(k, p, keep) * v).sum(), argnums=(0, 1))(kernel, pre)
                 for f in (lstm.recur, lstm._run))  # fmt: skip
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


def test_fnet_mixes_by_the_real_part_of_the_fourier_transform():
    for n, D in ((12, 8), (9, 7), (5, 2)):
        x = np.random.default_rng(n).standard_normal((2, n, D)).astype(np.float32)
        np.testing.assert_allclose(fnet.mix(x), np.fft.fft2(x, norm="ortho").real, atol=1e-5)


@pytest.mark.parametrize("taps", [2, 3, 4])
def test_the_dilations_of_a_cnn_let_a_token_see_everything_before_it(tiny_cfg, taps):
    """As many tokens as the dilations promise, and with a layer less not all."""
    depth = cnn.cycle(taps, L)
    for layers in (depth, depth - 1):
        model, variables = made(tiny_cfg, "cnn", **{"net.depth": layers, "net.kernel": taps})
        run = jax.jit(lambda ids, m=model, v=variables: hidden(m, v, batch_of(ids)))
        moved = (
            np.abs(run(IDS) - run(np.where(np.arange(L) == 0, (IDS + 7) % V, IDS))).max((0, 2)) > 0
        )
        assert moved.sum() == min(L, 1 + (taps - 1) * (2**layers - 1))
        assert moved.all() == (layers == depth)


def test_tokens_that_a_mixture_of_depths_does_not_keep_skip_the_block():
    route = RouteCfg(mode="topk", k=5, kv="routed")
    layer = mod.RoutedLayer(
        NetCfg(name="mod", causal=False, width=16, heads=2, ffn_width=32, route=route), L
    )
    x, order = jax.random.normal(jax.random.key(0), (B, L, 16)), jnp.zeros((1, L), jnp.int32)
    args = (
        0.0,
        1.0,
        0,
        build.neutral_knobs(),
        jnp.arange(L)[None],
        order,
        jnp.arange(B),
        None,
        None,
    )
    params = jax.jit(lambda: layer.init(jax.random.key(1), x, *args))()
    run = jax.jit(lambda x: layer.apply(params, x, *args))
    y, found = run(x)
    moved = np.abs(y - x).max(-1) > 0
    assert (moved.sum(1) == 5).all()
    kept = (
        np.where(moved, found["score"], np.inf).min(1),
        np.where(moved, -np.inf, found["score"]).max(1),
    )
    assert (kept[0] > kept[1]).all()
    other = run(jnp.where(moved[..., None], x, x + 1e-4))[0]  # the rest are no keys either
    np.testing.assert_allclose(other[moved], y[moved], rtol=1e-5, atol=1e-6)


def test_a_mixture_of_depths_pays_for_what_it_keeps(tiny_cfg):
    """Everything kept is the whole model; nothing kept saves the routed blocks but for their routers."""
    net = {"net.depth": 5, "net.route": {"dispatch": False, "kv": "routed"}}
    model, variables = made(tiny_cfg, "mod", **net)
    run = jax.jit(lambda tau: model.apply(variables | {"routing": {"tau": jnp.full(2, tau), "spread": jnp.ones(2)}},
                                          batch_of(IDS), build.neutral_knobs())[1])  # fmt: skip
    cost, dense = model.cost.model, model.dense.model_flops
    routed = sum(cost[f"layer_{i:02d}/{part}"] for i in (1, 3) for part in ("attention", "ffn"))
    for tau, want in ((-1e6, sum(cost.values())), (1e6, sum(cost.values()) - routed)):
        aux = run(tau)
        np.testing.assert_allclose(aux.hard_B, np.full(B, want / dense, np.float32), rtol=1e-5)
        np.testing.assert_allclose(aux.expected_B, aux.hard_B, rtol=1e-5)
    assert (run(0.0).hard_B < run(-1e6).hard_B).all() and (run(0.0).hard_B > run(1e6).hard_B).all()


@pytest.mark.parametrize("name", ALL)
def test_features_have_the_dtype_of_the_net_and_weights_are_float32(tiny_cfg, name):
    model, variables = made(tiny_cfg, name, name in LANGUAGE, **{"net.dtype": "bfloat16"})
    out = jax.eval_shape(lambda: model.apply(variables, batch_of(IDS), build.neutral_knobs())[0])
    assert out.h.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}


def test_a_window_bounds_how_far_a_token_sees(tiny_cfg):
    """One layer: the token sees window − 1 others; as an encoder, half of them on each side."""
    for causal, reach in ((True, (6, 0)), (False, (3, 3))):
        model, variables = made(tiny_cfg, "window", causal, **{"net.depth": 1})
        assert window.reach(model.net) == reach
        run = jax.jit(lambda ids, m=model, v=variables: hidden(m, v, batch_of(ids)))
        moved = (
            np.abs(run(IDS) - run(np.where(np.arange(L) == 20, (IDS + 7) % V, IDS))).max((0, 2)) > 0
        )
        assert moved.nonzero()[0].tolist() == list(range(20 - reach[1], 20 + reach[0] + 1))
