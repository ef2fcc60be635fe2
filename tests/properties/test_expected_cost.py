"""The expected cost is the mean of the hard costs of drawn decisions, priced by counting pairs."""

import numpy as np
import pytest

from cerebra_jax.config import NetCfg, RouteCfg
from cerebra_jax.cost import prices, units
from cerebra_jax.models.model import Pricing, cost_of, dense_of
from cerebra_jax.routing import decision_cost
from tests.cost import handwritten

L, DRAWS = 16, 200_000
SIZES = {"width": 16, "heads": 2, "ffn_width": 32}
CASES = [("cerebra", kv, causal) for kv in ("all", "routed") for causal in (True, False)]
CASES += [("chiar", kv, True) for kv in ("all", "routed")]


def counted(net, keep_NxL):
    """Returns the FLOPs of each drawn decision, by counting: no price of the models is used."""
    seen = np.tril(np.ones((L, L))) if net.causal else np.ones((L, L))  # (query, key)
    keys_NxL = keep_NxL if net.route.kv == "routed" else np.ones_like(keep_NxL)
    pairs_N = (keep_NxL @ seen * keys_NxL).sum(1)  # each query's keys
    own = (2 if net.route.kv == "all" else 4) * handwritten.linear(net.width, net.width)
    if net.name == "cerebra":
        # of the FFN the kept tokens add the half that the light path leaves out
        own += handwritten.feed_forward(net.width, net.ffn_width // 2, net.ffn)
    return keep_NxL.sum(1) * own + pairs_N * prices.attention_pairs_flops(1, net.width)


@pytest.mark.parametrize(("name", "kv", "causal"), CASES)
def test_expected_cost_is_inside_the_interval_of_a_monte_carlo_mean(name, kv, causal):
    net = NetCfg(name=name, causal=causal, route=RouteCfg(mode="threshold", kv=kv), **SIZES)
    one = Pricing(L, 1, units.FLOPS, "cpu").decisions(net).layers[0]
    dense = cost_of(dense_of(net), L, 1, "cpu").model_flops

    def routed(p_NxL):
        cost_N = decision_cost.cost_of(np.float32(p_NxL), one, kv, causal)
        return dense * np.asarray(cost_N, np.float64)

    for spread in (0.5, 4.0):  # undecided, and decided
        rng = np.random.RandomState(0)
        p_L = 1 / (1 + np.exp(-spread * rng.standard_normal(L)))
        keep_NxL = (rng.random((DRAWS, L)) < p_L[None]).astype(np.float64)
        hard_N = counted(net, keep_NxL)
        half = 3 * hard_N.std() / DRAWS**0.5
        expected = routed(p_L[None])[0]
        assert abs(expected - hard_N.mean()) < half
        np.testing.assert_allclose(routed(keep_NxL[:50]), hard_N[:50], rtol=1e-5)
        if kv == "routed":  # the interval is narrow enough to see E[K]² where E[K²] belongs
            gap = (p_L * (1 - p_L)).sum() * (0.5 if causal else 1.0)
            assert gap * prices.attention_pairs_flops(1, net.width) > 1.5 * half
