"""Decoding beside the contract: segments, the end of the context, cache sizes, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.errors import UserError
from cerebra_jax.models import registry
from cerebra_jax.models.model import build, neutral_knobs
from cerebra_jax.testing import assert_decodes

V = 20


def made(cfg):
    """Returns a model, random variables, and its decoding step with logits."""
    model = build(cfg, V)
    ids = np.zeros((1, cfg.task.seq_len), np.int32)
    batch = {"inputs_BxL": ids, "ex_B": np.zeros(1, np.int32)}
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))
    rng = np.random.RandomState(0)

    def fill(path, s):
        centre = 1.0 if path[-1].key in ("scale", "w") else 0.0
        return jnp.asarray(centre + 0.2 * rng.standard_normal(s.shape), jnp.float32)

    params = jax.tree_util.tree_map_with_path(fill, variables["params"])
    routing = registry.init_routing(cfg.net)
    variables = {"params": params, "routing": routing}

    def decode(cache, ids_Bxn, new_B=None):
        out, cache = model.decode(variables, cache, ids_Bxn, new_B)
        return out.logits(), cache

    return model, variables, decode


RANDOM = {"mode": "random", "kv": "routed"}


@pytest.mark.parametrize(
    "net",
    [
        {"name": "chiar", "depth": 3},
        {"name": "cerebra", "depth": 2, "route": RANDOM, "compress": {"r": 0.07}},
        {"name": "cerebra", "depth": 2, "route": RANDOM | {"by_layer": "0.1,2"}},
        {"name": "cerebra", "depth": 1, "heavy": "gla", "light": "ssm", "route": RANDOM},
        {"name": "cerebra", "depth": 1, "heavy": "ssm", "light": "none", "route": RANDOM},
    ],
)
def test_every_segment_has_its_own_slots(net, tiny_cfg):
    """1,100 tokens are two segments; more want the heavy path than there are slots."""
    L = 1100
    cfg = tiny_cfg({"net": net | {"width": 8, "heads": 1, "ffn_width": 8}, "task.seq_len": L})
    route = dataclasses.replace(cfg.net.route, capacity=0.7)
    cfg = dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, route=route))
    model, variables, decode = made(cfg)
    ids = np.random.RandomState(1).randint(0, V, (2, L)).astype(np.int32)
    if net["name"] == "chiar":
        variables["routing"]["tau"] = jnp.full(1, 0.7)
    overflow = []

    @jax.jit
    def full(ids):
        batch = {"inputs_BxL": ids, "ex_B": jnp.arange(2)}
        out, aux = model.apply(variables, batch, neutral_knobs())
        return (out.logits(), aux.scores["kept"]), aux.stats["overflow"]

    def watched(ids):
        outputs, over = full(ids)
        overflow.append(float(over.mean()))
        return outputs

    cache = model.init_cache(jnp.arange(2))
    assert_decodes(watched, decode, cache, ids, chunk=150, decisions=lambda cache: cache.kept_RxBxL)
    assert 0 < overflow[0] < 1


def test_a_full_row_changes_no_more_and_prompts_of_any_length_share_a_batch(tiny_cfg):
    cfg = tiny_cfg({"net.name": "cerebra", "task.seq_len": 8})
    model, _, decode = made(cfg)
    step, ids = jax.jit(decode), np.random.RandomState(0).randint(0, V, (3, 12)).astype(np.int32)
    cache = model.init_cache(jnp.arange(3))
    _, cache = step(cache, ids, jnp.array([0, 5, 12]))
    # 12 tokens in a context of 8: the rest leaves no trace
    np.testing.assert_array_equal(cache.pos_B, [0, 5, 8])
    y, after = step(cache, ids, jnp.array([3, 0, 12]))
    np.testing.assert_array_equal(after.pos_B, [3, 5, 8])
    assert np.isfinite(y).all()
    # rows that read nothing, or are full, stay as they are
    for old, new in zip(jax.tree.leaves(cache.layers), jax.tree.leaves(after.layers), strict=True):
        np.testing.assert_array_equal(old[1:], new[1:])
    first, _ = step(model.init_cache(jnp.arange(3)), ids, jnp.array([3, 3, 3]))
    np.testing.assert_array_equal(y[0, :3], first[0, :3])


def test_the_cache_of_routed_keys_is_as_small_as_its_slots(tiny_cfg):
    def size(name, kv):
        route = {"kv": kv, "capacity": 1.0}
        cfg = tiny_cfg({"net.name": name, "net.route": route, "net.compress.r": 0.05})
        leaves = jax.eval_shape(lambda: build(cfg, V).init_cache(jnp.arange(2))).layers
        return sum(x.size for x in jax.tree.leaves(leaves) if x.ndim == 4)

    assert size("chiar", "routed") == size("chiar", "all") / 4
    assert size("cerebra", "routed") < size("cerebra", "all") / 3


def test_what_cannot_be_decoded_is_refused_in_one_line(tiny_cfg):
    cfg = tiny_cfg({"net.name": "cerebra"})
    for changes, what in (
        ({"causal": False}, "encoder"),
        ({"causal": False, "route": dataclasses.replace(cfg.net.route, mode="topk")}, "encoder"),
        ({"outputs": 3}, "logits"),
        ({"name": "cnn"}, "no cache"),
        ({"name": "chiar", "route": dataclasses.replace(cfg.net.route, meta="batch")}, "batch"),
    ):
        model = build(dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, **changes)), V)
        with pytest.raises(UserError, match=what) as error:
            model.init_cache(jnp.arange(1))
        assert "\n" not in str(error.value)
