"""What is shown is what the full pass decides, and its price is the model's own."""

import jax
import numpy as np
import pytest

from cerebra_jax.models import build as models
from cerebra_jax.models.inside import decisions
from cerebra_jax.tasks.text import reading

V, L = 40, 32
ROUTERS = [
    {"net.name": "chiar", "net.scan": True},
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
def test_whole_windows_cost_what_the_model_says_and_the_program_what_it_runs(keys, tiny_cfg):
    model, variables, batch = made(tiny_cfg, keys, 2)
    found = decisions.look(model, variables, batch, 2 * L)
    aux = jax.jit(lambda *a: model.apply(*a, models.neutral_knobs())[1])(variables, batch)
    kept_RxBxL = np.asarray(aux.scores["kept"])
    np.testing.assert_array_equal(found.kept_RxT, kept_RxBxL.reshape(len(kept_RxBxL), -1))
    np.testing.assert_allclose(found.score_RxT.reshape(kept_RxBxL.shape), aux.scores["score"], rtol=1e-5, atol=1e-6)
    dense = model.dense.model_flops
    np.testing.assert_allclose(found.flops_T.reshape(2, L).sum(1), dense * np.asarray(aux.hard_B), rtol=1e-5)
    assert found.dense_flops == 2 * dense
    assert found.program_flops == 2 * model.cost.executed_flops
    assert found.program_dense_flops == 2 * model.dense.executed_flops
    assert len(found.kept_RxT) == len(models.MODELS[model.name].layers(model.net))


def test_a_short_text_costs_what_it_would_without_padding(tiny_cfg):
    model, variables, batch = made(tiny_cfg, {"net.name": "cerebra"}, 2)
    found = decisions.look(model, variables, batch, L + 9)
    assert found.kept_RxT.shape == (3, L + 9) and len(found.flops_T) == L + 9
    nine = models.build(tiny_cfg({"net.name": "cerebra", "task.seq_len": 9}), V)
    assert found.dense_flops == model.dense.model_flops + nine.dense.model_flops
    kept = found.kept_RxT[:, L:]
    each = models.MODELS["cerebra"].decisions(nine.net, 9, V)
    want = each.fixed + (kept * (each.token + each.pair * np.arange(1, 10))).sum()
    np.testing.assert_allclose(found.flops_T[L:].sum(), want * nine.dense.model_flops, rtol=1e-9)


def test_a_kept_token_costs_more_and_later_ones_see_more(tiny_cfg):
    net = tiny_cfg({"net.name": "chiar", "task.seq_len": L}).net
    kept = np.zeros((1, L), bool)
    kept[0, [3, 20]] = True
    flops, _ = decisions.token_flops(net, V, kept)
    left = flops[~kept[0]]
    assert np.ptp(left) == 0 and flops[20] > flops[3] > left[0]
    assert np.isclose(flops[20] - flops[3], 17 * 4 * net.width)


def test_nothing_is_routed_where_every_token_goes_one_way(tiny_cfg):
    for name in ("chiar", "cerebra"):
        net = tiny_cfg({"net.name": name, "net.route.mode": "always_full"}).net
        assert not models.MODELS[name].layers(net)
