"""What result.json counts: parameters outside of embedding and head, whatever the model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from cerebra_jax.models import registry
from cerebra_jax.models.model import build
from cerebra_jax.training import results

BATCH = {"inputs_BxL": jnp.zeros((1, 16), jnp.int32), "ex_B": jnp.arange(1)}


ENCODERS = ("fnet", "mlp")  # which predict no next token
MODELS = [(name, outputs) for name in registry.names() for outputs in (0, 3)]


@pytest.mark.parametrize(
    ("name", "outputs"), [model for model in MODELS if model not in {(n, 0) for n in ENCODERS}]
)
def test_parameters_outside_of_embedding_and_head_do_not_grow_with_them(tiny_cfg, name, outputs):
    """A vocabulary or a number of classes twice as large adds nothing to them."""
    route = {"mode": "topk" if outputs else "threshold", "kv": "routed"}
    cfg = tiny_cfg({"task.seq_len": 16, "net.name": "transformer", "net.route": route})
    counts = []
    for times in (1, 2):
        net = dataclasses.replace(
            cfg.net, name=name, causal=not outputs, outputs=times * outputs, window=7, ssm_state=4
        )
        model = build(dataclasses.replace(cfg, net=net), 40 * times)
        shapes = jax.eval_shape(lambda model=model: model.init(jax.random.key(0), BATCH))
        params = shapes["params"]
        counts.append((results.parameters(params), results.non_embedding(params)))
    (all_1, inner_1), (all_2, inner_2) = counts
    assert inner_1 == inner_2 > 0
    assert all_1 - inner_1 == (40 + outputs) * cfg.net.width
    assert all_2 - inner_2 == 2 * (all_1 - inner_1)
