"""Numbers in a batch: they scale their token's embedding, and each place has a bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.models import block
from cerebra_jax.models.build import build, neutral_knobs


def test_a_token_with_a_number_is_value_times_embedding_plus_the_bias_of_its_place():
    rng = np.random.RandomState(0)
    x, values = rng.standard_normal((2, 3, 4)).astype(np.float32), rng.standard_normal((2, 3)).astype(np.float32)
    bias = rng.standard_normal((3, 4)).astype(np.float32)
    got = block.Columns().apply({"params": {"bias": bias}}, jnp.asarray(x), jnp.asarray(values))
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
    assert out.shape == (3, 1, 32) and np.abs(np.asarray(out[0] - out[1])).max() > 1e-3  # the same ids, other numbers
