"""Gated linear attention: its chunks are the plain recurrence, and so is a token at a time."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import trees
from cerebra_jax.layers import gla, prunable
from cerebra_jax.layers.cache import Place
from cerebra_jax.layers.rows import Rows, ranks, tokens

B, H, C, D = 2, 2, 3, 6
LENGTHS = (1, 15, 16, 17, 40)  # whole chunks and others


def recurrence(q, k, v, log_gate):
    """Returns o_t = S_tᵀ q_t, S_t = diag(gate_t) S_{t−1} + k_t v_tᵀ, token by token in float64."""
    L = q.shape[2]
    state = np.zeros((B, H, C, C))
    outs = []
    for t in range(L):
        gate = np.exp(log_gate[:, :, t, :, None])
        state = gate * state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outs.append(np.einsum("bhcv,bhc->bhv", state, q[:, :, t]))
    return np.stack(outs, axis=2)


def drawn(L: int, lowest: float = -1.0):
    """Returns queries, keys, values and logarithms of gates between `lowest` and 0, in float64."""
    rng = np.random.RandomState(L)
    q, k, v = rng.standard_normal((3, B, H, L, C))
    return q, k, v, lowest * rng.random((B, H, L, C))


@pytest.mark.parametrize("L", LENGTHS)
def test_the_chunks_are_the_recurrence(L):
    """From gates that forget nothing to those that forget most, at lengths around a chunk."""
    chunked = jax.jit(gla.chunked_scan)
    for lowest in (0.0, -0.1, gla.LOWEST):
        inputs = drawn(L, lowest)
        if lowest == gla.LOWEST:
            inputs[3][:, :, ::2] = lowest  # every second gate forgets as much as it can
        want = recurrence(*inputs)
        got = chunked(*(jnp.float32(x) for x in inputs))
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * np.abs(want).max())


def test_the_gradients_of_the_chunks_are_those_of_the_recurrence():
    """Along random directions, against central differences of the recurrence in float64."""
    inputs = drawn(21)
    rng = np.random.RandomState(0)
    weight = rng.standard_normal((B, H, 21, C))

    def loss(*inputs):
        return (gla.chunked_scan(*inputs) * jnp.float32(weight)).sum()

    slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*(jnp.float32(x) for x in inputs))
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


LAYER = gla.GatedLinearAttention(D, H, C)


@pytest.fixture(scope="module")
def params():
    """Returns parameters large enough that gates differ from 1."""
    x = jnp.zeros((1, 4, D))
    rows = tokens(x, ranks(4, True), True)
    shapes = jax.eval_shape(LAYER.init, jax.random.key(0), rows, rows)["params"]
    rng = np.random.RandomState(0)
    made = jax.tree.map(lambda s: jnp.float32(0.5 * rng.standard_normal(s.shape)), shapes)
    made["gate"]["bias"] = jnp.float32(-8 * rng.random(H * C))
    return {"params": made}


@jax.jit
def run(params, x, mask=None, backwards=None):
    rows = tokens(jnp.asarray(x), ranks(x.shape[1], True), True, mask)
    return LAYER.apply(params, rows, rows, backwards)


def x_of(L: int, seed: int = 0):
    return np.random.RandomState(seed).standard_normal((B, L, D)).astype(np.float32)


def test_the_layer_is_its_formula(params):
    """W_out(norm(GLA) ⊙ silu(W_r x)), written once more in float64."""
    x = x_of(19).astype(np.float64)
    own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])

    def heads(y):
        return y.reshape(B, -1, H, C).swapaxes(1, 2)

    k, v = np.split(x @ own["kv"]["kernel"], 2, axis=-1)
    gate = 1 / (1 + np.exp(-(x @ own["gate"]["kernel"] + own["gate"]["bias"])))
    log_gate = np.log(gate ** (1 / gla.SOFTNESS))
    q = x @ own["q"]["kernel"] / C**0.5
    o = recurrence(heads(q), heads(k), heads(v), heads(log_gate))
    o /= np.sqrt((o**2).mean(-1, keepdims=True) + 1e-5)
    up = x @ own["up"]["kernel"]
    gated = o.swapaxes(1, 2).reshape(B, 19, H * C) * up / (1 + np.exp(-up))
    np.testing.assert_allclose(run(params, x_of(19)), gated @ own["out"]["kernel"], atol=2e-5)


def test_padding_changes_no_state(params):
    """Wherever it stands, and whatever it holds: real tokens are read as if it were not there."""
    x, mask = x_of(40), np.random.RandomState(3).random((B, 40)) < 0.6
    got = np.asarray(run(params, x, jnp.asarray(mask)))
    loud = np.where(mask[..., None], x, 1e3 * x_of(40, 1))
    np.testing.assert_array_equal(got[mask], np.asarray(run(params, loud, jnp.asarray(mask)))[mask])
    for b in range(B):
        alone = np.repeat(x[b : b + 1, mask[b]], B, axis=0)
        np.testing.assert_allclose(got[b, mask[b]], run(params, alone)[0], rtol=1e-4, atol=1e-5)


def test_backwards_is_the_mirror_image(params):
    x, mask = x_of(20), np.arange(20)[None] < np.array([[20], [13]])
    got = run(params, x, jnp.asarray(mask), jnp.asarray(True))
    want = run(params, x[:, ::-1], jnp.asarray(mask[:, ::-1]))[:, ::-1]
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7])
def test_decoding_is_the_call_over_the_tokens_that_have_a_slot(params, chunk):
    """Tokens without a slot leave the state alone; the others see those before them."""
    L = 35
    x, keep = x_of(L), np.random.RandomState(4).random((B, L)) < 0.5
    want = np.asarray(run(params, x, jnp.asarray(keep)))

    @jax.jit
    def step(x, pos, keep, state):
        rows = Rows(x, pos, pos, L, (), jnp.ones(pos.shape, bool))
        place = Place(jnp.where(keep, pos, L), L)
        return LAYER.apply(params, rows, state, place, method="decode")

    state, outs = LAYER.init_cache(B, L, L), []
    for a in range(0, L, chunk):
        pos = jnp.broadcast_to(jnp.arange(a, a + chunk)[None], (B, chunk))
        now = slice(a, a + chunk)
        y, state = step(x[:, now], pos, keep[:, now], state)
        outs.append(np.asarray(y))
    got = np.concatenate(outs, axis=1)
    np.testing.assert_allclose(got[keep], want[keep], rtol=1e-4, atol=1e-5)


def test_a_head_that_is_removed_takes_its_rows_and_columns_with_it(params):
    """`prunable` names what makes and what reads a head: a layer of fewer heads is what is left."""
    groups = LAYER.prunable("at", 0)
    assert [group.n for group in groups] == [H]
    named = {f"/at/{key}": leaf for key, leaf in trees.named_leaves(params["params"]).items()}
    left = prunable.cut(named, groups, {groups[0].name: [1]})
    left = flax.traverse_util.unflatten_dict({key[4:]: leaf for key, leaf in left.items()}, sep="/")
    small = gla.GatedLinearAttention(D, H - 1, C)
    rows = tokens(jnp.asarray(x_of(20)), ranks(20, True), True)
    got = small.apply({"params": left}, rows, rows)

    silent = params["params"]["out"]["kernel"].at[:C].set(0.0)
    want = run({"params": params["params"] | {"out": {"kernel": silent}}}, x_of(20))
    np.testing.assert_allclose(got, want, atol=1e-6)
