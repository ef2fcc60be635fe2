"""The price of a layer as a formula of its rows and keys, against the count of its program."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebra_jax.config import ObjectiveCfg
from cerebra_jax.cost import count, price, units
from cerebra_jax.cost.units import Op
from cerebra_jax.kernels import attention as att
from cerebra_jax.layers.attention import Attention
from cerebra_jax.layers.rows import Rows


def S(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def attention(n, m):
    """Operations of the attention layer, D = 64, of n queries and m keys."""
    layer = Attention(64, 4, 16, kernel="full")

    def rows(x, index):
        return Rows(x, index, index, 1 << 20, ((0, x.shape[1]),))

    def make(x, index, memory, places):
        key = jax.random.key(0)
        return layer.init(key, rows(x, index), rows(memory, places))["params"]

    def run(params, x, index, memory, places):
        return layer.apply({"params": params}, rows(x, index), rows(memory, places))

    ints = functools.partial(S, dtype=jnp.int32)
    args = S(1, n, 64), ints(1, n), S(1, m, 64), ints(1, m)
    return count.operations(run, jax.eval_shape(make, *args), *args)


def linear(n, m):
    layer = nn.Dense(24)
    params = jax.eval_shape(layer.init, jax.random.key(0), S(n, 16))
    return count.operations(layer.apply, params, S(n, 16))


def scores(n, m):
    def softmax(_, q, k):
        return jax.nn.softmax(jnp.einsum("bqhc,bkhc->bhqk", q, k))

    return count.operations(softmax, {}, S(1, n, 2, 8), S(1, m, 2, 8))


def kernel(n, m):
    layout = (att.Segment(0, n, 0, m),)

    def attend(_, q, k, v, qrank, krank):
        blocks = att.Blocks(layout, "full")
        return att.attend_blocks(att.Queries(q, qrank), att.Keys(k, v, krank), blocks)

    ints = functools.partial(S, dtype=jnp.int32)
    memory = S(1, 2, m, 8)
    return count.operations(attend, {}, S(1, 2, n, 8), memory, memory, ints(1, n), ints(1, m))


def windows(n, m):
    """Queries look at windows of 4 keys, each made into one."""

    def layer(w, q, k):
        memory = k.reshape(-1, 4 * 3) @ w
        return q @ memory.T

    return count.operations(layer, S(12, 3), S(n, 3), S(m, 3))


LAYERS = {
    "linear": (linear, (1, 1)),
    "scores": (scores, (1, 1)),
    "kernel": (kernel, (1, 1)),
    "attention": (attention, (1, 1)),
    "windows": (windows, (1, 4)),
}
PRICES = functools.cache(lambda name: price.fit(*LAYERS[name]))


def sums(ops):
    return tuple(map(sum, zip(Op(), *ops, strict=True)))


def test_a_linear_layer_is_a_price_a_row_and_its_weights():
    found = PRICES("linear")
    assert found.fixed == (Op(weights=4 * 16 * 24),)
    assert found.row == (Op(2 * 16 * 24, 4 * (16 + 24)),)
    assert found.key == found.pair == (Op(),)
    assert found.at(7, 0) == (Op(7 * 768, 7 * 160, 1536),)


def test_attention_has_the_prices_that_its_formula_says():
    """D = 64: 4 D² FLOPs a query (in and out) and a key (k and v), 4 D a pair; no more than that.

    Bytes: 3 numbers of float32 of a score per head, and what is read of its exponential.
    """
    found = PRICES("attention")
    assert [sums(ops)[0] for ops in found] == [0, 16_384, 16_384, 256]
    assert [sums(ops)[1] for ops in found] == [0, 1_824, 1_536, 64]
    assert [sums(ops)[2] for ops in found] == [4 * 4 * 64 * 64, 0, 0, 0]
    assert units.FLOPS.price(found.at(256, 256)) == 25_165_824
    half = found.at(256, 256, pairs=256 * 257 // 2)
    assert units.FLOPS.price(half) == 256 * 2 * 16_384 + 256 * 256 * 257 // 2


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=6, deadline=None)
@given(n=st.integers(2, 60), m=st.integers(2, 60))
def test_the_formula_is_the_count_of_the_program_at_every_size(name, n, m):
    layer, (s, t) = LAYERS[name]
    want = tuple(one.op for one in layer(n * s, m * t) if one.op != Op())
    assert PRICES(name).at(n * s, m * t) == want
    assert all(type(amount) is int for op in PRICES(name).at(n * s, m * t) for amount in op)


def test_seconds_of_a_row_are_the_dearer_of_its_work_and_traffic_operation_by_operation():
    unit = units.unit(ObjectiveCfg(unit="seconds", device="1e3/1e2"), "float32", examples=2)
    nothing = (Op(), Op())
    found = price.Price((Op(weights=600), Op()), (Op(1000, 50), Op(0, 10)), nothing, nothing)
    assert unit.marginal(found.row) == pytest.approx(max(1.0, 0.5) + 0.1)
    assert unit.price(found.at(2, 0)) == pytest.approx(max(2.0, 1.0 + 3.0) + 0.2)


def test_expected_numbers_of_rows_have_the_expected_price():
    found = PRICES("attention")
    few, many = (units.FLOPS.price(found.at(n, n)) for n in (10, 90))
    assert units.FLOPS.price(found.at(50.0, 50.0, pairs=(10**2 + 90**2) / 2)) == (few + many) / 2


def test_a_group_of_keys_shares_a_price():
    found = PRICES("windows")
    assert found.key[0].flops == 2 * 12 * 3 // 4
    assert found.pair[1].flops == 2 * 3 / 4
    assert found.at(5, 8)[1].flops == 2 * 5 * 2 * 3


def test_prices_add_up():
    both = PRICES("linear") + PRICES("scores")
    assert both.at(3, 5) == PRICES("linear").at(3, 5) + PRICES("scores").at(3, 5)
    assert (both + price.NOTHING) == both


def square(n, m):
    return count.operations(lambda _, x: x @ x.T, {}, S(n, 8))


def mixed(n, m):
    return count.operations(lambda _, x: jnp.fft.fft(x, axis=0), {}, S(n, 8, dtype=jnp.complex64))


def odd(n, m):
    return count.operations(lambda _, x: x @ x.T if n % 2 else x, {}, S(n, 8))


def padded(n, m):
    """Pads the rows to chunks of 64."""
    rows = -(-n // 64) * 64
    return count.operations(lambda w, x: jnp.pad(x, ((0, rows - n), (0, 0))) @ w, S(8, 8), S(n, 8))


def test_a_padded_layer_needs_its_chunk_as_step():
    with pytest.raises(price.NotBilinear, match="step"):
        price.fit(padded)
    assert price.fit(padded, (64, 1)).row == (Op(2 * 8 * 8, 4 * (8 + 8)),)


REFUSED = [
    (square, "not fixed .* at 67 x 71 .*instead of"),
    (mixed, "not fixed"),
    (odd, "other operations at other sizes: 0 at 2 x 2, 1 at 3 x 2"),
]


@pytest.mark.parametrize("layer, message", REFUSED)
def test_what_is_not_of_this_form_is_refused(layer, message):
    with pytest.raises(price.NotBilinear, match=message):
        price.fit(layer)
