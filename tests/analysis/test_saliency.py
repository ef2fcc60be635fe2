"""Gradient norms are those of finite differences at the layer's input, by the decisions taken."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.analysis import saliency as gradients
from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models import model as models

V = 17
L = 12
B = 2
D = 8
# keys, and the module whose input each routed layer's is
MODELS = [
    ({"net.name": "chiar", "net.depth": 4}, [("layer_00",), ("layer_01",)]),
    ({"net.name": "cerebra", "net.depth": 2}, [("layer_00",), ("layer_01",)]),
    ({"net.name": "mod", "net.depth": 4}, [("layer_00", "routed"), ("layer_01", "routed")]),
]


def made(tiny_cfg, keys):
    small = {"task.seq_len": L, "net.width": D, "net.ffn_width": 16, "net.loss_chunk": 8}
    model = models.build(tiny_cfg(small | keys), V)
    rng = np.random.RandomState(0)
    ids_BxL, labels_BxL = rng.randint(0, V, (2, B, L)).astype(np.int32)
    w_BxL = np.ones((B, L), np.float32)
    w_BxL[1, -2:] = 0
    batch = {
        "inputs_BxL": ids_BxL,
        "labels_BxL": labels_BxL,
        "w_BxL": w_BxL,
        "ex_B": np.arange(B, dtype=np.int32),
    }
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    leaves, tree = jax.tree.flatten(
        variables["params"]
    )  # weights of a size at which the loss moves
    noise = [x + 0.3 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
    return model, variables | {"params": tree.unflatten(noise)}, batch


@pytest.mark.parametrize(
    ("keys", "paths"), MODELS, ids=lambda x: x["net.name"] if isinstance(x, dict) else ""
)
def test_norms_are_those_of_finite_differences(keys, paths, tiny_cfg):
    model, variables, batch = made(tiny_cfg, keys)
    found = gradients.probe(model)(variables, batch)
    h = 1e-2
    tokens = [0, 4, L - 3]

    def nats(shift_RxBxLxD):
        def add(layer, args, kwargs, context):
            if context.method_name == "__call__" and context.module.path in paths:
                args = (args[0] + shift_RxBxLxD[paths.index(context.module.path)], *args[1:])
            return layer(*args, **kwargs)

        with nn.intercept_methods(add):
            out, aux = model.apply(variables, batch, models.neutral_knobs())
        loss, _ = chunked_xent(
            out.h, out.head_VxD, batch["labels_BxL"], batch["w_BxL"], 8, each=True
        )
        return loss, aux.scores["kept"]

    places = [
        (r, b, t, d) for r in range(len(paths)) for b in range(B) for t in tokens for d in range(D)
    ]
    steps_NxRxBxLxD = np.zeros((len(places), len(paths), B, L, D), np.float32)
    for n, place in enumerate(places):
        steps_NxRxBxLxD[(n, *place)] = h
    run = jax.jit(lambda steps: jax.lax.map(nats, steps))
    (up_N, kept) = run(steps_NxRxBxLxD)
    (down_N, kept_too) = run(-steps_NxRxBxLxD)
    slope = ((np.asarray(up_N, float) - np.asarray(down_N, float)) / (2 * h)).reshape(
        len(paths), B, len(tokens), D
    )
    still = (np.asarray(kept) == np.asarray(kept_too)).all((1, 2, 3)).reshape(slope.shape).all(-1)
    assert still.mean() > 0.5  # elsewhere a step changes a decision, and the loss jumps
    want = np.sqrt(np.square(slope).sum(-1))
    got = np.asarray(found.norm_RxBxL)[:, :, tokens]
    np.testing.assert_allclose(got[still], want[still], rtol=0.03, atol=2e-3)
    assert got[still].min() > 0
    assert np.ptp(got[still]) > 0.1 * got.max()


def test_decisions_and_losses_are_the_evaluations(tiny_cfg):
    keys = {"net.name": "cerebra", "net.depth": 2, "net.scan": True, "net.remat": True}
    model, variables, batch = made(tiny_cfg, keys)
    found = gradients.probe(model)(variables, batch)
    out, aux = jax.jit(lambda *a: model.apply(*a, models.neutral_knobs()))(variables, batch)
    np.testing.assert_array_equal(found.kept_RxBxL, aux.scores["kept"])
    np.testing.assert_allclose(found.score_RxBxL, aux.scores["score"], rtol=1e-5, atol=1e-5)
    logp = jax.nn.log_softmax(out.h @ out.head_VxD.T)
    want = (
        -jnp.take_along_axis(logp, batch["labels_BxL"][..., None], axis=2)[..., 0] * batch["w_BxL"]
    )
    np.testing.assert_allclose(found.nats_BxL, want, rtol=1e-4, atol=1e-5)
    assert (np.asarray(found.norm_RxBxL)[:, 1, -2:] == 0).all()  # tokens that no loss depends on
