"""Thresholds measured again after training, in WORKDIR/thresholds.json.

Whatever reads the best checkpoint takes them from there.

Training lets a threshold follow a running quantile of the scores, and evaluation, decoding and
export leave it where it was in the checkpoint. On other text the same threshold keeps another share
of the tokens: `measure` says how far off it is and where it should stand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cerebra_jax.errors import UserError
from cerebra_jax.models import chiar, registry
from cerebra_jax.models.model import Model, neutral_knobs
from cerebra_jax.policies import thresholds
from cerebra_jax.training import workdir as folder
from cerebra_jax.training.state import TrainState
from cerebra_jax.types import Batch

FILE = "thresholds.json"


class Quantiles(NamedTuple):
    """Where thresholds stand: midway between two quantiles of the scores."""

    low: float
    high: float
    static: bool = (
        False  # of the token embeddings, one τ for all layers, as the paper's code does it
    )


class Scores(NamedTuple):
    """What the routed layers decided on all real tokens of some batches."""

    score_RxN: np.ndarray
    kept_RxN: np.ndarray  # 1.0 where a token took the heavy path


def applied(
    workdir: Path, at: int, routing: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the routing state of checkpoint `at`, with the thresholds that were measured since.

    Raises UserError where they are another checkpoint's: training went on after they were measured.
    """
    file = workdir / FILE
    found = folder.read_json(file)
    if found is None:
        return routing
    layers = len(routing["tau"]) if "tau" in routing else 0
    if found["step"] != at or layers != len(found["tau"]):
        raise UserError(
            f"{file} is of step {found['step']}, the best checkpoint is of step {at}",
            "calibrate again, or remove that file",
        )
    say(f"thresholds of {file}, measured on {found['data']}; without that file those of the run")
    return {name: np.asarray(found[name], np.float32) for name in routing}


def measure(
    model: Model, state: TrainState, batches: list[Batch], quantiles: Quantiles
) -> dict[str, Any]:
    """Returns τ and spread of each routed layer on these batches (CHIAR, section 3).

    "layers" says for each what share of the tokens it routes, before and now. Padding, of weight 0,
    is left out.
    """

    decided = _decisions(model, state)

    def scores_of(routing, batch) -> np.ndarray:
        return decided(routing, batch).score_RxN

    # the thresholds of the run, and where they should stand
    low, high, static = quantiles
    before = {name: np.asarray(x) for name, x in state.routing.items()}
    if static:
        now = _static(model, state, batches, quantiles)
    else:
        now = jax.device_get(thresholds.calibrate(scores_of, state.routing, batches, low, high))

    # what either does on these batches
    layers: list[dict[str, Any]] = [{"layer": i} for i in registry.routed_layers(model.net)]
    for name, routing in (("run", before), ("now", now)):
        found = [decided(routing, batch) for batch in batches]
        score_RxN, kept_RxN = (np.concatenate(x, axis=1) for x in zip(*found, strict=True))
        for i, row in enumerate(layers):
            row[f"tau_{name}"] = float(routing["tau"][i])
            row[f"above_{name}"] = float((score_RxN[i] > routing["tau"][i]).mean())
            row[f"kept_{name}"] = float(kept_RxN[i].mean())
    for i, row in enumerate(layers):
        moved = now["tau"][i] - before["tau"][i]
        row["drift"] = float(moved / max(now["spread"][i], 1e-12))
    tokens = int(sum((np.asarray(batch["w_BxL"]) > 0).sum() for batch in batches))
    return {name: x.tolist() for name, x in now.items()} | {"layers": layers, "tokens": tokens}


def _decisions(model: Model, state: TrainState) -> Callable[..., Scores]:
    """Returns decisions(routing, batch) -> the Scores of a batch with these thresholds."""

    @jax.jit
    def seen(params, routing, batch):
        _, aux = model.apply({"params": params, "routing": routing}, batch, neutral_knobs())
        return aux.scores

    def decisions(routing, batch) -> Scores:
        found = seen(state.params, routing, batch)
        real_BxL = np.asarray(batch["w_BxL"]) > 0
        named = (np.asarray(found[name], np.float32)[:, real_BxL] for name in ("score", "kept"))
        return Scores(*named)

    return decisions


def _static(
    model: Model, state: TrainState, batches: list[Batch], quantiles: Quantiles
) -> dict[str, np.ndarray]:
    """Returns the thresholds by the scores of the token embeddings, the same for all layers."""

    @jax.jit
    def scores_of(params, ids_BxL):
        return chiar.static_scores(model.net, params, ids_BxL)

    found = []
    for batch in batches:
        scores_BxL = np.asarray(scores_of(state.params, batch["inputs_BxL"]))
        found.append(scores_BxL[np.asarray(batch["w_BxL"]) > 0])
    scores = np.concatenate(found)
    cuts = thresholds.cuts(scores, quantiles.low, quantiles.high, "low" in state.routing)
    layers = len(state.routing["tau"])
    named = cuts | {"spread": scores.std()}
    return {name: np.full(layers, x, np.float32) for name, x in named.items()}
