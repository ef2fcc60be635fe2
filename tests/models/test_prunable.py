"""Units of a model: masked or cut away, they leave the same function; slopes are the loss's."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.layers import prunable as units
from cerebra_jax.models import prunable, registry
from cerebra_jax.models.model import build, neutral_knobs
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
        self.routing = registry.init_routing(cfg.net)
        self.groups = prunable.groups(cfg.net)
        self.run = jax.jit(self.out)
        # params, units -> loss, (gradients, slopes)
        self.slopes = jax.jit(jax.value_and_grad(self.masked_loss, argnums=(0, 1)))

    def out(self, params, model=None):
        """Logits, and the sum of the auxiliary losses."""
        own = {"params": params, "routing": self.routing}
        found, aux = (model or self.model).apply(own, self.batch, neutral_knobs())
        losses = [x.sum() for x in aux.losses.values()]
        return found.logits(), jnp.stack([*losses, jnp.zeros(())]).sum()

    def masked_loss(self, params, masks):
        logits_BxLxV, more = self.out(units.masked(params, {"units": masks}))
        return jnp.square(jax.nn.logsumexp(logits_BxLxV, -1) - logits_BxLxV[..., 1]).mean() + more

    def masks(self, draw):
        return {group.name: draw(group).astype(np.float32) for group in self.groups}


def ones(group):
    return np.ones(group.n)


def nested(named):
    """The tree of parameters with these names, params/…."""
    tree: dict = {}
    for name, leaf in named.items():
        *path, last = name.split("/")[1:]
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def sizes(params, prefix=""):
    return {prefix + name: leaf.shape for name, leaf in params.items()}


@pytest.fixture(scope="module")
def configured(tiny_cfg):
    def get(case):
        return tiny_cfg({"task.seq_len": L, "net.heads": 4, "net.depth": 2} | CASES[case])

    return get


@pytest.fixture(scope="module")
def tiny(configured):
    made = {}

    def get(case):
        if case not in made:
            made[case] = Tiny(configured(case))
        return made[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_masked_is_shrunk(case, tiny, configured):
    """To 1e-5, the auxiliary losses too; every parameter is accounted for.

    The shape that is left is in the configuration.
    """
    m, rng = tiny(case), np.random.RandomState(1)

    def some(group):
        mask = rng.rand(group.n) < 0.5
        mask[rng.randint(group.n)] = True
        return mask

    # the smaller model, and its parameters
    masks = m.masks(some)
    params = units.masked(m.params, {"units": masks})
    left = {name: np.flatnonzero(mask) for name, mask in masks.items()}
    small = configured(case)
    net = prunable.shape_of(small.net, {name: len(own) for name, own in left.items()})
    model = build(dataclasses.replace(small, net=net), V)
    flat = {f"params/{name}": leaf for name, leaf in named_leaves(params).items()}
    named = units.cut(flat, m.groups, left)
    want = jax.eval_shape(model.init, jax.random.key(0), m.batch)["params"]
    assert sizes(named) == sizes(named_leaves(want), "params/")

    # it is the masked model, which is another one than the whole
    got, more = jax.jit(lambda params: m.out(params, model))(nested(named))
    masked, masked_more = m.run(params)
    largest = float(np.abs(masked).max())
    np.testing.assert_allclose(got, masked, atol=1e-5 * largest)
    np.testing.assert_allclose(more, masked_more, rtol=1e-5)
    assert np.abs(masked - m.run(m.params)[0]).max() > 1e-2 * largest
    assert model.cost.executed_flops < m.model.cost.executed_flops
    assert model.dense == m.model.dense

    # and has the units that are left
    again = {group.name: group.n for group in prunable.groups(net) if group.kind in units.KINDS}
    assert again == {g.name: len(left[g.name]) for g in m.groups if g.kind in units.KINDS}


@pytest.mark.parametrize("case", ["dense", "cerebra-hybrid-soft", "chiar-soft"])
def test_a_slope_is_what_scaling_a_unit_does_to_the_loss(case, tiny):
    """dL/dm against central differences, where no decision is a step."""
    m = tiny(case)
    everything = m.masks(ones)
    slopes = m.slopes(m.params, everything)[1][1]
    rng, h = np.random.RandomState(2), 1e-2
    for group in m.groups:
        j = rng.randint(group.n)

        def loss(scale, group=group, j=j):
            mask = np.where(np.arange(group.n) == j, scale, 1).astype(np.float32)
            return float(m.slopes(m.params, everything | {group.name: mask})[0])

        difference = (loss(1 + h) - loss(1 - h)) / (2 * h)
        size = float(np.abs(slopes[group.name]).max()) + 1e-4
        assert abs(difference - float(slopes[group.name][j])) < 0.05 * size, group.name


def test_slopes_rank_units_like_their_true_removal(tiny):
    """First order: on a net whose units matter little each, they rank as exact ablation does."""
    m = tiny("dense")
    small = jax.tree.map(lambda w: w, m.params)
    for i in range(m.cfg.net.depth):
        down = small[f"layer_{i:02d}"]["ffn"]["down"]
        down["kernel"] = 0.1 * down["kernel"]
    everything = m.masks(ones)
    base, (_, slopes) = m.slopes(small, everything)
    name = "layer_01/ffn/down/kernel"
    n = len(everything[name])

    def without(j):
        mask = (np.arange(n) != j).astype(np.float32)
        return float(m.slopes(small, everything | {name: mask})[0])

    true = [without(j) - float(base) for j in range(n)]
    ranks = [np.argsort(np.argsort(np.abs(x))) for x in (true, np.asarray(slopes[name]))]
    assert np.corrcoef(*ranks)[0, 1] > 0.95


@pytest.mark.parametrize("case", ["dense", "cerebra", "cerebra-encoder", "chiar"])
def test_with_everything_pruned_all_is_finite(case, tiny):
    m = tiny(case)
    found = m.slopes(m.params, m.masks(lambda group: np.zeros(group.n)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    dead = named_leaves(found[1][0])
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
