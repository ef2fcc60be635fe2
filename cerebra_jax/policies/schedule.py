"""The schedule of a run: its length, and one pure function of the step that turns every knob."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from cerebra_jax.config import ObjectiveCfg, to_steps
from cerebra_jax.types import Knobs


class Length(NamedTuple):
    """The length of a run in optimizer steps, by which durations become steps."""

    total: int
    per_epoch: int

    def steps(self, duration: str) -> int:
        """Returns the steps of a duration: "500 steps", "3 epochs" or "0.1 frac" of the run."""
        return to_steps(duration, self.total, self.per_epoch)


def schedule(cfg: ObjectiveCfg, length: Length) -> Callable[..., Knobs]:
    """Returns knobs_at(step), whose fields are arrays, so that no phase of a run is compiled anew.

    λ is 0 while warm, then rises linearly to `lam` (Cerebra, section 3.6); the temperature falls
    geometrically on the ramp.
    """
    warm = length.steps(cfg.warm)
    ramp = max(1, length.steps(cfg.ramp))
    fall = cfg.temperature_end / cfg.temperature

    def knobs_at(step) -> Knobs:
        t = jnp.clip((jnp.asarray(step, jnp.float32) - warm) / ramp, 0.0, 1.0)
        return Knobs(lam=cfg.lam * t, temperature=cfg.temperature * fall**t, rate=jnp.float32(1))

    return knobs_at


def phase(
    cfg: ObjectiveCfg,
    step: int,
    length: Length,
    pruning: tuple[int, ...] = (),
    quantized: bool = False,
) -> str:
    """Returns the name of the phase that a step belongs to.

    From the first to the last step of `pruning` it is "prune"; otherwise "qat" where the step is
    quantized; "plain" where λ is 0 and there is no budget; else "warm", "ramp" or "full" by the
    schedule of λ.
    """
    if pruning and pruning[0] <= step <= pruning[-1]:
        return "prune"
    if quantized:
        return "qat"
    if cfg.lam == cfg.budget == 0.0:
        return "plain"
    warm = length.steps(cfg.warm)
    if step < warm:
        return "warm"
    return "ramp" if step < warm + length.steps(cfg.ramp) else "full"
