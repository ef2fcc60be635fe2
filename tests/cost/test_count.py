"""The counter: equal programs have equal counts, every kind of call is entered once, the unknown is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cerebra_jax.cost import count as jaxpr
from cerebra_jax.cost import prices


def S(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def flops(fn, *args):
    return jaxpr.count(fn, *args).flops


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
    got = jaxpr.count(lambda a, b: jnp.einsum(spec, a, b), *(S(*s) for s in shapes))
    if "dot" in got.by:
        assert got.by["dot"] == 2 * combinations
    else:  # JAX writes products without a contraction as elementwise multiplication
        assert set(keep) >= set(left) & set(right)


def test_matmul_with_batch_dimensions():
    assert (
        flops(lambda q, k: jnp.einsum("blhc,bmhc->bhlm", q, k), S(2, 5, 3, 8), S(2, 7, 3, 8))
        == 2 * 2 * 3 * 5 * 7 * 8
    )


def test_no_overflow_in_int32():
    assert flops(lambda x, y: x @ y, S(32, 4096, 4096), S(32, 4096, 4096)) == 2 * 32 * 4096**3


# loops


def test_scan_equals_unrolled_equals_fori_equals_map():
    w, x = S(8, 8), S(4, 8)
    layer = lambda x, w: jnp.tanh(x @ w)  # noqa: E731
    scanned = lambda w, x: lax.scan(lambda c, _: (layer(c, w), None), x, None, length=3)[0]  # noqa: E731
    stacked = lambda w, x: lax.scan(lambda c, w: (layer(c, w), None), x, jnp.stack([w] * 3))[0]  # noqa: E731
    fori = lambda w, x: lax.fori_loop(0, 3, lambda _, c: layer(c, w), x)  # noqa: E731
    mapped = lambda w, x: lax.map(lambda x: layer(x, w), jnp.stack([x] * 3))  # noqa: E731
    counts = [jaxpr.count(f, w, x) for f in (cube, scanned, stacked, fori, mapped)]
    assert [c.flops for c in counts] == [CUBE] * 5
    assert counts[0].elementwise == counts[1].elementwise == 3 * 4 * 8


def test_nested_scan_multiplies():
    def nested(w, x):
        inner = lambda c, _: (c @ w, None)  # noqa: E731
        return lax.scan(
            lambda c, _: (lax.scan(inner, c, None, length=4)[0], None), x, None, length=5
        )[0]

    assert flops(nested, S(8, 8), S(4, 8)) == 20 * prices.matmul_flops(4, 8, 8)


def test_gradient_of_a_scan_is_three_forwards():
    def loss(w, x):
        return jnp.sum(lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=3)[0] ** 2)

    assert flops(jax.grad(loss, argnums=(0, 1)), S(8, 8), S(4, 8)) == 3 * CUBE


def test_while_needs_a_trip_count():
    program = jax.make_jaxpr(
        lambda w, x: lax.while_loop(lambda c: jnp.sum(c) > 0, lambda c: c @ w, x)
    )(S(8, 8), S(4, 8))
    with pytest.raises(jaxpr.UnpricedOp, match="trips=N"):
        jaxpr.count_jaxpr(program)
    assert jaxpr.count_jaxpr(program, trips=7).flops == 7 * prices.matmul_flops(4, 8, 8)


def test_cond_is_its_dearest_branch_or_the_given_mean():
    program = jax.make_jaxpr(lambda p, w, x: lax.cond(p, lambda x: x @ w, lambda x: x, x))(
        S(dtype=jnp.bool_), S(8, 8), S(4, 8)
    )
    full = prices.matmul_flops(4, 8, 8)
    assert jaxpr.count_jaxpr(program).flops == full
    assert (
        jaxpr.count_jaxpr(program, weights=[0.75, 0.25]).flops == full // 4
    )  # branches are (false, true)


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
    assert (
        2 * flops(jax.grad(mlp), *MLP) == 5 * forward
    )  # no gradient of the input: one matmul less


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

    shard_map = getattr(jax, "shard_map", None)
    if shard_map is None:
        pytest.skip("this JAX has no jax.shard_map")
    mesh = Mesh(np.array(jax.devices()[:2]), ("i",))
    split = shard_map(lambda w, x: x @ w, mesh=mesh, in_specs=(P(), P("i")), out_specs=P("i"))
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
        assert jaxpr.count(fn, S(3, 5, size, dtype=dtype)).by == {"fft": 15 * price}


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

    assert jaxpr.count(move, S(6, 8), S(4, 3, dtype=jnp.int32))[:2] == (0, {})
    assert jaxpr.count(lambda x: jnp.exp(x) + x, S(4, 8)).elementwise == 2 * 32
    assert jaxpr.count(lambda x: lax.cumsum(x, axis=1), S(4, 8)).elementwise == 32
    assert jaxpr.count(lambda x: lax.top_k(x, 2), S(4, 8)).elementwise == 3 * 32
    assert jaxpr.count(lambda x: x.at[jnp.arange(3)].add(1.0), S(8, 5)).flops == 0


def test_key_handling_and_dropout_have_prices():
    def noisy(x):
        key = jax.random.fold_in(jax.random.key(0), 3)
        return jax.random.bernoulli(jax.random.split(key)[0], 0.9, x.shape) * x + jax.random.gumbel(
            key, x.shape
        )

    assert jaxpr.count(noisy, S(4, 8)).flops == 0


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
    assert jaxpr.count(attend, *qkv).by == {"attention": forward}
    both = jax.value_and_grad(lambda *a: jnp.sum(attend(*a).astype(jnp.float32)), argnums=(0, 1, 2))
    assert flops(both, *qkv) == forward + forward * 5 // 2


def test_an_operation_without_a_price_is_named():
    with pytest.raises(jaxpr.UnpricedOp, match="'cholesky' has no price; add it"):
        jaxpr.count(lambda x: lax.linalg.cholesky(x), S(4, 4))


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
    counts = jaxpr.count(fn, *(S(*shape) for shape in args))
    xla = jaxpr.xla_flops(fn, *(S(*shape) for shape in args))
    assert abs(counts.flops / xla - 1) < 0.03


def test_xla_counts_a_scan_once_which_is_why_we_count_ourselves():
    def scanned(w, x):
        return lax.scan(lambda c, _: (c @ w, None), x, None, length=10)[0]

    ours = flops(scanned, S(64, 64), S(32, 64))
    assert ours == 10 * prices.matmul_flops(32, 64, 64)
    assert jaxpr.xla_flops(scanned, S(64, 64), S(32, 64)) < 0.5 * ours


def test_xla_program_without_arithmetic_has_zero_flops():
    assert jaxpr.xla_flops(jnp.transpose, S(3, 4)) == 0.0


def test_the_elementwise_work_of_a_named_recurrence_is_flops():
    def recur(a_LxS):
        return lax.scan(lambda h, a: (a * h + 1, h.sum()), jnp.zeros(5), a_LxS)[1]

    def named(a_LxS):
        with jax.named_scope(jaxpr.RECURRENCE):
            return recur(a_LxS)

    plain, counted = (
        jaxpr.count(lambda a, f=f: jnp.tanh(f(jnp.exp(a))), S(7, 5)) for f in (recur, named)
    )
    assert plain.flops == 0 and plain.elementwise == 7 * 15 + 35 + 7
    assert counted.by == {"scan": 7 * 15} and counted.elementwise == 35 + 7
