"""Baselines: each computes what its paper says, sees no padding, and can learn."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cerebra_jax.checks import UNROUTED
from cerebra_jax.models import build
from cerebra_jax.models.baselines import lstm, ssm, window
from cerebra_jax.ops.xent import chunked_xent

V, B, L = 30, 3, 40
IDS = np.random.RandomState(0).randint(0, V, (B, L)).astype(np.int32)
MASK = np.arange(L)[None] < np.array([[L], [11], [L - 7]])
LANGUAGE = ("lstm", "ssm", "window")
ENCODERS = ("lstm", "ssm", "window")


def batch_of(ids, mask=None):
    batch = {"inputs_BxL": ids, "ex_B": jnp.arange(len(ids))}
    return batch if mask is None else batch | {"mask_BxL": mask}


def made(tiny_cfg, name, causal=True, **net):
    """(model, parameters) of a tiny baseline; an encoder has a pooled head of 3 outputs, which no text task accepts."""
    cfg = tiny_cfg({"task.seq_len": L, "net.name": name, "net.window": 7, "net.ssm_state": 4} | net)
    encoder = {} if causal else {"causal": False, "outputs": 3}
    cfg = dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, **encoder))
    model = build.build(cfg, V)
    return model, jax.jit(lambda: model.init(jax.random.key(0), batch_of(IDS)))()


def hidden(model, variables, batch):
    """What the last LayerNorm gives, (B, L, D), before any pooling."""
    tokens = model.module.clone(net=dataclasses.replace(model.net, outputs=0))
    params = {k: v for k, v in variables["params"].items() if k != "head"}
    return tokens.apply({"params": params}, batch, build.neutral_knobs(), variables["routing"])[0].h


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_sees_both_sides_and_no_padding(tiny_cfg, name):
    model, variables = made(tiny_cfg, name, causal=False)
    run = jax.jit(lambda ids, mask=None: hidden(model, variables, batch_of(ids, mask)))
    h, other = run(IDS, MASK), run(np.where(MASK, IDS, (IDS + 7) % V), MASK)
    assert np.isfinite(h).all()
    np.testing.assert_array_equal(np.asarray(h)[MASK], np.asarray(other)[MASK])
    middle = np.arange(L)[None] == L // 2
    moved = np.abs(run(IDS) - run(np.where(middle, (IDS + 7) % V, IDS))).max(-1)
    assert (moved[:, L // 2 - 1] > 0).all() and (moved[:, L // 2 + 1] > 0).all()
    pooled = jax.jit(lambda ids: model.apply(variables, batch_of(ids, MASK), build.neutral_knobs())[0])
    out, padded = pooled(IDS), pooled(np.where(MASK, IDS, (IDS + 7) % V))
    assert out.h.shape == (B, 1, 32) and out.head_VxD.shape == (3, 32)
    np.testing.assert_array_equal(out.h, padded.h)


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
    np.testing.assert_allclose(ssm.selective_scan(dt, u, b, c, a), np.stack(want, 1), rtol=1e-4, atol=1e-5)


def test_the_states_of_an_ssm_start_where_mamba_puts_them(tiny_cfg):
    layer = made(tiny_cfg, "ssm")[1]["params"]["layer_00"]
    np.testing.assert_allclose(np.exp(layer["log_a"]), np.arange(1, 5)[:, None] * np.ones((1, 64)), rtol=1e-6)
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


def test_a_window_bounds_how_far_a_token_sees(tiny_cfg):
    """One layer: the token sees window − 1 others; as an encoder, half of them on each side."""
    for causal, reach in ((True, (6, 0)), (False, (3, 3))):
        model, variables = made(tiny_cfg, "window", causal, **{"net.depth": 1})
        assert window.reach(model.net) == reach
        run = jax.jit(lambda ids, m=model, v=variables: hidden(m, v, batch_of(ids)))
        moved = np.abs(run(IDS) - run(np.where(np.arange(L) == 20, (IDS + 7) % V, IDS))).max((0, 2)) > 0
        assert moved.nonzero()[0].tolist() == list(range(20 - reach[1], 20 + reach[0] + 1))
