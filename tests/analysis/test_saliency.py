"""Gradient norms are those of finite differences at the layer's input, by the decisions taken."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest

from cerebra_jax.analysis import saliency
from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models import model as models

V = 17
L = 12
B = 2
D = 8
H = 1e-2  # the step of a finite difference
TOKENS = (0, 4, L - 3)  # where one is taken
# keys, and the module whose input each routed layer's is
MODELS = {
    "chiar": ({"net.name": "chiar", "net.depth": 4}, [("layer_00",), ("layer_01",)]),
    "cerebra": ({"net.name": "cerebra", "net.depth": 2}, [("layer_00",), ("layer_01",)]),
    "mod": (
        {"net.name": "mod", "net.depth": 4},
        [("layer_00", "routed"), ("layer_01", "routed")],
    ),
}


def made(tiny_cfg, keys):
    """A model, its variables at a size at which the loss moves, and a batch with padding."""
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
    variables = model.init(jax.random.key(0), batch)
    leaves, tree = jax.tree.flatten(variables["params"])
    noisy = [x + 0.3 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
    return model, variables | {"params": tree.unflatten(noisy)}, batch


@pytest.mark.parametrize("name", MODELS)
def test_norms_are_those_of_finite_differences(name, tiny_cfg):
    keys, paths = MODELS[name]
    R = len(paths)
    model, variables, batch = made(tiny_cfg, keys)
    found = saliency.probe(model)(variables, batch)
    chex.assert_shape([found.norm_RxBxL, found.kept_RxBxL, found.score_RxBxL], (R, B, L))
    chex.assert_shape(found.nats_BxL, (B, L))

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

    # the loss after a step in each coordinate of the chosen tokens, forward and back
    places = [(r, b, t, d) for r in range(R) for b in range(B) for t in TOKENS for d in range(D)]
    step_NxRxBxLxD = np.zeros((len(places), R, B, L, D), np.float32)
    for n, place in enumerate(places):
        step_NxRxBxLxD[(n, *place)] = H
    run = jax.jit(lambda step: jax.lax.map(nats, step))
    up_N, kept_up = run(step_NxRxBxLxD)
    down_N, kept_down = run(-step_NxRxBxLxD)
    slope_N = (np.asarray(up_N, float) - np.asarray(down_N, float)) / (2 * H)
    slope_RxBxTxD = slope_N.reshape(R, B, len(TOKENS), D)

    # where a step changes a decision, the loss jumps
    same_N = (np.asarray(kept_up) == np.asarray(kept_down)).all((1, 2, 3))
    still_RxBxT = same_N.reshape(slope_RxBxTxD.shape).all(-1)
    assert still_RxBxT.mean() > 0.5

    norm_RxBxT = np.asarray(found.norm_RxBxL)[:, :, TOKENS]
    expected_RxBxT = np.linalg.norm(slope_RxBxTxD, axis=-1)
    norm_N = norm_RxBxT[still_RxBxT]
    np.testing.assert_allclose(norm_N, expected_RxBxT[still_RxBxT], rtol=0.03, atol=2e-3)
    assert norm_N.min() > 0
    assert np.ptp(norm_N) > 0.1 * norm_N.max()


def test_decisions_and_losses_are_the_evaluations(tiny_cfg):
    keys = {"net.name": "cerebra", "net.depth": 2, "net.scan": True, "net.remat": True}
    model, variables, batch = made(tiny_cfg, keys)
    found = saliency.probe(model)(variables, batch)
    out, aux = jax.jit(model.apply)(variables, batch, models.neutral_knobs())
    chex.assert_trees_all_equal(found.kept_RxBxL, aux.scores["kept"])
    chex.assert_trees_all_close(found.score_RxBxL, aux.scores["score"], rtol=1e-5, atol=1e-5)
    logp_BxLxV = jax.nn.log_softmax(out.h @ out.head_VxD.T)
    chosen_BxLx1 = np.take_along_axis(logp_BxLxV, batch["labels_BxL"][..., None], axis=2)
    nats_BxL = -chosen_BxLx1[..., 0] * batch["w_BxL"]
    chex.assert_trees_all_close(np.asarray(found.nats_BxL), nats_BxL, rtol=1e-4, atol=1e-5)
    assert (np.asarray(found.norm_RxBxL)[:, 1, -2:] == 0).all()  # no loss depends on these tokens


def test_a_batch_of_other_shapes_is_refused(tiny_cfg):
    model = models.build(tiny_cfg({"net.name": "chiar", "task.seq_len": L}), V)
    batch = {"inputs_BxL": np.zeros((B, L)), "labels_BxL": np.zeros((B, 1)), "w_BxL": np.ones(B)}
    with pytest.raises(AssertionError, match="shape"):
        saliency.probe(model)({}, batch)
