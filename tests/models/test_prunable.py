"""Units of a model: masked, and cut away, they leave the same function; their slopes are those of the loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.models import prunable as units
from cerebra_jax.models.model import MODELS, build, neutral_knobs
from cerebra_jax.trees import named_leaves

V, B, L = 40, 3, 24
CASES = {
    "dense": {"net": {"name": "transformer", "ffn": "gated"}},
    "cerebra": {
        "net": {"name": "cerebra", "route": {"kv": "routed"}, "compress": {"reconstruct": 0.1}}
    },
    "cerebra-attention-part": {
        "net": {"name": "cerebra", "local": 3, "route": {"part": "attention"}}
    },
    "cerebra-hybrid-soft": {
        "net": {"name": "cerebra", "route": {"mode": "soft"}, "compress": {"kind": "hybrid"}}
    },
    "cerebra-compressed": {"net": {"name": "cerebra", "route": {"mode": "always_compressed"}}},
    "cerebra-encoder": {
        "net": {
            "name": "cerebra",
            "causal": False,
            "outputs": 3,
            "pool": "mean",
            "pooler": True,
            "route": {"mode": "topk", "kv": "routed"},
            "compress": {"kind": "attention", "r": 0.3, "s": 0.6},
        },
        "task.name": "tabular",
    },
    "chiar": {"net": {"depth": 4, "route": {"kv": "routed"}}},
    "chiar-always-full": {"net": {"depth": 3, "route": {"mode": "always_full"}}},
    "chiar-soft": {"net": {"depth": 3, "route": {"mode": "soft"}}},
    "chiar-rbf": {"net": {"depth": 4, "route": {"rbf": 0.3}}},
}


class Tiny:
    """A model with large random parameters, its loss, and its units."""

    def __init__(self, cfg):
        self.cfg, self.model = cfg, build(cfg, V)
        rng = np.random.RandomState(0)
        ids = rng.randint(0, V, (B, L)).astype(np.int32)
        self.batch = {"inputs_BxL": ids, "ex_B": np.arange(B, dtype=np.int32)}
        made = jax.eval_shape(self.model.init, jax.random.key(0), self.batch)["params"]

        def fill(path, s):
            centre = 1.0 if path[-1].key in ("scale", "w") else 0.0
            return np.asarray(centre + 0.1 * rng.standard_normal(s.shape), np.float32)

        self.params = jax.tree_util.tree_map_with_path(fill, made)
        self.routing, self.groups = MODELS[cfg.net.name].routing(cfg.net), units.groups(cfg.net)
        self.run = jax.jit(self.out)

    def out(self, params, model=None):
        found, aux = (model or self.model).apply(
            {"params": params, "routing": self.routing}, self.batch, neutral_knobs()
        )
        losses = [x.sum() for x in aux.losses.values()]
        return jnp.einsum("bld,vd->blv", found.h, found.head_VxD), jnp.stack(
            [*losses, jnp.zeros(())]
        ).sum()

    def loss(self, params):
        logits_BxLxV, more = self.out(params)
        return jnp.square(jax.nn.logsumexp(logits_BxLxV, -1) - logits_BxLxV[..., 1]).mean() + more

    def masks(self, draw):
        return {"units": {g.name: draw(g).astype(np.float32) for g in self.groups}}


@pytest.fixture(scope="module")
def tiny(tiny_cfg):
    made = {}

    def get(case):
        if case not in made:
            made[case] = Tiny(
                tiny_cfg({"task.seq_len": L, "net.heads": 4, "net.depth": 2} | CASES[case])
            )
        return made[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_masked_is_shrunk(case, tiny, tiny_cfg):
    """To 1e-5, the auxiliary losses too; the shape is in the configuration, and every parameter is accounted for."""
    m, rng = tiny(case), np.random.RandomState(1)

    def some(g):
        mask = rng.rand(g.n) < 0.5
        mask[rng.randint(g.n)] = True
        return mask

    masks = m.masks(some)
    params = units.masked(m.params, masks)
    kept = {name: np.flatnonzero(mask) for name, mask in masks["units"].items()}
    small = tiny_cfg({"task.seq_len": L, "net.heads": 4, "net.depth": 2} | CASES[case])
    object.__setattr__(
        small, "net", units.shape_of(small.net, {name: len(j) for name, j in kept.items()})
    )
    model = build(small, V)
    named = units.cut({f"params/{k}": v for k, v in named_leaves(params).items()}, m.groups, kept)
    want = jax.eval_shape(model.init, jax.random.key(0), m.batch)["params"]
    assert {k: v.shape for k, v in named.items()} == {
        f"params/{k}": v.shape for k, v in named_leaves(want).items()
    }
    tree: dict = {}
    for name, leaf in named.items():
        *path, last = name.split("/")[1:]
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = leaf
    (got, more), (masked, masked_more) = jax.jit(lambda p: m.out(p, model))(tree), m.run(params)
    np.testing.assert_allclose(got, masked, atol=1e-5 * float(np.abs(masked).max()))
    np.testing.assert_allclose(more, masked_more, rtol=1e-5)
    assert np.abs(masked - m.run(m.params)[0]).max() > 1e-2 * np.abs(masked).max()
    assert model.cost.executed_flops < m.model.cost.executed_flops and model.dense == m.model.dense
    again = units.groups(small.net)
    assert {g.name: g.n for g in again if g.kind in units.KINDS} == {
        g.name: len(kept[g.name]) for g in m.groups if g.kind in units.KINDS
    }


@pytest.mark.parametrize("case", ["dense", "cerebra-hybrid-soft", "chiar-soft"])
def test_a_slope_is_what_scaling_a_unit_does_to_the_loss(case, tiny):
    """dL/dm against central differences, where no decision is a step."""
    m = tiny(case)
    ones = m.masks(lambda g: np.ones(g.n))
    loss = jax.jit(lambda u: m.loss(units.masked(m.params, {"units": u})))
    slopes = jax.jit(jax.grad(loss))(ones["units"])
    rng = np.random.RandomState(2)
    for g in m.groups:
        j, h = rng.randint(g.n), 1e-2
        moved = [
            ones["units"] | {g.name: np.where(np.arange(g.n) == j, 1 + s, 1).astype(np.float32)}
            for s in (h, -h)
        ]
        up, down = (float(loss(u)) for u in moved)
        scale = float(np.abs(slopes[g.name]).max()) + 1e-4
        assert abs((up - down) / (2 * h) - float(slopes[g.name][j])) < 0.05 * scale, g.name


def test_slopes_rank_units_like_their_true_removal(tiny):
    """First order, on a net whose units matter little each: the rank correlation with exact ablation is high."""
    m = tiny("dense")
    small = jax.tree.map(lambda w: w, m.params)
    for i in range(m.cfg.net.depth):
        small[f"layer_{i:02d}"]["ffn"]["down"]["kernel"] = (
            0.1 * small[f"layer_{i:02d}"]["ffn"]["down"]["kernel"]
        )
    ones = m.masks(lambda g: np.ones(g.n))["units"]
    loss = jax.jit(lambda u: m.loss(units.masked(small, {"units": u})))
    slopes, base = jax.jit(jax.grad(loss))(ones), float(loss(ones))
    name = "layer_01/ffn/down/kernel"
    n = len(ones[name])
    true = [
        float(loss(ones | {name: (np.arange(n) != j).astype(np.float32)})) - base for j in range(n)
    ]
    ranks = [np.argsort(np.argsort(np.abs(x))) for x in (true, np.asarray(slopes[name]))]
    assert np.corrcoef(*ranks)[0, 1] > 0.95


@pytest.mark.parametrize("case", ["dense", "cerebra", "cerebra-encoder", "chiar"])
def test_with_everything_pruned_all_is_finite(case, tiny):
    m = tiny(case)
    none = m.masks(lambda g: np.zeros(g.n))
    value, (grads, slopes) = jax.jit(
        jax.value_and_grad(lambda p, u: m.loss(units.masked(p, {"units": u})), argnums=(0, 1))
    )(m.params, none["units"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, grads, slopes)))
    dead = named_leaves(grads)
    assert all(np.abs(dead[g.name]).max() == 0 for g in m.groups)  # what is masked learns nothing


def test_masks_over_single_weights(tiny):
    m = tiny("dense")
    name = "layer_00/ffn/up/kernel"
    w = named_leaves(m.params)[name]
    mask = (np.arange(w.size).reshape(w.shape) % 3 > 0).astype(np.float32)
    got = units.masked(m.params, {"units": {}, "elements": {name: mask}})
    np.testing.assert_array_equal(named_leaves(got)[name], w * mask)
    np.testing.assert_array_equal(named_leaves(m.params)[name], w)
    assert units.masked(m.params, {}) is m.params
