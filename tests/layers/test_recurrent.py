"""Layers with a state: their scans are plain recurrences, and so is a token at a time."""

from __future__ import annotations

import types

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import trees
from cerebra_jax.layers import gla, prunable, ssm
from cerebra_jax.layers.cache import Place
from cerebra_jax.layers.rows import Rows, ranks, tokens

B, D = 2, 6
H, C = 2, 3  # heads of gla and their width
S, E = 3, ssm.EXPAND * D  # state and features of ssm
LENGTHS = (1, 15, 16, 17, 40)  # whole chunks and others


# the recurrences, token by token in float64


def gla_recurrence(q, k, v, log_gate):
    """Returns o_t = S_tᵀ q_t, S_t = diag(gate_t) S_{t−1} + k_t v_tᵀ."""
    state = np.zeros((B, H, C, C))
    outs = []
    for t in range(q.shape[2]):
        gate = np.exp(log_gate[:, :, t, :, None])
        state = gate * state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outs.append(np.einsum("bhcv,bhc->bhv", state, q[:, :, t]))
    return np.stack(outs, axis=2)


def gla_inputs(L: int, lowest: float = -1.0):
    """Returns queries, keys, values and logarithms of gates between `lowest` and 0."""
    rng = np.random.RandomState(L)
    q, k, v = rng.standard_normal((3, B, H, L, C))
    return [q, k, v, lowest * rng.random((B, H, L, C))]


def ssm_recurrence(dt, u, b, c, a):
    """Returns y_t = Σ_s c_ts h_ts, h_t = exp(Δ_t A) h_{t−1} + Δ_t u_t b_t."""
    h = np.zeros((B, a.shape[0], u.shape[2]))
    outs = []
    for t in range(u.shape[1]):
        step = dt[:, t, None]
        h = np.exp(step * a) * h + step * u[:, t, None] * b[:, t, :, None]
        outs.append((c[:, t, :, None] * h).sum(1))
    return np.stack(outs, axis=1)


def ssm_inputs(L: int):
    """Returns step sizes, inputs, what selects and the matrix A."""
    rng = np.random.RandomState(L)
    dt, u = rng.random((B, L, E)), rng.standard_normal((B, L, E))
    b, c = rng.standard_normal((2, B, L, S))
    return [dt, u, b, c, -3 * rng.random((S, E))]


SCANS = {
    "gla": (gla.chunked_scan, gla_recurrence, gla_inputs),
    "ssm": (ssm.selective_scan, ssm_recurrence, ssm_inputs),
}


def assert_is_the_recurrence(name: str, inputs):
    scan, recurrence, _ = SCANS[name]
    want = recurrence(*inputs)
    got = jax.jit(scan)(*(jnp.float32(x) for x in inputs))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize("name", SCANS)
def test_the_scan_is_the_recurrence(name, L):
    """At lengths around a chunk."""
    assert_is_the_recurrence(name, SCANS[name][2](L))


@pytest.mark.parametrize("lowest", [0.0, -0.1, gla.LOWEST])
def test_gates_may_forget_nothing_or_all(lowest):
    inputs = gla_inputs(40, lowest)
    if lowest == gla.LOWEST:
        inputs[3][:, :, ::2] = lowest  # every second gate forgets as much as it can
    assert_is_the_recurrence("gla", inputs)


@pytest.mark.parametrize("name", SCANS)
def test_the_gradients_of_the_scan_are_those_of_the_recurrence(name):
    """Along random directions, against central differences of the recurrence in float64."""
    scan, recurrence, draw = SCANS[name]
    inputs = draw(21)
    rng = np.random.RandomState(0)
    weight = rng.standard_normal(recurrence(*inputs).shape)

    def loss(*inputs):
        return (scan(*inputs) * jnp.float32(weight)).sum()

    each = tuple(range(len(inputs)))
    slopes = jax.jit(jax.grad(loss, argnums=each))(*(jnp.float32(x) for x in inputs))
    for i, slope in enumerate(slopes):
        step = 1e-5 * rng.standard_normal(inputs[i].shape)
        ends = []
        for sign in (1, -1):
            moved = list(inputs)
            moved[i] = inputs[i] + sign * step
            ends.append((recurrence(*moved) * weight).sum())
        want = (ends[0] - ends[1]) / 2
        scale = np.linalg.norm(slope) * np.linalg.norm(step)
        assert abs((np.asarray(slope, np.float64) * step).sum() - want) < 1e-4 * scale


# the layers

LAYERS = {"gla": gla.GatedLinearAttention(D, H, C), "ssm": ssm.SelectiveStateSpace(D, S, taps=3)}


def params_of(name: str):
    """Returns parameters large enough that the state matters."""
    rows = tokens(jnp.zeros((1, 4, D)), ranks(4, True), True)
    shapes = jax.eval_shape(LAYERS[name].init, jax.random.key(0), rows, rows)["params"]
    rng = np.random.RandomState(0)
    made = jax.tree.map(lambda s: jnp.float32(0.5 * rng.standard_normal(s.shape)), shapes)
    if name == "gla":  # gates that differ from 1
        made["gate"]["bias"] = jnp.float32(-8 * rng.random(H * C))
    return {"params": made}


def functions_of(name: str):
    """Returns the layer, its parameters, and both of its functions compiled."""
    layer, params = LAYERS[name], params_of(name)

    @jax.jit
    def run(params, x, mask=None, backwards=None):
        rows = tokens(jnp.asarray(x), ranks(x.shape[1], True), True, mask)
        return layer.apply(params, rows, rows, backwards)

    def step(x, pos, keep, state, L: int):
        rows = Rows(x, pos, pos, L, (), jnp.ones(pos.shape, bool))
        place = Place(jnp.where(keep, pos, L), L)
        return layer.apply(params, rows, state, place, method="decode")

    return types.SimpleNamespace(
        layer=layer, params=params, run=run, step=jax.jit(step, static_argnames="L")
    )


@pytest.fixture(scope="module", params=LAYERS)
def made(request):
    return functions_of(request.param)


def x_of(L: int, seed: int = 0):
    return np.random.RandomState(seed).standard_normal((B, L, D)).astype(np.float32)


def test_padding_changes_no_state(made):
    """Wherever it stands, and whatever it holds: real tokens are read as if it were not there.

    A short convolution skips it too: its taps are the real tokens before a token.
    """
    x, mask = x_of(40), np.random.RandomState(3).random((B, 40)) < 0.6
    got = np.asarray(made.run(made.params, x, jnp.asarray(mask)))
    loud = np.where(mask[..., None], x, 1e3 * x_of(40, 1))
    again = np.asarray(made.run(made.params, loud, jnp.asarray(mask)))
    np.testing.assert_array_equal(got[mask], again[mask])
    for b in range(B):
        alone = np.repeat(x[b : b + 1, mask[b]], B, axis=0)
        want = made.run(made.params, alone)[0]
        np.testing.assert_allclose(got[b, mask[b]], want, rtol=1e-4, atol=2e-5)


def test_backwards_is_the_mirror_image(made):
    x, mask = x_of(20), np.arange(20)[None] < np.array([[20], [13]])
    got = made.run(made.params, x, jnp.asarray(mask), jnp.asarray(True))
    want = made.run(made.params, x[:, ::-1], jnp.asarray(mask[:, ::-1]))[:, ::-1]
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("chunk", [1, 7])
def test_decoding_is_the_call_over_the_tokens_that_have_a_slot(made, chunk):
    """Tokens without a slot leave the state alone; the others see those before them."""
    L = 35
    x, keep = x_of(L), np.random.RandomState(4).random((B, L)) < 0.5
    want = np.asarray(made.run(made.params, x, jnp.asarray(keep)))

    state, outs = made.layer.init_cache(B, L, L), []
    for a in range(0, L, chunk):
        pos = jnp.broadcast_to(jnp.arange(a, a + chunk)[None], (B, chunk))
        now = slice(a, a + chunk)
        y, state = made.step(x[:, now], pos, keep[:, now], state, L=L)
        outs.append(np.asarray(y))
    got = np.concatenate(outs, axis=1)
    np.testing.assert_allclose(got[keep], want[keep], rtol=1e-4, atol=2e-5)


# gated linear attention alone


def test_gated_linear_attention_is_its_formula():
    """W_out(norm(GLA) ⊙ silu(W_r x)), written once more in float64."""
    made = functions_of("gla")
    x = x_of(19).astype(np.float64)
    own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), made.params["params"])

    def heads(y):
        return y.reshape(B, -1, H, C).swapaxes(1, 2)

    k, v = np.split(x @ own["kv"]["kernel"], 2, axis=-1)
    gate = 1 / (1 + np.exp(-(x @ own["gate"]["kernel"] + own["gate"]["bias"])))
    log_gate = np.log(gate ** (1 / gla.SOFTNESS))
    q = x @ own["q"]["kernel"] / C**0.5
    o = gla_recurrence(heads(q), heads(k), heads(v), heads(log_gate))
    o /= np.sqrt((o**2).mean(-1, keepdims=True) + 1e-5)
    up = x @ own["up"]["kernel"]
    gated = o.swapaxes(1, 2).reshape(B, 19, H * C) * up / (1 + np.exp(-up))
    got = made.run(made.params, x_of(19))
    np.testing.assert_allclose(got, gated @ own["out"]["kernel"], atol=2e-5)


def test_a_head_that_is_removed_takes_its_rows_and_columns_with_it():
    """`prunable` names what makes and what reads a head: a layer of fewer heads is what is left."""
    made = functions_of("gla")
    params = made.params["params"]
    groups = made.layer.prunable("at", 0)
    assert [group.n for group in groups] == [H]
    named = {f"/at/{key}": leaf for key, leaf in trees.named_leaves(params).items()}
    left = prunable.cut(named, groups, {groups[0].name: [1]})
    left = flax.traverse_util.unflatten_dict({key[4:]: leaf for key, leaf in left.items()}, sep="/")
    small = gla.GatedLinearAttention(D, H - 1, C)
    rows = tokens(jnp.asarray(x_of(20)), ranks(20, True), True)
    got = small.apply({"params": left}, rows, rows)

    silent = params["out"]["kernel"].at[:C].set(0.0)
    want = made.run({"params": params | {"out": {"kernel": silent}}}, x_of(20))
    np.testing.assert_allclose(got, want, atol=1e-6)
