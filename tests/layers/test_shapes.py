"""Widths that pruning has left: what is refused, and what a smaller model is compared with."""

import dataclasses

import jax
import numpy as np
import pytest

from cerebra_jax.analysis import routing_trace as decisions
from cerebra_jax.errors import UserError
from cerebra_jax.layers import shapes
from cerebra_jax.models import model as build

V = 40
KEPT = {"heads": "1,0,2", "ffn": "8,64,3"}


@pytest.mark.parametrize(
    ("net", "what"),
    [
        ({"kept": {"heads": "1,2"}}, "net.kept.heads is '1,2'"),
        ({"kept": {"heads": "1,2,3"}}, "from 0 to 2"),
        ({"kept": {"ffn": "8,x,3"}}, "net.kept.ffn"),
        ({"kept": {"channels": "-1,0,0"}}, "net.kept.channels"),
        ({"kept": {"rest": "1,0,0"}, "scan": True}, "net.scan=False"),
        ({"kept": KEPT, "name": "mod"}, "only transformer, cerebra, chiar"),
        ({"route": {"by_layer": "1,2"}}, "net.route.by_layer is '1,2'; give 3 numbers"),
        ({"route": {"by_layer": "1,0,2"}}, "above 0"),
        ({"route": {"by_layer": "1,x,2"}}, "with commas"),
        ({"route": {"by_layer": "1,1,2"}, "scan": True}, "net.scan=False"),
        ({"route": {"by_layer": "1,1,2"}, "name": "chiar"}, "only the layers of cerebra"),
        ({"route": {"by_layer": "1,1,2", "mode": "soft"}}, "net.route.mode=soft"),
        ({"route": {"by_layer": "1,1,2", "k": 3}}, "net.route.k=3"),
    ],
)
def test_lists_that_do_not_fit_are_refused(net, what, tiny_cfg):
    with pytest.raises(UserError, match=what):
        tiny_cfg({"net": {"name": "cerebra"} | net})


def test_costs_are_relative_to_the_model_before_pruning(tiny_cfg):
    """The dense Transformer stays the whole one, as a twin too, and a pruned Transformer is a share of it."""
    small = tiny_cfg({"net": {"name": "transformer", "kept": KEPT}})
    cfg = dataclasses.replace(small, net=shapes.whole(small.net))
    m, full = build.build(small, V), build.build(cfg, V)
    assert m.dense == full.dense == full.cost and m.dense_token == full.token
    share = m.cost.model_flops / full.cost.model_flops
    assert 0 < m.executed < 1 and m.module.share(32) == share < 1 == full.module.share(32)
    assert build.twin(dataclasses.replace(small, twin="dense"), V).net == cfg.net
    with pytest.raises(UserError, match="its own"):
        build.twin(dataclasses.replace(cfg, twin="dense"), V)


def test_a_layer_has_its_own_widths(tiny_cfg):
    net = tiny_cfg({"net": {"name": "transformer", "kept": KEPT}}).net
    assert [shapes.heads(each) for each in shapes.each(net)] == [1, 2, 2]
    assert [shapes.inner(each) for each in shapes.each(net)] == [16, 32, 32]
    assert [shapes.hidden(each) for each in shapes.each(net)] == [8, 64, 3]
    with pytest.raises(ValueError, match="1,0,2"):
        shapes.heads(net)


@pytest.mark.parametrize("name", ["cerebra", "chiar"])
def test_each_layer_pays_for_its_own_heads(name, tiny_cfg):
    """The cost of decisions in layers of different widths is that of their tokens, one by one, and of the program."""
    kept = {"heads": "0,1,0,1", "ffn": "8,0,3,9"}
    cfg = tiny_cfg(
        {
            "net": {"name": name, "depth": 4, "kept": kept},
            "net.route": {"mode": "random", "capacity": 4.0},
        }
    )
    m, ids = build.build(cfg, V), np.arange(2 * 32).reshape(2, 32).astype(np.int32) % V
    batch = {"inputs_BxL": ids, "ex_B": np.arange(2, dtype=np.int32)}

    @jax.jit
    def decided(batch):
        return m.apply(m.init(jax.random.key(0), batch), batch, build.neutral_knobs())[1]

    aux = decided(batch)
    for b in range(2):
        kept_RxL = np.asarray(aux.scores["kept"])[:, b]
        flops_L, dense = decisions.token_flops(cfg.net, V, kept_RxL, np.zeros_like(kept_RxL))
        np.testing.assert_allclose(flops_L.sum() / dense, aux.hard_B[b], rtol=1e-6)
        each = build.MODELS[name].decisions(cfg.net, 32, V)
        assert len(set(each.each)) > 1 and kept_RxL.sum(1).std() > 0
