"""What a pooled head sees, and where it is pooled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.cost import count
from cerebra_jax.layers import head
from cerebra_jax.models.model import build, neutral_knobs


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_pool_sees_real_tokens_alone(pool):
    rng = np.random.RandomState(0)
    h = rng.standard_normal((3, 5, 4)).astype(np.float32)
    mask = np.arange(5)[None] < np.array([[5], [2], [1]])
    take = np.max if pool == "max" else np.mean
    rows = zip(h, mask, strict=True)
    want = np.stack([take(row[real], axis=0, keepdims=True) for row, real in rows])
    padded = np.where(mask[..., None], h, 100.0).astype(np.float32)
    for x in (h, padded, -padded):
        here = jnp.asarray(np.where(mask[..., None], h, x))
        np.testing.assert_allclose(head.pool(pool, here, jnp.asarray(mask)), want, rtol=1e-5)
    np.testing.assert_allclose(
        head.pool(pool, jnp.asarray(h), None), take(h, axis=1, keepdims=True), rtol=1e-5
    )
    assert np.isfinite(head.pool(pool, jnp.asarray(h), jnp.zeros((3, 5), bool))).all()


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_bag_has_no_order_and_no_first_map(tiny_cfg, pool):
    net = {"name": "mlp", "causal": False, "outputs": 2, "depth": 1, "pool": pool}
    model = build(tiny_cfg({"task": {"name": "intent", "seq_len": 4}, "net": net}), 9)
    assert set(model.cost.executed) == {"layer_00/ffn", "head"}
    batch = {
        "inputs_BxL": np.array([[1, 2, 3, 8], [3, 1, 2, 5], [4, 1, 2, 5]], np.int32),
        "mask_BxL": np.array([[True] * 3 + [False]] * 3),
        "ex_B": np.arange(3, dtype=np.int32),
    }
    variables = model.init(jax.random.key(0), batch)
    h = np.asarray(jax.jit(lambda: model.apply(variables, batch, neutral_knobs())[0].h)())
    np.testing.assert_allclose(h[0], h[1], rtol=1e-4, atol=1e-5)
    assert np.abs(h[0] - h[2]).max() > 1e-3


@pytest.mark.parametrize("name", ["transformer", "cerebra", "cnn"])
def test_before_the_last_norm_a_token_counts_by_its_size(tiny_cfg, name):
    """A token ten thousand times larger decides alone where it is pooled before the norm."""
    batch = {
        "inputs_BxL": np.array([[1, 2, 3, 4], [5, 2, 6, 7]], np.int32),
        "ex_B": np.arange(2, dtype=np.int32),
    }
    apart = {}
    for pool in ("", "mean"):
        net = {
            "name": name,
            "causal": False,
            "outputs": 2,
            "depth": 1,
            "pool": pool,
            "route": {"mode": "topk"},
        }
        model = build(tiny_cfg({"task": {"name": "intent", "seq_len": 4}, "net": net}), 9)
        variables = model.init(jax.random.key(0), batch)
        table = variables["params"]["embed"]["table"]
        variables["params"]["embed"]["table"] = table.at[2].multiply(1e4)
        out = jax.jit(lambda m=model, v=variables: m.apply(v, batch, neutral_knobs())[0])()
        assert out.h.shape == (2, 1, 32)
        apart[pool] = float(np.abs(out.h[0] - out.h[1]).max())
    assert apart["mean"] < 0.05 < 0.2 < apart[""]


@pytest.mark.parametrize("name", ["transformer", "cerebra", "cnn", "mlp"])
def test_what_is_pooled_passes_one_more_ffn_that_is_paid_for(tiny_cfg, name):
    L, V = 5, 9
    batch = {
        "inputs_BxL": np.arange(10).reshape(2, L).astype(np.int32) % V,
        "ex_B": np.arange(2, dtype=np.int32),
    }
    net = {
        "name": name,
        "causal": False,
        "outputs": 2,
        "depth": 1,
        "pool": "mean",
        "route": {"mode": "topk"},
    }
    task = {"name": "intent", "seq_len": L}
    plain = build(tiny_cfg({"task": task, "net": net}), V)
    more = build(tiny_cfg({"task": task, "net": net | {"pooler": True}}), V)
    variables = more.init(jax.random.key(0), batch)
    extra = {k: variables["params"].pop(k) for k in ("pooler", "pooler_norm")}

    def answer(model, params):
        out, _ = model.apply(variables | {"params": params}, batch, neutral_knobs())
        return out.logits().sum(1)

    old = jax.jit(lambda: answer(plain, variables["params"]))()
    new = jax.jit(lambda p: answer(more, variables["params"] | p))
    nothing = jax.tree.map(jnp.zeros_like, extra["pooler"]["down"])
    silent = extra | {"pooler": extra["pooler"] | {"down": nothing}}
    np.testing.assert_allclose(new(silent), old, rtol=1e-5, atol=1e-6)
    loud = extra | {"pooler": jax.tree.map(lambda w: 10 * w + 0.1, extra["pooler"])}
    assert np.abs(new(loud) - old).max() > 1e-4
    both = variables["params"] | extra
    assert count.count(lambda p: answer(more, p), both).flops == 2 * more.cost.executed_flops


@pytest.mark.parametrize("name", ["transformer", "cerebra", "mlp"])
def test_without_branches_a_model_begins_as_a_bag_of_its_tokens(tiny_cfg, name):
    """With net.branch=0 the last norm sees the mean of the embeddings, whatever the depth."""
    net = {"name": name, "causal": False, "outputs": 2, "pool": "mean", "pooler": True}
    net["route"] = {"mode": "topk"}
    batch = {
        "inputs_BxL": np.array([[1, 2, 3, 4], [5, 2, 6, 7]], np.int32),
        "ex_B": np.arange(2, dtype=np.int32),
    }
    apart = {}
    for branch in (0.0, 1.0):
        cfg = tiny_cfg({"task": {"name": "intent", "seq_len": 4}, "net": net | {"branch": branch}})
        model = build(cfg, 9)
        variables = model.init(jax.random.key(0), batch)
        h = jax.jit(lambda m=model, v=variables: m.apply(v, batch, neutral_knobs())[0].h)()
        bag = variables["params"]["embed"]["table"][batch["inputs_BxL"]].mean(1, keepdims=True)
        bag = (bag - bag.mean(-1, keepdims=True)) / np.sqrt(bag.var(-1, keepdims=True) + 1e-5)
        apart[branch] = float(np.abs(h - bag).max())
    assert apart[0.0] < 1e-4 < 1e-2 < apart[1.0]
