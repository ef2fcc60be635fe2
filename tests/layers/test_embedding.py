"""What models read beside token ids: numbers, which scale an embedding, and n-grams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import trees
from cerebra_jax.cost import count
from cerebra_jax.layers import embedding
from cerebra_jax.models.model import build, neutral_knobs


def test_a_token_with_a_number_is_value_times_embedding_plus_the_bias_of_its_place():
    rng = np.random.RandomState(0)
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    values = rng.standard_normal((2, 3)).astype(np.float32)
    bias = rng.standard_normal((3, 4)).astype(np.float32)
    got = embedding.Columns().apply({"params": {"bias": bias}}, jnp.asarray(x), jnp.asarray(values))
    np.testing.assert_allclose(got, values[..., None] * x + bias[None], rtol=1e-6)


@pytest.mark.parametrize("name", ["transformer", "cerebra"])
def test_a_model_sees_the_numbers_of_its_batch(tiny_cfg, name):
    net = {"name": name, "causal": False, "outputs": 1, "depth": 1, "route": {"mode": "topk"}}
    model = build(tiny_cfg({"task": {"name": "tabular", "seq_len": 4}, "net": net}), 9)
    rng = np.random.RandomState(1)
    batch = {
        "inputs_BxL": np.array([[0, 1, 3, 5]] * 3, np.int32),
        "ex_B": np.arange(3, dtype=np.int32),
        "values_BxL": rng.standard_normal((3, 4)).astype(np.float32),
    }
    variables = model.init(jax.random.key(0), batch)
    assert variables["params"]["columns"]["bias"].shape == (4, 32)
    out = jax.jit(lambda batch: model.apply(variables, batch, neutral_knobs())[0].h)(batch)
    assert out.shape == (3, 1, 32)
    assert np.abs(np.asarray(out[0] - out[1])).max() > 1e-3  # the same ids, other numbers


def test_a_token_is_its_row_and_the_mean_of_its_n_grams():
    rng = np.random.RandomState(0)
    table = rng.standard_normal((30, 8)).astype(np.float32)
    ids, grams = rng.randint(0, 10, (2, 5)), rng.randint(10, 30, (2, 5, 4))
    grams[:, :, 2:] = np.where(rng.rand(2, 5, 2) < 0.5, -1, grams[:, :, 2:])
    grams[0, 0] = -1
    embed = embedding.Embed(30, 8)
    got, _ = embed.apply({"params": {"table": table}}, jnp.asarray(ids), jnp.asarray(grams))
    for b, t in np.ndindex(2, 5):
        mine = table[grams[b, t][grams[b, t] >= 0]]
        want = table[ids[b, t]] + (mine.mean(0) if len(mine) else 0.0)
        np.testing.assert_allclose(got[b, t], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["transformer", "cerebra", "cnn", "mlp"])
def test_models_learn_the_rows_of_n_grams_and_nothing_of_no_n_gram(tiny_cfg, name):
    """The gradient reaches the table where n-grams are, and the program costs its price."""
    L, G, V = 6, 3, 20
    net = {
        "name": name,
        "causal": False,
        "outputs": 2,
        "subwords": G,
        "depth": 1,
        "route": {"mode": "topk"},
    }
    model = build(tiny_cfg({"task": {"name": "intent", "seq_len": L}, "net": net}), V)
    places = np.arange(2 * L * G).reshape(2, L, G)
    grams = np.where(places % 5 == 0, -1, 10 + places % 7)
    batch = {
        "inputs_BxL": np.full((2, L), 3, np.int32),
        "ex_B": np.arange(2, dtype=np.int32),
        "subwords_BxLxG": grams.astype(np.int32),
    }
    variables = model.init(jax.random.key(0), batch)

    def answer(params):
        out, _ = model.apply(variables | {"params": params}, batch, neutral_knobs())
        return out.logits().sum(1)

    slopes = jax.jit(jax.grad(lambda p: answer(p)[:, 0].sum()))(variables["params"])
    slope_VxD = slopes["embed"]["table"]
    moved = set(np.flatnonzero(np.abs(slope_VxD).max(1)).tolist())
    assert moved == {3, *grams[grams >= 0].tolist()}
    assert count.count(answer, variables["params"]).flops == 2 * model.cost.executed_flops


@pytest.mark.parametrize("name", ["transformer", "cerebra", "chiar", "mod"])
def test_the_initial_weights_are_as_large_as_the_configuration_says(tiny_cfg, name):
    """Embedding, attention, FFN and short convolution grow with net.init_std; the rest does not."""
    batch = {
        "inputs_BxL": np.arange(32, dtype=np.int32).reshape(1, 32),
        "ex_B": np.zeros(1, np.int32),
    }
    leaves = []
    for std in (0.02, 0.04):
        net = {"name": name, "init_std": std, "local": 0 if name == "chiar" else 4}
        model = build(tiny_cfg({"net": net}), 32)
        made = model.init(jax.random.key(0), batch)["params"]
        leaves.append(trees.named_leaves(made))
    small, large = leaves
    grows = {path for path, x in small.items() if np.allclose(2 * x, large[path]) and np.any(x)}
    same = {path for path, x in small.items() if np.array_equal(x, large[path])}
    assert grows | same == set(small)
    for part in ("embed", "up/kernel", "down/kernel", "local"):
        assert all(path in grows for path in small if part in path)
    attention = {
        path for path in small if path.endswith(("/q/kernel", "/kv/kernel", "/out/kernel"))
    }
    assert attention
    assert attention <= grows
    assert not any("norm" in path or "bias" in path for path in grows)
