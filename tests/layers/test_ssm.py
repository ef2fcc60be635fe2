"""The selective state space layer: its scan is the plain recurrence; it skips what is masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.layers import ssm
from cerebra_jax.layers.cache import Place
from cerebra_jax.layers.rows import Rows, ranks, tokens

B, D, S, TAPS = 2, 4, 3, 3
E = ssm.EXPAND * D
LENGTHS = (1, 15, 16, 17, 40)  # whole chunks and others


def recurrence(dt, u, b, c, a):
    """Returns y_t = Σ_s c_ts h_ts, h_t = exp(Δ_t A) h_{t−1} + Δ_t u_t b_t, in float64."""
    h = np.zeros((B, a.shape[0], u.shape[2]))
    outs = []
    for t in range(u.shape[1]):
        step = dt[:, t, None]
        h = np.exp(step * a) * h + step * u[:, t, None] * b[:, t, :, None]
        outs.append((c[:, t, :, None] * h).sum(1))
    return np.stack(outs, axis=1)


def drawn(L: int):
    """Returns step sizes, inputs, what selects and the matrix A, in float64."""
    rng = np.random.RandomState(L)
    dt, u = rng.random((B, L, E)), rng.standard_normal((B, L, E))
    b, c = rng.standard_normal((2, B, L, S))
    return dt, u, b, c, -3 * rng.random((S, E))


@pytest.mark.parametrize("L", LENGTHS)
def test_the_scan_is_the_recurrence(L):
    inputs = drawn(L)
    want = recurrence(*inputs)
    got = jax.jit(ssm.selective_scan)(*(jnp.float32(x) for x in inputs))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_the_gradients_of_the_scan_are_those_of_the_recurrence():
    """Along random directions, against central differences of the recurrence in float64."""
    inputs = drawn(21)
    rng = np.random.RandomState(0)
    weight = rng.standard_normal((B, 21, E))

    def loss(*inputs):
        return (ssm.selective_scan(*inputs) * jnp.float32(weight)).sum()

    slopes = jax.jit(jax.grad(loss, argnums=range(5)))(*(jnp.float32(x) for x in inputs))
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


LAYER = ssm.SelectiveStateSpace(D, S, TAPS)


@pytest.fixture(scope="module")
def params():
    """Returns parameters large enough that the state matters."""
    rows = tokens(jnp.zeros((1, 4, D)), ranks(4, True), True)
    shapes = jax.eval_shape(LAYER.init, jax.random.key(0), rows, rows)["params"]
    rng = np.random.RandomState(0)
    return {"params": jax.tree.map(lambda s: jnp.float32(rng.standard_normal(s.shape)), shapes)}


@jax.jit
def run(params, x, mask=None, backwards=None):
    rows = tokens(jnp.asarray(x), ranks(x.shape[1], True), True, mask)
    return LAYER.apply(params, rows, rows, backwards)


def x_of(L: int, seed: int = 0):
    return np.random.RandomState(seed).standard_normal((B, L, D)).astype(np.float32)


def test_padding_changes_no_state(params):
    """Wherever it stands, and whatever it holds: real tokens are read as if it were not there.

    The short convolution skips it too: its taps are the real tokens before a token.
    """
    x, mask = x_of(40), np.random.RandomState(3).random((B, 40)) < 0.6
    got = np.asarray(run(params, x, jnp.asarray(mask)))
    loud = np.where(mask[..., None], x, 1e3 * x_of(40, 1))
    np.testing.assert_array_equal(got[mask], np.asarray(run(params, loud, jnp.asarray(mask)))[mask])
    for b in range(B):
        alone = np.repeat(x[b : b + 1, mask[b]], B, axis=0)
        want = run(params, alone)[0]
        np.testing.assert_allclose(got[b, mask[b]], want, rtol=1e-4, atol=1e-4)


def test_backwards_is_the_mirror_image(params):
    x, mask = x_of(20), np.arange(20)[None] < np.array([[20], [13]])
    got = run(params, x, jnp.asarray(mask), jnp.asarray(True))
    want = run(params, x[:, ::-1], jnp.asarray(mask[:, ::-1]))[:, ::-1]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7])
def test_decoding_is_the_call_over_the_tokens_that_have_a_slot(params, chunk):
    """Tokens without a slot leave the memory alone; the others see those before them."""
    L = 35
    x, keep = x_of(L), np.random.RandomState(4).random((B, L)) < 0.5
    want = np.asarray(run(params, x, jnp.asarray(keep)))

    @jax.jit
    def step(x, pos, keep, memory):
        rows = Rows(x, pos, pos, L, (), jnp.ones(pos.shape, bool))
        place = Place(jnp.where(keep, pos, L), L)
        return LAYER.apply(params, rows, memory, place, method="decode")

    memory, outs = LAYER.init_cache(B, L, L), []
    for a in range(0, L, chunk):
        pos = jnp.broadcast_to(jnp.arange(a, a + chunk)[None], (B, chunk))
        now = slice(a, a + chunk)
        y, memory = step(x[:, now], pos, keep[:, now], memory)
        outs.append(np.asarray(y))
    got = np.concatenate(outs, axis=1)
    np.testing.assert_allclose(got[keep], want[keep], rtol=1e-4, atol=1e-4)
