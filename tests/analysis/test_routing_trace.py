"""What is shown is what the full pass decides, and its price is the model's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.analysis import routing_trace as decisions
from cerebra_jax.models import model as models
from cerebra_jax.models import transformer
from cerebra_jax.routing import routers as router
from cerebra_jax.tasks.text import reading

V = 40
L = 32
ROUTERS = [
    {"net.name": "chiar", "net.scan": True},
    {"net.name": "chiar", "net.route": {"mode": "hard", "rbf": 0.4, "kv": "routed"}},
    {"net.name": "cerebra", "net.route.kv": "routed"},
    {"net.name": "cerebra", "net.causal": False, "net.route.kv": "routed", "task.name": "listops"},
    {"net.name": "mod", "net.depth": 4},
]


def made(tiny_cfg, keys, B):
    model = models.build(tiny_cfg({"task.seq_len": L, **keys}), V)
    ids = np.random.RandomState(0).randint(0, V, B * L).tolist()
    batch = reading.windows(ids, L)
    return model, jax.jit(model.init)(jax.random.key(0), batch), batch


@pytest.mark.parametrize("keys", ROUTERS, ids=lambda keys: "-".join(map(str, keys.values())))
def test_decisions_are_the_full_passes_and_cost_what_the_model_says(keys, tiny_cfg):
    model, variables, batch = made(tiny_cfg, keys, 2)
    net, rest = model.net, 9  # of the second window, the others are padding
    found = decisions.trace(model, variables, batch, L + rest)
    aux = jax.jit(lambda *a: model.apply(*a, models.neutral_knobs())[1])(variables, batch)
    for got, want in ((found.kept_RxT, aux.scores["kept"]), (found.score_RxT, aux.scores["score"])):
        np.testing.assert_allclose(
            got, np.asarray(want).reshape(len(want), -1)[:, : L + rest], rtol=1e-5, atol=1e-6
        )
    assert len(found.kept_RxT) == len(models.MODELS[model.name].layers(net))
    dense = [transformer.cost(net, n, V).model_flops for n in (L, rest)]
    np.testing.assert_allclose(found.flops_T[:L].sum(), dense[0] * aux.hard_B[0], rtol=1e-5)
    each = models.MODELS[model.name].decisions(net, rest, V)
    layers = [
        router.decided(net, jnp.asarray(kept_L[None, L:], float), rest, each)[0]
        for kept_L in found.kept_RxT
    ]
    mixed = found.mixed_RxT[:, L:].sum()
    assert bool(found.mixed_RxT.any()) == (net.route.rbf > 0)
    assert not (found.mixed_RxT & found.kept_RxT).any()
    want = dense[1] * (each.fixed + sum(layers) + mixed * each.mixed)
    np.testing.assert_allclose(found.flops_T[L:].sum(), want, rtol=1e-5)
    assert found.dense_flops == sum(dense)
    assert found.program_flops == 2 * model.cost.executed_flops
    assert found.program_dense_flops == 2 * model.dense.executed_flops


def test_a_kept_token_costs_more_and_later_ones_see_more(tiny_cfg):
    net = tiny_cfg({"net.name": "chiar", "task.seq_len": L}).net
    kept = np.zeros((1, L), bool)
    kept[0, [3, 20]] = True
    flops, _ = decisions.token_flops(net, V, kept, np.zeros_like(kept))
    left = flops[~kept[0]]
    assert np.ptp(left) == 0
    assert flops[20] > flops[3] > left[0]
    assert np.isclose(flops[20] - flops[3], 17 * 4 * net.width)


def test_nothing_is_routed_where_every_token_goes_one_way(tiny_cfg):
    for name in ("chiar", "cerebra"):
        net = tiny_cfg({"net.name": name, "net.route.mode": "always_full"}).net
        assert not models.MODELS[name].layers(net)
