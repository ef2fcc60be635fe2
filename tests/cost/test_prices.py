"""Every formula against a number worked out by hand, and against a sum over its own loop."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebra_jax.cost import prices


@pytest.mark.parametrize(
    "got, hand",
    [
        (prices.matmul_flops(8, 16, 4), 1024),  # 8 x 4 results of 16 multiply-adds
        (prices.attention_pairs_flops(256, 128), 131_072),  # 4 n D for one query
        (prices.attention_pairs_flops(prices.causal_pairs(3), 8), 192),  # 6 pairs of 3 positions
        (prices.causal_pairs(4096), 8_390_656),
        (prices.fft_flops(8), 120),  # 5 x 8 x 3
        (prices.fft_flops(1), 0),
        (prices.fft_flops(1000), 49_829),  # 5000 x 9.965784
        (prices.rfft_flops(1000), 24_914),
        (prices.rfft_flops(1024), 25_600),  # half of 5 x 1024 x 10
        (prices.conv_flops(10, 3, 4, 8), 1920),  # 2 x 10 x 3 x 4 x 8
        (prices.conv_flops(10, 3, 8, 8, groups=8), 480),  # depthwise: 2 x 10 x 3 x 8
    ],
)
def test_hand_derived(got, hand):
    assert got == hand and type(got) is int


@given(st.integers(1, 200))
def test_causal_pairs_is_the_count_of_visible_keys(L):
    assert prices.causal_pairs(L) == sum(t + 1 for t in range(L))


@given(st.integers(2, 5000))
def test_fft_prices_grow_and_real_is_half(n):
    assert prices.fft_flops(n - 1) < prices.fft_flops(n)
    assert prices.fft_flops(n) - 2 * prices.rfft_flops(n) in (0, 1)


def test_no_overflow_at_long_context():
    # traced int32 gives 0 here
    assert prices.attention_pairs_flops(4096 * 4096, 4096) * 16 == 4_398_046_511_104


def test_an_empty_transform_is_refused():
    with pytest.raises(ValueError, match="0 points"):
        prices.fft_flops(0)


def test_prices_load_without_jax():
    code = "import cerebra_jax.cost.prices, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
