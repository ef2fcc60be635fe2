"""Losses of pooled heads as (sum, count) pairs, in JAX, and figures made of them on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cerebra_jax.checks import Problem
from cerebra_jax.config import TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.fields import composed
from cerebra_jax.tasks.task import Metric, Pairs
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

ACCURACY = Metric("accuracy", "accuracy", 4, lower=False)
MACRO_F1 = Metric("macro_f1", "macro-F1", 4, lower=False)
RMSE = Metric("rmse", "RMSE", 1, lower=True)
MAE = Metric("mae", "MAE", 1, lower=True)
BALANCED = "balanced"
R2 = Metric("r2", "R2", 4, lower=False)


def classify(
    out: Out, batch: Batch, each: bool = False, weight_C: np.ndarray | None = None
) -> tuple[Any, Pairs]:
    """Returns the total nats, and per class (C,): examples, predictions, right ones.

    labels_BxL is int32, (B, 1); `each` as in `Task.loss`. weight_C: how much the nats of each class
    count in the total; the figures are of the examples as they are.
    """
    import jax
    import jax.numpy as jnp

    w_Bx1 = batch["w_BxL"]
    label_Bx1 = batch["labels_BxL"]
    logits_BxC = _outputs(out)
    class_1xC = jnp.arange(logits_BxC.shape[1])[None]

    # nats
    is_BxC = jnp.where(label_Bx1 == class_1xC, w_Bx1, 0.0)
    terms_BxC = is_BxC * jax.nn.log_softmax(logits_BxC)
    nats = -terms_BxC.sum()
    weight = w_Bx1.sum()
    sums = {"loss": (nats, weight)}
    if weight_C is not None:
        terms_BxC = terms_BxC * jnp.asarray(weight_C, jnp.float32)[None]
        nats = -terms_BxC.sum()

    # counts of each class
    said_BxC = jnp.where(logits_BxC.argmax(1)[:, None] == class_1xC, w_Bx1, 0.0)
    right_BxC = jnp.where(label_Bx1 == class_1xC, said_BxC, 0.0)
    for name, count_BxC in (("is", is_BxC), ("said", said_BxC), ("right", right_BxC)):
        sums[name] = (count_BxC.sum(0), weight)

    if each:
        sums["each"] = (-terms_BxC.sum(1), w_Bx1[:, 0])
    return nats, sums


def weights(cfg: TaskCfg, names: Sequence[str], label_N: np.ndarray) -> np.ndarray | None:
    """Returns how much each class counts in training, (C,); None where all count alike.

    balanced: N / (C n_c), so that each class counts as much as any other; label_N: the training
    labels. UserError where task.class_weights names no class, or no weight.
    """
    if not cfg.class_weights:
        return None
    if cfg.class_weights == (BALANCED,):
        count_C = np.bincount(label_N, minlength=len(names))
        seen = int((count_C > 0).sum())
        return np.where(count_C > 0, len(label_N) / (seen * np.maximum(count_C, 1)), 1.0)
    weight_C = np.ones(len(names))
    place = {composed(name): i for i, name in enumerate(names)}
    named: set[str] = set()
    for entry in cfg.class_weights:
        name, _, text = entry.rpartition(":")
        name = composed(name)
        if name in named:
            raise UserError(f"task.class_weights names {name!r} twice", "keep one of them")
        named.add(name)
        if name not in place:
            what = f"task.class_weights names {name!r}, which is no class"
            some = ", ".join(f"{one}:1" for one in names[:3])
            raise UserError(what, f"the classes are {some} …" if len(names) > 3 else f"use {some}")
        weight_C[place[name]] = float(text)
    return weight_C


def check_weights(cfg: TaskCfg) -> list[Problem]:
    """Returns what is wrong with task.class_weights, whatever the classes are."""
    for entry in cfg.class_weights:
        if entry == BALANCED and len(cfg.class_weights) == 1:
            continue
        try:
            value = float(entry.rpartition(":")[2])
        except ValueError:
            value = -1.0
        if ":" not in entry or not 0.0 < value < float("inf"):
            hint = (
                "write balanced, or NAME:WEIGHT of classes, with commas: spam:5,ham:1; a name that "
            )
            hint += "holds a comma needs a list in a configuration file"
            return [(f"cannot read {entry!r} in task.class_weights", hint)]
    return []


def told(weight_C: np.ndarray, names: Sequence[str]) -> str:
    """Returns a line on the weights of classes, for a person."""
    some = ", ".join(f"{name} {w:.3g}" for name, w in list(zip(names, weight_C, strict=True))[:12])
    rest = f" and {len(names) - 12:,} more" if len(names) > 12 else ""
    return f"classes count in training: {some}{rest}; the checkpoint is chosen by macro-F1"


def classes(sums: Pairs) -> dict[str, float]:
    """Returns accuracy and macro-F1 of `classify`'s sums.

    F1 of a class = 2 right / (examples + predictions); macro: the mean over classes that occur or
    are predicted.
    """
    is_C, said_C, right_C = (np.asarray(sums[k][0], np.float64) for k in ("is", "said", "right"))
    seen_C = is_C + said_C > 0
    f1_C = 2 * right_C[seen_C] / (is_C + said_C)[seen_C]
    return {"accuracy": float(right_C.sum() / is_C.sum()), "macro_f1": float(f1_C.mean())}


def regress(
    out: Out, batch: Batch, each: bool = False, value: Callable[[Any], Any] | None = None
) -> tuple[Any, Pairs]:
    """Returns the total squared error, and the absolute error, in the units of labels_BxL.

    labels_BxL is float32, (B, 1); `each` as in `Task.loss`. value: what a label stands for, where
    the figures are to be of that.
    """
    import jax.numpy as jnp

    w_Bx1 = batch["w_BxL"]
    out_Bx1, label_Bx1 = _outputs(out), batch["labels_BxL"]
    square_Bx1 = w_Bx1 * jnp.square(out_Bx1 - label_Bx1)
    squares = square_Bx1.sum()
    weight = w_Bx1.sum()
    sums = {"loss": (squares, weight)}
    if value is None:
        miss_Bx1 = out_Bx1 - label_Bx1
    else:
        miss_Bx1 = value(out_Bx1) - value(label_Bx1)
        sums["square"] = ((w_Bx1 * jnp.square(miss_Bx1)).sum(), weight)
    sums["absolute"] = ((w_Bx1 * jnp.abs(miss_Bx1)).sum(), weight)
    if each:
        sums["each"] = (square_Bx1[:, 0], w_Bx1[:, 0])
    return squares, sums


def errors(sums: Pairs, unit: float, variance: float | None) -> dict[str, float]:
    """Returns RMSE and MAE in units of `unit`, and R2 where the labels' variance is given.

    R2 = 1 − MSE / variance, or NaN where all labels are equal.
    """
    squares, n = map(float, sums.get("square", sums["loss"]))
    found = {
        "rmse": unit * (squares / n) ** 0.5,
        "mae": unit * float(sums["absolute"][0]) / n,
    }
    if variance is not None:
        found["r2"] = 1.0 - squares / n / variance if variance else float("nan")
    return found


def _outputs(out: Out) -> Any:
    """Returns the (B, V) float32 outputs of a pooled head."""
    import jax.numpy as jnp

    head_VxD = out.head_VxD.astype(out.h.dtype)
    return jnp.einsum("bd,vd->bv", out.h[:, 0], head_VxD, preferred_element_type=jnp.float32)


def named(out_NxC: np.ndarray, classes: list[str]) -> dict[str, list]:
    """Returns the likeliest class of each row of logits, its probability, and those of all.

    {"prediction": […], "probability": […], "probability of CLASS": […], …}
    """
    power_NxC = np.exp(out_NxC.astype(np.float64) - out_NxC.max(1, keepdims=True))
    probability_NxC = power_NxC / power_NxC.sum(1, keepdims=True)
    best_N = out_NxC.argmax(1)
    found = {
        "prediction": [classes[i] for i in best_N],
        "probability": probability_NxC.max(1).tolist(),
    }
    for name, column_N in zip(classes, probability_NxC.T, strict=True):
        found[f"probability of {name}"] = column_N.tolist()
    return found
