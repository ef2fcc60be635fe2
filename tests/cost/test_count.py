"""The counter: equal programs have equal counts, every kind of call is entered once.

What has no price is refused.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cerebra_jax.cost import count, prices, scopes, xla
from cerebra_jax.cost.units import Op


def S(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def flops(fn, *args):
    return count.count(fn, *args).flops


def cube(w_DxD, x_BxD):
    """Three applications of one layer."""
    for _ in range(3):
        x_BxD = jnp.tanh(x_BxD @ w_DxD)
    return x_BxD


CUBE = 3 * prices.matmul_flops(4, 8, 8)


# dot_general, against a count made of numpy's own einsum loop


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_einsum_counts_two_per_index_combination(data):
    letters = "abcde"
    sizes = {c: data.draw(st.integers(1, 4)) for c in letters}
    sub = st.lists(st.sampled_from(letters), min_size=1, max_size=4, unique=True)
    left, right = data.draw(sub), data.draw(sub)
    # a letter of one operand only must reach the result, or einsum sums it before the product
    keep = [
        c
        for c in letters
        if (c in left) != (c in right) or (c in left and data.draw(st.booleans()))
    ]
    spec = f"{''.join(left)},{''.join(right)}->{''.join(keep)}"
    shapes = [tuple(sizes[c] for c in operand) for operand in (left, right)]
    combinations = int(np.einsum(f"{''.join(left)},{''.join(right)}->", *map(np.ones, shapes)))
    got = count.count(lambda a, b: jnp.einsum(spec, a, b), *(S(*s) for s in shapes))
    if "dot" in got.by:
        assert got.by["dot"] == 2 * combinations
    else:  # JAX writes products without a contraction as elementwise multiplication
        assert set(keep) >= set(left) & set(right)


def test_matmul_with_batch_dimensions():
    scores = flops(lambda q, k: jnp.einsum("blhc,bmhc->bhlm", q, k), S(2, 5, 3, 8), S(2, 7, 3, 8))
    assert scores == 2 * 2 * 3 * 5 * 7 * 8


def test_no_overflow_in_int32():
    assert flops(lambda x, y: x @ y, S(32, 4096, 4096), S(32, 4096, 4096)) == 2 * 32 * 4096**3


# loops


def test_scan_equals_unrolled_equals_fori_equals_map():
    def layer(x, w):
        return jnp.tanh(x @ w)

    def scanned(w, x):
        return lax.scan(lambda c, _: (layer(c, w), None), x, None, length=3)[0]

    def stacked(w, x):
        return lax.scan(lambda c, w: (layer(c, w), None), x, jnp.stack([w] * 3))[0]

    def fori(w, x):
        return lax.fori_loop(0, 3, lambda _, c: layer(c, w), x)

    def mapped(w, x):
        return lax.map(lambda x: layer(x, w), jnp.stack([x] * 3))

    counts = [count.count(f, S(8, 8), S(4, 8)) for f in (cube, scanned, stacked, fori, mapped)]
    assert [c.flops for c in counts] == [CUBE] * 5
    assert counts[0].elementwise == counts[1].elementwise == 3 * 4 * 8


def test_nested_scan_multiplies():
    def nested(w, x):
        def four(c, _):
            return lax.scan(lambda c, _: (c @ w, None), c, None, length=4)[0], None

        return lax.scan(four, x, None, length=5)[0]

    assert flops(nested, S(8, 8), S(4, 8)) == 20 * prices.matmul_flops(4, 8, 8)


def test_gradient_of_a_scan_is_three_forwards():
    def loss(w, x):
        return jnp.sum(lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=3)[0] ** 2)

    assert flops(jax.grad(loss, argnums=(0, 1)), S(8, 8), S(4, 8)) == 3 * CUBE


def test_while_needs_a_trip_count():
    program = jax.make_jaxpr(
        lambda w, x: lax.while_loop(lambda c: jnp.sum(c) > 0, lambda c: c @ w, x)
    )(S(8, 8), S(4, 8))
    with pytest.raises(count.UnpricedOp, match="trips=N"):
        count.count_jaxpr(program)
    assert count.count_jaxpr(program, trips=7).flops == 7 * prices.matmul_flops(4, 8, 8)


def test_cond_is_its_dearest_branch_or_the_given_mean():
    program = jax.make_jaxpr(lambda p, w, x: lax.cond(p, lambda x: x @ w, lambda x: x, x))(
        S(dtype=jnp.bool_), S(8, 8), S(4, 8)
    )
    full = prices.matmul_flops(4, 8, 8)
    assert count.count_jaxpr(program).flops == full
    # the branches are (false, true)
    assert count.count_jaxpr(program, weights=[0.75, 0.25]).flops == full // 4


# calls


def test_jit_is_transparent_and_dead_code_is_free():
    assert flops(jax.jit(cube), S(8, 8), S(4, 8)) == CUBE
    both = jax.jit(lambda w, x: (cube(w, x), x @ w))
    assert flops(lambda w, x: both(w, x)[1], S(8, 8), S(4, 8)) == prices.matmul_flops(4, 8, 8)


def mlp(p, x):
    return jnp.sum(jnp.tanh(jnp.tanh(x @ p[0]) @ p[1]))


MLP = [S(16, 32), S(32, 16)], S(8, 16)


def test_gradient_of_a_two_layer_mlp():
    forward = flops(mlp, *MLP)
    assert forward == 2 * prices.matmul_flops(8, 16, 32)
    assert flops(jax.grad(mlp, argnums=(0, 1)), *MLP) == 3 * forward
    # no gradient of the input: one matmul less
    assert 2 * flops(jax.grad(mlp), *MLP) == 5 * forward


def test_remat_adds_the_forward_again():
    once = flops(jax.value_and_grad(mlp), *MLP)
    again = flops(jax.value_and_grad(jax.checkpoint(mlp)), *MLP)
    assert again - once == flops(mlp, *MLP)


def test_custom_derivatives_are_entered_once():
    @jax.custom_vjp
    def f(w, x):
        return x @ w

    f.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (r[1].T @ g, g @ r[0].T))

    @jax.custom_jvp
    def g(w, x):
        return x @ w

    g.defjvp(lambda p, t: (g(*p), t[1] @ p[0] + p[1] @ t[0]))
    one = prices.matmul_flops(4, 8, 8)
    for fn in (f, g, jax.jit(f)):
        assert flops(fn, S(8, 8), S(4, 8)) == one
        total = jax.value_and_grad(lambda w, x, fn=fn: jnp.sum(jnp.tanh(fn(w, x))), argnums=(0, 1))
        assert flops(total, S(8, 8), S(4, 8)) == 3 * one


def test_shard_map_counts_all_devices():
    from jax.sharding import Mesh
    from jax.sharding import PartitionSpec as P

    mesh = Mesh(np.array(jax.devices()[:2]), ("i",))
    split = jax.shard_map(lambda w, x: x @ w, mesh=mesh, in_specs=(P(), P("i")), out_specs=P("i"))
    assert flops(split, S(8, 8), S(4, 8)) == prices.matmul_flops(4, 8, 8)


# other operations


def test_fft_is_priced_by_its_transform_not_its_output():
    n = 1000
    for fn, size, price in (
        (jnp.fft.fft, n, prices.fft_flops(n)),
        (jnp.fft.ifft, n, prices.fft_flops(n)),
        (jnp.fft.rfft, n, prices.rfft_flops(n)),
        (lambda x: jnp.fft.irfft(x, n=n), n // 2 + 1, prices.rfft_flops(n)),
    ):
        dtype = jnp.float32 if fn is jnp.fft.rfft else jnp.complex64
        assert count.count(fn, S(3, 5, size, dtype=dtype)).by == {"fft": 15 * price}


def test_convolutions():
    def conv(x, w, **kw):
        return lax.conv_general_dilated(
            x, w, padding="SAME", dimension_numbers=("NHC", "HIO", "NHC"), **kw
        )

    dense = flops(lambda x, w: conv(x, w, window_strides=(2,)), S(3, 10, 4), S(5, 4, 6))
    assert dense == 3 * prices.conv_flops(5, 5, 4, 6)
    depthwise = flops(
        lambda x, w: conv(x, w, window_strides=(1,), feature_group_count=4), S(3, 10, 4), S(5, 1, 4)
    )
    assert depthwise == 3 * prices.conv_flops(10, 5, 4, 4, groups=4)

    def loss(x, w):
        return jnp.sum(conv(x, w, window_strides=(2,)) ** 2)

    assert flops(jax.grad(loss, argnums=(0, 1)), S(3, 10, 4), S(4, 4, 6)) == 3 * flops(
        loss, S(3, 10, 4), S(4, 4, 6)
    )


def test_moving_data_is_free_and_arithmetic_is_counted_apart():
    def move(x, i):
        return jnp.take_along_axis(jnp.concatenate([x, x]).T.reshape(4, -1), i, axis=1)

    assert count.count(move, S(6, 8), S(4, 3, dtype=jnp.int32))[:2] == (0, {})
    assert count.count(lambda x: jnp.exp(x) + x, S(4, 8)).elementwise == 2 * 32
    assert count.count(lambda x: lax.cumsum(x, axis=1), S(4, 8)).elementwise == 32
    assert count.count(lambda x: lax.top_k(x, 2), S(4, 8)).elementwise == 3 * 32
    assert count.count(lambda x: x.at[jnp.arange(3)].add(1.0), S(8, 5)).flops == 0


def test_key_handling_and_dropout_have_prices():
    def noisy(x):
        key = jax.random.fold_in(jax.random.key(0), 3)
        return jax.random.bernoulli(jax.random.split(key)[0], 0.9, x.shape) * x + jax.random.gumbel(
            key, x.shape
        )

    assert count.count(noisy, S(4, 8)).flops == 0


@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_is_priced_by_its_shapes(causal, monkeypatch):
    cudnn = pytest.importorskip(
        "jax._src.cudnn.fused_attention_stablehlo",
        reason="this JAX keeps its private cuDNN attention elsewhere",
    )
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True, raising=False)
    B, L, H, C = 2, 64, 4, 32
    qkv = [S(B, L, H, C, dtype=jnp.bfloat16)] * 3

    def attend(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")

    pairs = prices.causal_pairs(L) if causal else L * L
    forward = B * prices.attention_pairs_flops(pairs, H * C)
    assert count.count(attend, *qkv).by == {"attention": forward}
    both = jax.value_and_grad(lambda *a: jnp.sum(attend(*a).astype(jnp.float32)), argnums=(0, 1, 2))
    assert flops(both, *qkv) == forward + forward * 5 // 2


def test_an_operation_without_a_price_is_named():
    with pytest.raises(count.UnpricedOp, match="'cholesky' has no price; add it"):
        count.count(lambda x: lax.linalg.cholesky(x), S(4, 4))


# against XLA, small and unrolled


@pytest.mark.parametrize(
    "fn, args",
    [
        (lambda a, b: a @ b, ((64, 96), (96, 80))),
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), ((3, 32, 64), (3, 64, 48))),
        (lambda w, x: cube(w, x), ((128, 128), (64, 128))),
        (jax.grad(lambda w, x: jnp.sum(cube(w, x)), argnums=(0, 1)), ((128, 128), (64, 128))),
    ],
    ids=["matmul", "batched", "layers", "gradient"],
)
def test_xla_agrees_within_three_percent(fn, args):
    counts = count.count(fn, *(S(*shape) for shape in args))
    theirs = xla.xla_flops(fn, *(S(*shape) for shape in args))
    assert abs(counts.flops / theirs - 1) < 0.03


def test_xla_counts_a_scan_once_which_is_why_we_count_ourselves():
    def scanned(w, x):
        return lax.scan(lambda c, _: (c @ w, None), x, None, length=10)[0]

    ours = flops(scanned, S(64, 64), S(32, 64))
    assert ours == 10 * prices.matmul_flops(32, 64, 64)
    assert xla.xla_flops(scanned, S(64, 64), S(32, 64)) < 0.5 * ours


def test_xla_program_without_arithmetic_has_zero_flops():
    assert xla.xla_flops(jnp.transpose, S(3, 4)) == 0.0


def test_the_elementwise_work_of_a_named_recurrence_is_flops():
    def recur(a_LxS):
        return lax.scan(lambda h, a: (a * h + 1, h.sum()), jnp.zeros(5), a_LxS)[1]

    def named(a_LxS):
        with jax.named_scope(scopes.RECURRENCE):
            return recur(a_LxS)

    plain, counted = (
        count.count(lambda a, f=f: jnp.tanh(f(jnp.exp(a))), S(7, 5)) for f in (recur, named)
    )
    assert plain.flops == 0 and plain.elementwise == 7 * 15 + 35 + 7
    assert counted.by == {"scan": 7 * 15} and counted.elementwise == 35 + 7


# complex numbers


def test_a_complex_product_is_four_real_ones():
    def product(a, b):
        return lax.dot_general(a, b, (((1,), (0,)), ((), ())))

    def conv(x, w):
        return lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))

    one = prices.matmul_flops(4, 8, 5)
    half = S(4, 8, dtype=jnp.complex64)
    assert flops(product, half, S(8, 5, dtype=jnp.complex64)) == 4 * one
    assert flops(product, half, S(8, 5)) == flops(product, S(4, 8), S(8, 5, dtype=jnp.complex64))
    assert flops(product, half, S(8, 5)) == 2 * one
    kernel = S(3, 5, 7, dtype=jnp.complex64)
    assert flops(conv, S(2, 9, 5, dtype=jnp.complex64), kernel) == 4 * flops(
        conv, S(2, 9, 5), S(3, 5, 7)
    )


def test_a_complex_recurrence_has_six_real_operations_a_product_and_two_a_sum():
    def recur(a_L, x_L):
        with jax.named_scope(scopes.RECURRENCE):
            return lax.scan(lambda h, now: (now[0] * h + now[1], None), x_L[0], (a_L, x_L))[0]

    assert flops(recur, *[S(7, 5, dtype=jnp.complex64)] * 2) == 7 * 5 * (6 + 2)
    assert flops(recur, *[S(7, 5)] * 2) == 7 * 5 * 2


# operations: bytes of weights and of the rest


def products(fn, params, *args):
    """The operations that have FLOPs."""
    return [one.op for one in count.operations(fn, params, *args) if one.op.flops]


W = S(8, 16)
ONE = Op(prices.matmul_flops(4, 8, 16), bytes=4 * (4 * 8 + 4 * 16), weights=4 * 8 * 16)


def cast(w, x):
    return (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.float32)


def branching(w, x):
    return lax.cond(x[0, 0] > 0, lambda w, x: x @ w, lambda w, x: jnp.zeros((4, 16)), w, x)


def custom(w, x):
    f = jax.custom_vjp(lambda w, x: x @ w)
    f.defvjp(lambda w, x: (x @ w, None), lambda _, g: (g, g))
    return f(w, x)


@pytest.mark.parametrize(
    "fn, w",
    [
        (lambda w, x: x @ w, W),
        (lambda w, x: x @ w.T, S(16, 8)),
        (lambda w, x: x @ w["a"].reshape(8, 16)[:, ::-1], {"a": S(128)}),
        (lambda w, x: x @ w[1, :, 2:18], S(3, 8, 20)),
        (lambda w, x: x @ lax.dynamic_index_in_dim(w, 2, keepdims=False), S(3, 8, 16)),
        (lambda w, x: x @ jnp.concatenate(w, axis=1), [S(8, 9), S(8, 7)]),
        (lambda w, x: x @ lax.optimization_barrier((w, x))[0], W),
        (lambda w, x: x @ jnp.exp(-2 * w), W),
        (jax.jit(lambda w, x: x @ jax.jit(jnp.transpose)(w)), S(16, 8)),
        (jax.checkpoint(lambda w, x: x @ w), W),
        (branching, W),
        (custom, W),
        (lambda _, x: x @ np.ones((8, 16), np.float32), {}),
        (lambda _, x: jax.jit(lambda x: x @ np.ones((8, 16), np.float32))(x), {}),
    ],
)
def test_what_comes_from_weights_or_constants_is_told_apart(fn, w):
    found = count.operations(fn, w, S(4, 8))
    assert [one.op for one in found if one.op != Op()] == [ONE]


def test_bytes_are_those_of_the_dtype_of_the_product():
    (op,) = products(cast, W, S(4, 8))
    assert op == Op(ONE.flops, ONE.bytes // 2, ONE.weights // 2)


def test_a_broadcast_weight_is_read_once_per_number_that_it_has():
    def repeated(w, x):
        return jnp.einsum("bl,blm->bm", x, jnp.broadcast_to(w, (4, 8, 16)))

    assert products(repeated, W, S(4, 8)) == [ONE]


def test_what_depends_on_an_example_is_no_weight():
    assert products(lambda w, x: x @ (w * x[0, 0]), W, S(4, 8)) == [
        Op(ONE.flops, ONE.bytes + ONE.weights)
    ]
    both = products(lambda w, x: x @ jnp.concatenate([w, x], 1), S(8, 9), S(8, 8))
    assert [op.weights for op in both] == [0]


def test_a_gathered_row_of_a_table_is_moved_and_no_shared_weight():
    def embed(table, ids):
        return table[ids]

    def chosen(table, x):
        return x @ table[np.array([1, 2, 3, 7])]

    found = count.operations(embed, S(100, 8), S(4, dtype=jnp.int32))
    assert [one.op for one in found if one.op != Op()] == [Op(bytes=2 * 4 * 4 * 8)]
    # which rows these are depends on no example
    moved, product = (
        one.op for one in count.operations(chosen, S(100, 8), S(5, 4)) if one.op != Op()
    )
    assert moved == Op(weights=2 * 4 * 4 * 8)
    assert product.weights == 4 * 4 * 8


def test_a_loop_reads_one_weight_once_and_a_stack_of_them_in_full():
    def same(w, x):
        return lax.scan(lambda c, _: (c @ w, None), x, None, length=5)[0]

    def stack(w, x):
        return lax.scan(lambda c, w: (c @ w, None), x, w)[0]

    def nested(w, x):
        return lax.scan(lambda c, w: (same(w, c), None), x, w)[0]

    def fori(w, x):
        return lax.fori_loop(0, 5, lambda _, c: c @ w, x)

    def carried(w, x):
        return lax.scan(lambda c, _: ((c[0] @ c[1], 2 * c[1]), None), (x, w), None, length=5)[0][0]

    one = prices.matmul_flops(4, 8, 8)
    rest, weights = 4 * 2 * 4 * 8, 4 * 8 * 8
    x = S(4, 8)
    assert products(same, S(8, 8), x) == [Op(5 * one, 5 * rest, weights)]
    assert products(fori, S(8, 8), x) == [Op(5 * one, 5 * rest, weights)]
    assert products(stack, S(3, 8, 8), x) == [Op(3 * one, 3 * rest, 3 * weights)]
    assert products(nested, S(3, 8, 8), x) == [Op(15 * one, 15 * rest, 3 * weights)]
    assert products(carried, S(8, 8), x) == [Op(5 * one, 5 * (rest + weights), 0)]


def test_operations_add_up_to_the_count_and_stand_in_the_order_of_the_program():
    def program(p, x):
        x = x[:, jnp.array([2, 1, 0, 2])] @ p["a"]
        return (jnp.tanh(jnp.fft.rfft(x).real) @ p["b"]).sum()

    args = {"a": S(4, 6), "b": S(4, 3)}, S(5, 8)
    found = count.operations(program, *args)
    assert count.total(found) == count.count(program, *args)
    assert [one.kind for one in found if one.op != Op()] == ["move", "dot", "fft", "dot", "move"]


def test_products_of_integers_are_apart():
    ints = [S(*shape, dtype=jnp.int8) for shape in ((8, 16), (4, 8))]
    (one,) = count.operations(lambda w, x: x @ w, *ints)
    assert one.op == Op(0, 4 * 8 + 4 * 16, 8 * 16, int8=prices.matmul_flops(4, 8, 16))


# where an operation stands


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.Dense(8, name="q")(x), None

    @nn.compact
    def decode(self, x):
        return self(x)[0]


class Outer(nn.Module):
    """Calls modules as such, again, by a method, in a loop over layers and in a jitted function."""

    @nn.compact
    def __call__(self, x):
        x, _ = Inner(name="layer_00")(x)
        x, _ = nn.remat(Inner)(name="layer_01")(x)
        x = Inner(name="layer_02").decode(x)
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(nn.remat(Inner), length=3, **axes)(name="layers")(x, None)
        with jax.named_scope("pooled"):
            return jax.jit(lambda x: jnp.einsum("ld,md->lm", x, x))(x).sum()


PLACES = ["layer_00/q", "layer_01/q", "layer_02/q", "layers/q", "pooled"]


def test_scopes_are_the_paths_of_modules():
    params = jax.eval_shape(Outer().init, jax.random.key(0), S(4, 8))
    found = count.operations(Outer().apply, params, S(4, 8))
    assert [one.scope for one in found if one.op.flops] == PLACES
    assert [one.op.weights // 256 for one in found if one.op.flops] == [1, 1, 1, 3, 0]
    gradient = count.operations(jax.grad(lambda *a: Outer().apply(*a)), params, S(4, 8))
    assert {one.scope for one in gradient if one.op.flops} == set(PLACES)


# fused attention


def scores_and_values(q, k, v):
    e = jnp.exp(jnp.einsum("bqhc,bkhc->bhqk", q, k))
    return jnp.einsum("bhqk,bkhc->bqhc", e / e.sum(-1, keepdims=True), v)


def under(name):
    """Returns it in a name scope, in a function of that name, and with a derivative in a loop."""

    def scoped(q, k, v):
        with jax.named_scope(name):
            return scores_and_values(q, k, v)

    def called(q, k, v):
        return scores_and_values(q, k, v)

    called.__name__ = name
    derived = jax.custom_vjp(scoped)
    derived.defvjp(lambda *a: (scoped(*a), a), lambda *_: None)

    def looped(q, k, v):
        return lax.scan(lambda q, _: (derived(q, k, v), None), q, None, 3)[0]

    return {"scope": scoped, "function": jax.jit(called), "loop": looped}


@pytest.mark.parametrize("form", ["scope", "function", "loop"])
def test_a_fused_kernel_keeps_what_lies_between_on_the_chip(form):
    turns = 3 if form == "loop" else 1
    q, k = S(2, 6, 3, 8), S(2, 10, 3, 8)
    fn = under(scopes.FUSED_ATTENTION)[form]
    (one,) = count.operations(lambda _, *a: fn(*a), {}, q, k, k)
    work = 2 * prices.attention_pairs_flops(6 * 10, 24)
    assert one.op == Op(turns * work, turns * 4 * 2 * 24 * (6 + 10 + 10 + 6))
    assert one.kind == "attention" and one.scope.rpartition("/")[2] == scopes.FUSED_ATTENTION
    assert one.elementwise == turns * count.count(scores_and_values, q, k, k).elementwise


@pytest.mark.parametrize("form", ["scope", "function", "loop"])
def test_a_fused_causal_kernel_visits_the_visible_pairs(form):
    turns = 3 if form == "loop" else 1
    fn, q = under(scopes.FUSED_CAUSAL_ATTENTION)[form], S(2, 6, 3, 8)
    pairs = prices.attention_pairs_flops(prices.causal_pairs(6), 24)
    assert count.count(fn, q, q, q).by == {"attention": turns * 2 * pairs}
    if form != "loop":
        both = jax.value_and_grad(lambda *a: fn(*a).sum(), argnums=(0, 1, 2))
        assert count.count(both, q, q, q).by == {"attention": 3 * 2 * pairs}
    with pytest.raises(count.UnpricedOp, match="no full square"):
        count.count(fn, q, S(2, 7, 3, 8), S(2, 7, 3, 8))


def test_two_fused_kernels_and_what_lies_between_them_are_three_operations():
    def two(w, q):
        for name in ("first", "second"):
            with jax.named_scope(name):
                q = under(scopes.FUSED_ATTENTION)["scope"](q, q, q) @ w
        return q

    found = count.operations(two, S(8, 8), S(2, 6, 3, 8))
    names = [one.scope for one in found if one.op.flops]
    assert names == ["first/fused_attention", "first", "second/fused_attention", "second"]
    # an operand that is read three times is one
    assert found[0].op.bytes == 4 * 2 * 6 * 24 * 2
