"""Widths that pruning has left: what is refused, and what a smaller model is compared with."""

import dataclasses

import jax
import numpy as np
import pytest

from cerebra_jax.errors import UserError
from cerebra_jax.models.controls import control
from cerebra_jax.models.model import build, neutral_knobs
from cerebra_jax.models.shapes import layer_shapes, unpruned

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
        tiny_cfg({"net": {"name": "cerebra", "depth": 3} | net})


def test_costs_are_relative_to_the_model_before_pruning(tiny_cfg):
    """The dense Transformer stays the whole one, as a control too; a pruned one is less."""
    small = tiny_cfg({"net": {"name": "transformer", "kept": KEPT}})
    cfg = dataclasses.replace(small, net=unpruned(small.net))
    m, full = build(small, V), build(cfg, V)
    assert m.dense == full.dense == full.cost and m.dense_token == full.token
    fraction = m.cost.model_flops / full.cost.model_flops
    assert m.pricing.decisions(m.net).fixed == fraction < 1
    assert m.pricing.decisions(full.net).fixed == 1
    assert 0 < m.executed < 1
    assert control(dataclasses.replace(small, twin="dense"), V).net == cfg.net
    with pytest.raises(UserError, match="its own"):
        control(dataclasses.replace(cfg, twin="dense"), V)


def test_a_layer_has_its_own_widths(tiny_cfg):
    net = tiny_cfg({"net": {"name": "transformer", "kept": KEPT}}).net
    assert [shape.heads for shape in layer_shapes(net)] == [1, 2, 2]
    assert [shape.ffn for shape in layer_shapes(net)] == [8, 64, 3]
    params = shapes_of(build(tiny_cfg({"net": {"name": "transformer", "kept": KEPT}}), V))
    for i, (inner, hidden) in enumerate(((16, 8), (32, 64), (32, 3))):
        layer = params[f"layer_{i:02d}"]
        assert layer["attention"]["out"]["kernel"].shape == (inner, 32)
        assert layer["ffn"]["down"]["kernel"].shape == (hidden, 32)


def shapes_of(model):
    """Returns the shapes of a model's parameters."""
    batch = {"inputs_BxL": np.zeros((1, 32), np.int32), "ex_B": np.zeros(1, np.int32)}
    return jax.eval_shape(lambda: model.init(jax.random.key(0), batch))["params"]


@pytest.mark.parametrize("name", ["cerebra", "chiar"])
def test_each_layer_pays_for_its_own_heads(name, tiny_cfg):
    """What decisions cost in layers of different widths is what their tokens cost, one by one."""
    kept = {"heads": "0,1,0,1", "ffn": "8,0,3,9"}
    route = {"mode": "random", "capacity": 4.0}
    m = build(tiny_cfg({"net": {"name": name, "depth": 4, "kept": kept}, "net.route": route}), V)
    ids = np.arange(2 * 32).reshape(2, 32).astype(np.int32) % V
    batch = {"inputs_BxL": ids, "ex_B": np.arange(2, dtype=np.int32)}

    @jax.jit
    def decided(batch):
        return m.apply(m.init(jax.random.key(0), batch), batch, neutral_knobs())[1]

    aux = decided(batch)
    cost = m.pricing.decisions(m.net)
    assert len(set(cost.layers)) > 1
    for b in range(2):
        kept_RxL = np.asarray(aux.scores["kept"])[:, b]
        assert kept_RxL.sum(1).std() > 0
        total = cost.fixed
        for layer, kept_L in zip(cost.layers, kept_RxL, strict=True):
            total += sum(layer.token + layer.pair * (t + 1) for t in np.flatnonzero(kept_L))
        np.testing.assert_allclose(total, aux.hard_B[b], rtol=1e-6)
