"""AdamW with linear warm-up, cosine decay and clipping; weight decay on matrices only."""

from __future__ import annotations

from typing import Any

import jax
import optax

from cerebra_jax import trees
from cerebra_jax.config import TrainCfg
from cerebra_jax.policies.schedule import Length

# every parameter of every model, by name, exactly once
DECAY_RULES = [
    (r"(.*/)?(kernel|table)", "decay"),
    (r"(.*/)?(bias|scale|w|null|log_a)", "keep"),
]


def learning_rate(cfg: TrainCfg, length: Length) -> optax.Schedule:
    """Returns the schedule: linear over the warm-up, then a cosine.

    It rises to `lr`, and ends at `lr · lr_end` in the last step.

    The first step has `lr / warm-up`, not 0: a step that changes nothing costs as much as any
    other.
    """
    total = length.total
    warmup = min(length.steps(cfg.warmup), total - 1)
    from_zero = optax.warmup_cosine_decay_schedule(0.0, cfg.lr, warmup, total, cfg.lr * cfg.lr_end)

    def lr_at(step: Any) -> Any:
        return from_zero(step + 1)

    return lr_at


def make(cfg: TrainCfg, length: Length) -> optax.GradientTransformation:
    """Returns clipping by the global norm, then AdamW.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda lab: lab == "decay", trees.label(params, DECAY_RULES))

    return optax.chain(
        optax.clip_by_global_norm(cfg.clip),
        optax.scale_by_adam(cfg.b1, cfg.b2),
        optax.add_decayed_weights(cfg.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(learning_rate(cfg, length)),
    )
