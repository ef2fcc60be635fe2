"""What models read beside token ids: numbers, which scale an embedding, and n-grams; and what a pooled head sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.layers import ends
from cerebra_jax.models.model import build, neutral_knobs


def test_a_token_with_a_number_is_value_times_embedding_plus_the_bias_of_its_place():
    rng = np.random.RandomState(0)
    x, values = (
        rng.standard_normal((2, 3, 4)).astype(np.float32),
        rng.standard_normal((2, 3)).astype(np.float32),
    )
    bias = rng.standard_normal((3, 4)).astype(np.float32)
    got = ends.Columns().apply({"params": {"bias": bias}}, jnp.asarray(x), jnp.asarray(values))
    np.testing.assert_allclose(got, values[..., None] * x + bias[None], rtol=1e-6)


@pytest.mark.parametrize("name", ["transformer", "cerebra"])
def test_a_model_sees_the_numbers_of_its_batch(tiny_cfg, name):
    net = {"name": name, "causal": False, "outputs": 1, "depth": 1, "route": {"mode": "topk"}}
    model = build(tiny_cfg({"task": {"name": "tabular", "seq_len": 4}, "net": net}), 9)
    rng = np.random.RandomState(1)
    batch = {"inputs_BxL": np.array([[0, 1, 3, 5]] * 3, np.int32), "ex_B": np.arange(3, dtype=np.int32),
             "values_BxL": rng.standard_normal((3, 4)).astype(np.float32)}  # fmt: skip
    variables = model.init(jax.random.key(0), batch)
    assert variables["params"]["columns"]["bias"].shape == (4, 32)
    out = jax.jit(lambda batch: model.apply(variables, batch, neutral_knobs())[0].h)(batch)
    assert (
        out.shape == (3, 1, 32) and np.abs(np.asarray(out[0] - out[1])).max() > 1e-3
    )  # the same ids, other numbers


def test_a_token_is_its_row_and_the_mean_of_its_n_grams():
    rng = np.random.RandomState(0)
    table = rng.standard_normal((30, 8)).astype(np.float32)
    ids, grams = rng.randint(0, 10, (2, 5)), rng.randint(10, 30, (2, 5, 4))
    grams[:, :, 2:] = np.where(rng.rand(2, 5, 2) < 0.5, -1, grams[:, :, 2:])
    grams[0, 0] = -1
    embed = ends.Embed(30, NetCfg(width=8))
    got, _ = embed.apply({"params": {"table": table}}, jnp.asarray(ids), jnp.asarray(grams))
    for b, t in np.ndindex(2, 5):
        mine = table[grams[b, t][grams[b, t] >= 0]]
        want = table[ids[b, t]] + (mine.mean(0) if len(mine) else 0.0)
        np.testing.assert_allclose(got[b, t], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["transformer", "cerebra", "cnn", "mlp"])
def test_models_learn_the_rows_of_n_grams_and_nothing_of_no_n_gram(tiny_cfg, name):
    """The gradient reaches the table where n-grams are, and the program still costs what its price says."""
    L, G, V = 6, 3, 20  # noqa: N806
    net = {
        "name": name,
        "causal": False,
        "outputs": 2,
        "subwords": G,
        "depth": 1,
        "route": {"mode": "topk"},
    }
    model = build(tiny_cfg({"task": {"name": "intent", "seq_len": L}, "net": net}), V)
    grams = np.where(
        np.arange(2 * L * G).reshape(2, L, G) % 5 == 0,
        -1,
        10 + np.arange(2 * L * G).reshape(2, L, G) % 7,
    )
    batch = {"inputs_BxL": np.full((2, L), 3, np.int32), "ex_B": np.arange(2, dtype=np.int32),
             "subwords_BxLxG": grams.astype(np.int32)}  # fmt: skip
    variables = jax.jit(lambda: model.init(jax.random.key(0), batch))()

    def answer(params):
        out, _ = model.apply(variables | {"params": params}, batch, neutral_knobs())
        return jnp.einsum("bld,vd->bv", out.h, out.head_VxD)

    slope_VxD = jax.jit(jax.grad(lambda p: answer(p)[:, 0].sum()))(variables["params"])["embed"][
        "table"
    ]
    moved = set(np.flatnonzero(np.abs(slope_VxD).max(1)).tolist())
    assert moved == {3, *grams[grams >= 0].tolist()}
    assert jaxpr.count(answer, variables["params"]).flops == 2 * model.cost.executed_flops


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_pool_sees_real_tokens_alone(pool):
    rng = np.random.RandomState(0)
    h, mask = (
        rng.standard_normal((3, 5, 4)).astype(np.float32),
        np.arange(5)[None] < np.array([[5], [2], [1]]),
    )
    take = np.max if pool == "max" else np.mean
    want = np.stack(
        [take(row[real], axis=0, keepdims=True) for row, real in zip(h, mask, strict=True)]
    )
    padded = np.where(mask[..., None], h, 100.0).astype(np.float32)
    for x in (h, padded, -padded):
        here = jnp.asarray(np.where(mask[..., None], h, x))
        np.testing.assert_allclose(ends.pool(pool, here, jnp.asarray(mask)), want, rtol=1e-5)
    np.testing.assert_allclose(
        ends.pool(pool, jnp.asarray(h), None), take(h, axis=1, keepdims=True), rtol=1e-5
    )
    assert np.isfinite(ends.pool(pool, jnp.asarray(h), jnp.zeros((3, 5), bool))).all()


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_bag_has_no_order_and_no_first_map(tiny_cfg, pool):
    net = {"name": "mlp", "causal": False, "outputs": 2, "depth": 1, "pool": pool}
    model = build(tiny_cfg({"task": {"name": "intent", "seq_len": 4}, "net": net}), 9)
    assert set(model.cost.executed) == {"layer_00/ffn", "head"}
    batch = {"inputs_BxL": np.array([[1, 2, 3, 8], [3, 1, 2, 5], [4, 1, 2, 5]], np.int32),
             "mask_BxL": np.array([[True] * 3 + [False]] * 3), "ex_B": np.arange(3, dtype=np.int32)}  # fmt: skip
    variables = model.init(jax.random.key(0), batch)
    h = np.asarray(jax.jit(lambda: model.apply(variables, batch, neutral_knobs())[0].h)())
    np.testing.assert_allclose(h[0], h[1], rtol=1e-4, atol=1e-5)
    assert np.abs(h[0] - h[2]).max() > 1e-3


@pytest.mark.parametrize("name", ["transformer", "cerebra", "cnn"])
def test_before_the_last_norm_a_token_counts_by_its_size(tiny_cfg, name):
    """One token whose embedding is ten thousand times larger decides alone where it is pooled before the norm."""
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
        variables = jax.jit(lambda m=model: m.init(jax.random.key(0), batch))()
        table = variables["params"]["embed"]["table"]
        variables["params"]["embed"]["table"] = table.at[2].multiply(1e4)
        out = jax.jit(lambda m=model, v=variables: m.apply(v, batch, neutral_knobs())[0])()
        assert out.h.shape == (2, 1, 32)
        apart[pool] = float(np.abs(out.h[0] - out.h[1]).max())
    assert apart["mean"] < 0.05 < 0.2 < apart[""]


@pytest.mark.parametrize("name", ["transformer", "cerebra", "cnn", "mlp"])
def test_what_is_pooled_passes_one_more_ffn_that_is_paid_for(tiny_cfg, name):
    L, V = 5, 9  # noqa: N806
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
    plain, more = (build(tiny_cfg({"task": {"name": "intent", "seq_len": L}, "net": net | {"pooler": p}}), V)
                   for p in (False, True))  # fmt: skip
    variables = jax.jit(lambda: more.init(jax.random.key(0), batch))()
    extra = {k: variables["params"].pop(k) for k in ("pooler", "pooler_norm")}

    def answer(model, params):
        out, _ = model.apply(variables | {"params": params}, batch, neutral_knobs())
        return jnp.einsum("bld,vd->bv", out.h, out.head_VxD)

    old = jax.jit(lambda: answer(plain, variables["params"]))()
    new = jax.jit(lambda p: answer(more, variables["params"] | p))
    silent = extra | {
        "pooler": extra["pooler"] | {"down": jax.tree.map(jnp.zeros_like, extra["pooler"]["down"])}
    }
    np.testing.assert_allclose(new(silent), old, rtol=1e-5, atol=1e-6)
    loud = extra | {"pooler": jax.tree.map(lambda w: 10 * w + 0.1, extra["pooler"])}
    assert np.abs(new(loud) - old).max() > 1e-4
    both = variables["params"] | extra
    assert jaxpr.count(lambda p: answer(more, p), both).flops == 2 * more.cost.executed_flops


@pytest.mark.parametrize("name", ["transformer", "cerebra", "mlp"])
def test_without_branches_a_model_begins_as_a_bag_of_its_tokens(tiny_cfg, name):
    """net.branch=0: the last norm sees the mean of the embeddings, however many layers there are."""
    net = {"name": name, "causal": False, "outputs": 2, "branch": 0.0, "pool": "mean", "pooler": True,
           "route": {"mode": "topk"}}  # fmt: skip
    batch = {
        "inputs_BxL": np.array([[1, 2, 3, 4], [5, 2, 6, 7]], np.int32),
        "ex_B": np.arange(2, dtype=np.int32),
    }
    apart = {}
    for branch in (0.0, 1.0):
        cfg = tiny_cfg({"task": {"name": "intent", "seq_len": 4}, "net": net | {"branch": branch}})
        model = build(cfg, 9)
        variables = jax.jit(lambda m=model: m.init(jax.random.key(0), batch))()
        h = jax.jit(lambda m=model, v=variables: m.apply(v, batch, neutral_knobs())[0].h)()
        bag = variables["params"]["embed"]["table"][batch["inputs_BxL"]].mean(1, keepdims=True)
        bag = (bag - bag.mean(-1, keepdims=True)) / np.sqrt(bag.var(-1, keepdims=True) + 1e-5)
        apart[branch] = float(np.abs(h - bag).max())
    assert apart[0.0] < 1e-4 < 1e-2 < apart[1.0]


@pytest.mark.parametrize("name", ["transformer", "cerebra", "chiar", "mod"])
def test_the_initial_weights_are_as_large_as_the_configuration_says(tiny_cfg, name):
    """Embedding, attention, FFN and short convolution grow with net.init_std; norms, biases and routers do not."""
    batch = {
        "inputs_BxL": np.arange(32, dtype=np.int32).reshape(1, 32),
        "ex_B": np.zeros(1, np.int32),
    }
    leaves = []
    for std in (0.02, 0.04):
        net = {"name": name, "init_std": std, "local": 0 if name == "chiar" else 4}
        model = build(tiny_cfg({"net": net}), 32)
        made = jax.jit(lambda m=model: m.init(jax.random.key(0), batch))()["params"]
        leaves.append(
            {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(made)}
        )
    grows = {
        path
        for path, leaf in leaves[0].items()
        if np.allclose(2 * leaf, leaves[1][path]) and np.any(leaf)
    }
    same = {path for path, leaf in leaves[0].items() if np.array_equal(leaf, leaves[1][path])}
    assert grows | same == set(leaves[0])
    for part in ("embed", "['up']['kernel']", "['down']['kernel']", "['local']"):
        assert all(path in grows for path in leaves[0] if part in path)
    attention = [
        path
        for path in leaves[0]
        if "kernel" in path and any(f"['{w}']" in path for w in ("q", "kv", "out"))
    ]
    assert attention and set(attention) <= grows
    assert not any("norm" in path or "bias" in path for path in grows)
