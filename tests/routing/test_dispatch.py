"""Dispatch: order, capacity, overflow, and gathers that are each other's transpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebra_jax.cost import count
from cerebra_jax.routing import dispatch


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([7, 64, 1024, 1500]),
    st.floats(0.05, 1.0),
    st.floats(0.0, 1.0),
)
def test_slots_hold_the_earliest_kept_tokens_of_each_segment_in_order(seed, L, share, rate):
    keep = np.random.RandomState(seed).random((2, L)) < rate
    lay = dispatch.layout(L, share)
    slots = dispatch.assign(jnp.asarray(keep), lay)
    idx, slot, kept = (np.asarray(a) for a in (slots.idx_BxK, slots.slot_BxL, slots.kept_BxL))
    for b in range(2):
        for (t0, t1), (c0, c1) in zip(lay.tokens, lay.slots, strict=True):
            want = [t for t in range(t0, t1) if keep[b, t]]
            fit, over = want[: c1 - c0], want[c1 - c0 :]
            assert idx[b, c0 : c0 + len(fit)].tolist() == fit
            assert (idx[b, c0 + len(fit) : c1] == L).all()
            assert kept[b, fit].all() and not kept[b, over].any()
            assert slot[b, fit].tolist() == list(range(c0, c0 + len(fit)))
        assert not kept[b][~keep[b]].any()


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([7, 64, 1024, 1500]),
    st.floats(0.05, 1.0),
    st.floats(0.0, 1.0),
)
def test_tokens_that_come_in_chunks_get_the_same_slots(seed, L, share, rate):
    rng = np.random.RandomState(seed)
    keep, lay, n = rng.random((2, L)) < rate, dispatch.layout(L, share), -(-L // 4)
    used, at_B = jnp.zeros((2, len(lay.tokens)), jnp.int32), np.zeros(2, int)
    slot = np.full((2, L), -1)
    while (at_B < L).any():
        take = at_B[:, None] + np.arange(n)[None]
        real = (np.arange(n)[None] < rng.randint(1, n + 1, (2, 1))) & (take < L)
        # a token that is not there wants one too
        wanted = np.where(real, keep[[[0], [1]], np.minimum(take, L - 1)], True)
        pos = jnp.asarray(np.where(real, take, L))
        got, used = dispatch.place(jnp.asarray(wanted), pos, used, lay)
        assert (np.asarray(got)[~real] == lay.K).all()
        b, i = np.nonzero(real)
        slot[b, take[b, i]] = np.asarray(got)[b, i]
        at_B += real.sum(1)
    np.testing.assert_array_equal(slot, dispatch.assign(jnp.asarray(keep), lay).slot_BxL)


@pytest.mark.parametrize(
    ("L", "share"), [(64, 0.25), (1024, 0.3), (1500, 1.0), (10, 0.01), (4096, 1 / 128)]
)
def test_layout_tiles_the_sequence_and_has_room_for_the_share(L, share):
    lay = dispatch.layout(L, share)
    assert [a for a, _ in lay.tokens] + [L] == [0] + [b for _, b in lay.tokens]
    assert [a for a, _ in lay.slots] + [lay.K] == [0] + [b for _, b in lay.slots]
    assert share * L <= lay.K <= share * L + len(lay.tokens)
    assert len(lay.slots) == 1 or min(c1 - c0 for c0, c1 in lay.slots) >= dispatch.FEWEST


@pytest.mark.parametrize("lowering", ["gather", "onehot"])
def test_gather_and_scatter_are_transposes_and_undo_each_other(lowering):
    rng = np.random.RandomState(0)
    keep = jnp.asarray(rng.random((3, 40)) < 0.4)
    slots = dispatch.assign(keep, dispatch.layout(40, 0.5), lowering)
    K = slots.idx_BxK.shape[1]
    x, y = (rng.standard_normal((3, n, 5)).astype(np.float32) for n in (40, K))
    moved, back = dispatch.gather(x, slots), dispatch.scatter(y, slots)
    np.testing.assert_allclose((moved * y).sum(), (x * back).sum(), rtol=1e-5)  # <Gx, y> = <x, Sy>
    np.testing.assert_array_equal(
        dispatch.scatter(moved, slots), np.where(slots.kept_BxL[..., None], x, 0)
    )
    slope_x = jax.grad(lambda x: (dispatch.gather(x, slots) * y).sum())(x)
    slope_y = jax.grad(lambda y: (dispatch.scatter(y, slots) * x).sum())(y)
    np.testing.assert_array_equal(slope_x, back)
    np.testing.assert_array_equal(slope_y, moved)


@pytest.mark.parametrize("L", [40, 1100])
def test_onehot_slots_are_the_same_slots_and_their_moves_are_priced(L):
    rng = np.random.RandomState(0)
    keep, lay = jnp.asarray(rng.random((3, L)) < 0.4), dispatch.layout(L, 0.3)
    x, order = rng.standard_normal((3, L, 5)).astype(np.float32), rng.randint(0, 9, (1, L))
    slots, plain = dispatch.assign(keep, lay, "onehot"), dispatch.assign(keep, lay)
    np.testing.assert_array_equal(slots.idx_BxK, plain.idx_BxK)
    np.testing.assert_array_equal(slots.slot_BxL, plain.slot_BxL)
    np.testing.assert_array_equal(dispatch.gather(x, slots), dispatch.gather(x, plain))
    np.testing.assert_array_equal(
        dispatch.scatter(x[:, : lay.K], slots), dispatch.scatter(x[:, : lay.K], plain)
    )
    np.testing.assert_array_equal(dispatch.read(order, slots, 77), dispatch.read(order, plain, 77))
    moved = count.count(lambda x: dispatch.scatter(dispatch.gather(x, slots), slots), x)
    products = sum(
        (b - a) * (c1 - c0) for (a, b), (c0, c1) in zip(lay.tokens, lay.slots, strict=True)
    )
    assert moved.flops == 3 * 2 * (2 * products * 5)


def test_no_float_scatter_in_the_gradient():
    slots = dispatch.assign(jnp.ones((2, 32), bool), dispatch.layout(32, 0.5))
    grad = jax.grad(
        lambda x: (dispatch.scatter(jnp.tanh(dispatch.gather(x, slots)), slots) ** 2).sum()
    )
    text = str(jax.make_jaxpr(grad)(jnp.ones((2, 32, 4))))
    assert "scatter-add" not in text and "scatter_add" not in text


@pytest.mark.parametrize("light", [True, False])
def test_merging_slots_is_a_scatter_and_a_mix_with_the_same_gradients(light):
    rng, L, D = np.random.RandomState(0), 1500, 8
    wanted = rng.random((2, L)) < np.array([[0.4], [0.1]])  # one overflows, one leaves slots empty
    slots = dispatch.assign(jnp.asarray(wanted), dispatch.layout(L, 0.25))
    kept_BxLx1 = slots.kept_BxL[..., None]
    assert (slots.idx_BxK == L).any(1).tolist() == [False, True]
    assert (wanted & ~np.asarray(slots.kept_BxL)).any(1).tolist() == [True, False]
    gate = jnp.asarray(rng.rand(2, L, 1), jnp.float32)
    y, rest, do = (
        jnp.asarray(rng.randn(2, n, D), jnp.float32) for n in (slots.idx_BxK.shape[1], L, L)
    )

    def merged(gate, y, rest):
        return dispatch.merge(gate * kept_BxLx1, y, rest if light else None, slots)

    def plain(gate, y, rest):
        g = gate * kept_BxLx1
        return g * dispatch.scatter(y, slots) + ((1 - g) * rest if light else 0.0)

    (out, back), (want, its) = (jax.vjp(f, gate, y, rest) for f in (merged, plain))
    np.testing.assert_allclose(out, want, atol=1e-6)
    for got, g in zip(back(do), its(do), strict=True):
        assert (np.abs(g).max() > 0) == (got is not None and np.abs(got).max() > 0)
        np.testing.assert_allclose(got, g, atol=1e-5)
