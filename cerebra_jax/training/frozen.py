"""Thresholds measured again after training: WORKDIR/thresholds.json, which whatever reads the best checkpoint takes.

Training lets a threshold follow a running quantile of the scores, and evaluation, decoding and export leave it where it
was in the checkpoint. On other text the same threshold keeps another share of the tokens: `measure` says how far off it
is and where it should stand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cerebra_jax.errors import UserError
from cerebra_jax.models import chiar, registry
from cerebra_jax.models.model import neutral_knobs
from cerebra_jax.policies import thresholds
from cerebra_jax.training import workdir as folder
from cerebra_jax.training.state import TrainState

FILE = "thresholds.json"


def applied(
    workdir: Path, at: int, routing: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """The routing state of checkpoint `at` with the thresholds of WORKDIR/thresholds.json, if there is one.

    UserError where they are another checkpoint's: training went on after they were measured.
    """
    found = folder.read_json(workdir / FILE)
    if found is None:
        return routing
    R, here = len(routing.get("tau", ())), len(found["tau"])
    if found["step"] != at or R != here:
        what = f"{workdir / FILE} is of step {found['step']}, the best checkpoint is of step {at}"
        raise UserError(what, "calibrate again, or remove that file")
    say(
        f"thresholds of {workdir / FILE}, measured on {found['data']}; without that file those of the run"
    )
    return {name: np.asarray(found[name], np.float32) for name in routing}


def measure(
    model: Any, state: TrainState, batches: list[Any], low: float, high: float, static: bool
) -> dict[str, Any]:
    """τ and spread of each routed layer, midway between two quantiles of its scores on these batches (CHIAR 3), and per
    layer what stood there and what share of the tokens it routes. Padding, of weight 0, is left out.

    static: the scores of the token embeddings instead, one τ for all layers, as the paper's code does it.
    """

    @jax.jit
    def seen(params, routing, batch):
        return model.apply({"params": params, "routing": routing}, batch, neutral_knobs())[1].scores

    def of_real(routing, batch) -> np.ndarray:  # (2, R, tokens): scores, and whether they are kept
        found, real_BxL = seen(state.params, routing, batch), np.asarray(batch["w_BxL"]) > 0
        return np.stack(
            [np.asarray(found[name], np.float32)[:, real_BxL] for name in ("score", "kept")]
        )

    R = len(state.routing["tau"])
    if static:
        look = jax.jit(lambda params, ids_BxL: chiar.static_scores(model.net, params, ids_BxL))
        scores = [
            np.asarray(look(state.params, b["inputs_BxL"]))[np.asarray(b["w_BxL"]) > 0]
            for b in batches
        ]
        scores = np.concatenate(scores)
        cuts = np.quantile(scores, [low, high])
        found = {"low": cuts[0], "tau": cuts[1]} if "low" in state.routing else {"tau": cuts.mean()}
        now = {
            name: np.full(R, x, np.float32)
            for name, x in (found | {"spread": scores.std()}).items()
        }
    else:
        score = lambda routing, batch: of_real(routing, batch)[0]  # noqa: E731
        now = jax.device_get(thresholds.calibrate(score, state.routing, batches, low, high))
    before = {name: np.asarray(x) for name, x in state.routing.items()}
    layers: list[dict[str, Any]] = [{"layer": i} for i in registry.routed_layers(model.net)]
    for name, routing in (("run", before), ("now", now)):
        score_RxN, kept_RxN = np.concatenate([of_real(routing, batch) for batch in batches], axis=2)
        for i, row in enumerate(layers):
            row[f"tau_{name}"] = float(routing["tau"][i])
            row[f"above_{name}"] = float((score_RxN[i] > routing["tau"][i]).mean())
            row[f"kept_{name}"] = float(kept_RxN[i].mean())
            row["drift"] = float((now["tau"][i] - before["tau"][i]) / max(now["spread"][i], 1e-12))
    tokens = int(sum((np.asarray(b["w_BxL"]) > 0).sum() for b in batches))
    return {name: x.tolist() for name, x in now.items()} | {"layers": layers, "tokens": tokens}
