"""Losses of pooled heads as (sum, count) pairs, in JAX, and the figures that are formed of them once, on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cerebra_jax.tasks.task import Metric, Pairs
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

ACCURACY = Metric("accuracy", "accuracy", 4, lower=False)
MACRO_F1 = Metric("macro_f1", "macro-F1", 4, lower=False)
RMSE = Metric("rmse", "RMSE", 1, lower=True)
MAE = Metric("mae", "MAE", 1, lower=True)
R2 = Metric("r2", "R2", 4, lower=False)


def classify(out: Out, batch: Batch, each: bool = False) -> tuple[Any, Pairs]:
    """Total nats, and per class (C,): examples, predictions, right ones. labels_BxL int32 (B, 1); `each`: Task.loss."""
    import jax
    import jax.numpy as jnp

    w_Bx1, label_Bx1 = batch["w_BxL"], batch["labels_BxL"]
    logits_BxC = _outputs(out)
    ids_1xC = jnp.arange(logits_BxC.shape[1])[None]
    is_BxC = jnp.where(label_Bx1 == ids_1xC, w_Bx1, 0.0)
    said_BxC = jnp.where(logits_BxC.argmax(1)[:, None] == ids_1xC, w_Bx1, 0.0)
    terms_BxC = is_BxC * jax.nn.log_softmax(logits_BxC)
    nats = -terms_BxC.sum()
    n = w_Bx1.sum()
    right_BxC = jnp.where(label_Bx1 == ids_1xC, said_BxC, 0.0)
    counts = {"is": is_BxC, "said": said_BxC, "right": right_BxC}
    sums = {"loss": (nats, n)} | {name: (x_BxC.sum(0), n) for name, x_BxC in counts.items()}
    return nats, sums | ({"each": (-terms_BxC.sum(1), w_Bx1[:, 0])} if each else {})


def classes(sums: Pairs, among: slice = slice(None)) -> dict[str, float]:
    """Accuracy and macro-F1 (mean over classes that occur or are predicted) of `classify`'s sums, on classes `among`.

    F1 of a class = 2 right / (examples + predictions). Predictions from elsewhere than `among` count.
    """
    is_C, said_C, right_C = (
        np.asarray(sums[name][0], np.float64)[among] for name in ("is", "said", "right")
    )
    seen_C = is_C + said_C > 0
    f1_C = 2 * right_C[seen_C] / (is_C + said_C)[seen_C]
    return {"accuracy": float(right_C.sum() / is_C.sum()), "macro_f1": float(f1_C.mean())}


def regress(out: Out, batch: Batch, each: bool = False) -> tuple[Any, Pairs]:
    """Total squared error, and absolute error, in the units of labels_BxL, float32 (B, 1); `each`: Task.loss."""
    import jax.numpy as jnp

    w_Bx1 = batch["w_BxL"]
    miss_Bx1 = _outputs(out) - batch["labels_BxL"]
    square_Bx1 = w_Bx1 * jnp.square(miss_Bx1)
    squares, n = square_Bx1.sum(), w_Bx1.sum()
    sums = {"loss": (squares, n), "absolute": ((w_Bx1 * jnp.abs(miss_Bx1)).sum(), n)}
    return squares, sums | ({"each": (square_Bx1[:, 0], w_Bx1[:, 0])} if each else {})


def errors(sums: Pairs, unit: float, variance: float | None) -> dict[str, float]:
    """RMSE and MAE in units of `unit`; R2 = 1 − MSE / variance where the variance of the split's labels is given."""
    squares, n = map(float, sums["loss"])
    found = {"rmse": unit * (squares / n) ** 0.5, "mae": unit * float(sums["absolute"][0]) / n}
    return (
        found
        if variance is None
        else found | {"r2": 1.0 - squares / n / variance if variance else float("nan")}
    )


def _outputs(out: Out) -> Any:
    """(B, V) float32 outputs of a pooled head."""
    import jax.numpy as jnp

    head_VxD = out.head_VxD.astype(out.h.dtype)
    return jnp.einsum("bd,vd->bv", out.h[:, 0], head_VxD, preferred_element_type=jnp.float32)


def named(out_NxC: np.ndarray, classes: list[str]) -> dict[str, list]:
    """The likeliest class of each row of logits, and its probability."""
    power_NxC = np.exp(out_NxC.astype(np.float64) - out_NxC.max(1, keepdims=True))
    best_N = out_NxC.argmax(1)
    share_N = power_NxC[np.arange(len(out_NxC)), best_N] / power_NxC.sum(1)
    return {"prediction": [classes[i] for i in best_N], "probability": share_N.tolist()}
