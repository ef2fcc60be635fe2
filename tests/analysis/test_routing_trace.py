"""What is shown is what the full pass decides, and its price is the model's own."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.analysis import routing_trace
from cerebra_jax.cost.units import FLOPS
from cerebra_jax.models import model as models
from cerebra_jax.models import registry
from cerebra_jax.routing.decision_cost import cost_of
from cerebra_jax.tasks.text import reading

V = 40
L = 32
REST = 9  # real tokens of the second window
ROUTERS = [
    {"net.name": "chiar", "net.scan": True},
    {"net.name": "chiar", "net.route": {"mode": "hard", "rbf": 0.4, "kv": "routed"}},
    {"net.name": "cerebra", "net.route.kv": "routed"},
    {"net.name": "cerebra", "net.causal": False, "net.route.kv": "routed"},
    {"net.name": "mod", "net.depth": 4},
]


def made(tiny_cfg, keys):
    """A model, its variables, and a batch of two windows."""
    causal = keys.get("net.causal", True)
    cfg = tiny_cfg({"task.seq_len": L, **keys, "net.causal": True})
    net = dataclasses.replace(cfg.net, causal=causal)  # no text task takes an encoder
    model = models.build(dataclasses.replace(cfg, net=net), V)
    ids = np.random.RandomState(0).randint(0, V, 2 * L).tolist()
    batch = reading.windows(ids, L)
    return model, model.init(jax.random.key(0), batch), batch


@pytest.mark.parametrize("keys", ROUTERS, ids=lambda keys: "-".join(map(str, keys.values())))
def test_decisions_are_the_full_passes_and_cost_what_the_model_says(keys, tiny_cfg):
    model, variables, batch = made(tiny_cfg, keys)
    net = model.net
    T = L + REST
    R = len(registry.routed(net))
    found = routing_trace.trace(model, variables, batch, T)
    _, aux = jax.jit(model.apply)(variables, batch, models.neutral_knobs())

    # decisions and scores are those of the full pass
    chex.assert_shape([found.kept_RxT, found.score_RxT, found.mixed_RxT], (R, T))
    for name, shown_RxT in (("kept", found.kept_RxT), ("score", found.score_RxT)):
        full_RxT = np.asarray(aux.scores[name]).reshape(R, -1)[:, :T]
        chex.assert_trees_all_close(shown_RxT, full_RxT, rtol=1e-5, atol=1e-6)
    assert bool(found.mixed_RxT.any()) == (net.route.rbf > 0)
    assert not (found.mixed_RxT & found.kept_RxT).any()

    # a full window costs what the model says of it
    dense = [models.Pricing(n, V, FLOPS, "cpu").dense(net)[0] for n in (L, REST)]
    np.testing.assert_allclose(found.flops_T[:L].sum(), dense[0] * aux.hard_B[0], rtol=1e-5)

    # a window with padding costs what an example of its real tokens would
    price = models.Pricing(REST, V, FLOPS, "cpu").decisions(net)
    kept_Rx1xN = jnp.asarray(found.kept_RxT[:, None, L:], float)
    layers = zip(kept_Rx1xN, price.layers, strict=True)
    routed = [cost_of(kept_1xN, one, net.route.kv, net.causal)[0] for kept_1xN, one in layers]
    mixed = found.mixed_RxT[:, L:].sum(1) @ np.array([one.mixed for one in price.layers])
    relative = price.fixed + sum(routed) + mixed
    np.testing.assert_allclose(found.flops_T[L:].sum(), dense[1] * relative, rtol=1e-5)
    assert found.dense_flops == sum(dense)
    assert found.program_flops == 2 * model.cost.executed_flops
    assert found.program_dense_flops == 2 * model.dense.executed_flops


def test_a_kept_token_costs_more_and_later_ones_see_more(tiny_cfg):
    net = tiny_cfg({"net.name": "chiar", "task.seq_len": L}).net
    kept_1xL = np.zeros((1, L), bool)
    kept_1xL[0, [3, 20]] = True
    flops_L, _ = routing_trace.token_flops(net, V, kept_1xL, np.zeros_like(kept_1xL))
    light_N = flops_L[~kept_1xL[0]]
    assert np.ptp(light_N) == 0
    assert flops_L[20] > flops_L[3] > light_N[0]
    assert np.isclose(flops_L[20] - flops_L[3], 17 * 4 * net.width)


@pytest.mark.parametrize("name", ["chiar", "cerebra"])
def test_nothing_is_routed_where_every_token_goes_one_way(name, tiny_cfg):
    net = tiny_cfg({"net.name": name, "net.route.mode": "always_full"}).net
    assert not registry.routed(net)
