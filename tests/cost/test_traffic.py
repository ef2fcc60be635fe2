"""The estimate of traffic: kernels are formed by the rules that its module states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from cerebra_jax.cost import traffic
from cerebra_jax.cost.device import Device
from cerebra_jax.kernels.attention import Blocks, Keys, Queries, Segment, attend_blocks

CHIP = Device("chip", float32=1e12, bfloat16=2e12, bandwidth=1e9, memory=1 << 30)
X = jax.ShapeDtypeStruct((64, 128), jnp.float32)
W = jax.ShapeDtypeStruct((128, 128), jnp.float32)
x, w = 4 * 64 * 128, 4 * 128 * 128  # bytes


def found(fn, *args):
    return traffic.estimate(jax.make_jaxpr(fn)(*args), CHIP)


def product(a, b):
    return a @ b


def after_tanh(a, b):
    return jnp.tanh(2 * a) @ b


def both(a):
    return jnp.exp(a), a.sum(-1)


def through_a_call(a, b):
    return jax.jit(after_tanh)(a, b)


@pytest.mark.parametrize(
    "fn, args, kernels, moved",
    [
        (product, (X, W), 1, 2 * x + w),
        (after_tanh, (X, W), 2, 2 * x + 2 * x + w),  # elementwise work is one kernel
        (through_a_call, (X, W), 2, 2 * x + 2 * x + w),
        (both, (X,), 1, 2 * x + 4 * 64),  # what reads the same is one kernel
        (lambda a: a[:8] + 1, (X,), 1, 2 * x // 8),  # of a slice the slice
        (lambda a: jnp.exp(a).sum(), (X,), 1, x + 4),
        (lambda a, b: (a @ b, jnp.tanh(a) @ b)[0], (X, W), 1, 2 * x + w),  # nobody wants the rest
    ],
)
def test_kernels_and_bytes(fn, args, kernels, moved):
    estimate = found(fn, *args)
    assert (estimate.kernels, estimate.bytes) == (kernels, moved)


def test_time_is_the_dearer_of_flops_and_bytes_for_each_kernel():
    one = found(product, X, W)
    bytes_s = (2 * x + w) / (traffic.COPY * CHIP.bandwidth)
    assert one.seconds == pytest.approx(bytes_s + traffic.START)
    slow = CHIP._replace(float32=1e6)
    estimate = traffic.estimate(jax.make_jaxpr(product)(X, W), slow)
    flops_s = 2 * 64 * 128 * 128 / (traffic.MATMUL * 1e6)
    assert estimate.seconds == pytest.approx(flops_s + traffic.START)


def test_a_loop_turns_and_what_it_stacks_is_cleared_and_copied():
    def stack(a, b):
        def step(carry, _):
            new = carry @ b
            return new, new

        return lax.scan(step, a, length=5)

    product = 2 * x + w
    assert found(stack, X, W).bytes == 5 * (product + 2 * x) + 5 * x


def test_fused_attention_moves_its_operands_and_its_result():
    L, C = 512, 64
    q = jax.ShapeDtypeStruct((1, 2, L, C), jnp.bfloat16)
    rank = jnp.arange(L)[None]

    def attend(kernel, q, k, v):
        blocks = Blocks((Segment(0, L, 0, L),), kernel)
        return attend_blocks(Queries(q, rank), Keys(k, v, rank), blocks)

    fused = found(lambda *qkv: attend("cudnn", *qkv), q, q, q)
    assert 4 * 2 * 2 * L * C <= fused.bytes < 5 * 2 * 2 * L * C
    assert found(lambda *qkv: attend("full", *qkv), q, q, q).bytes > 2 * 4 * 2 * L * L


def test_a_slice_that_a_matmul_reads_is_copied_out_of_its_stack():
    def through(a, stack):
        return lax.scan(lambda carry, one: (carry @ one, None), a, stack)[0]

    stack = jax.ShapeDtypeStruct((5, 128, 128), jnp.float32)
    assert found(through, X, stack).bytes == 5 * (2 * x + w + 2 * w)
