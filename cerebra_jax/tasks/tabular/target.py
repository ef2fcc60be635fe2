"""The numbers that a regression predicts: how they become labels, and labels become them again.

    standard    label = (y − mean) / sd
    log         label = (log y − mean) / sd, of positive numbers; errors count by their ratio
    quantile    label = normal quantile of y among the training rows; outliers count as the largest

Mean, sd and quantiles are those of the training rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cerebra_jax.errors import UserError
from cerebra_jax.tasks.tabular.columns import normal_quantiles


class Target(NamedTuple):
    """A target of numbers, and the scale that its training rows give it."""

    name: str
    mean: float  # of log y, where scale is log
    sd: float
    unit: float  # standard deviation of y: by how much the target varies
    scale: str = "standard"
    # scale=quantile: training values, and the normal quantiles where they stand; else ()
    points: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def fit(cls, name: str, train_N: np.ndarray, scale: str) -> Target:
        """Returns the target as its training rows define it.

        UserError where they are all equal, or have no logarithm.
        """
        unit = float(train_N.std())
        if train_N.min() == train_N.max():
            what = f"the target {name} is {train_N.mean():g} in every training row"
            raise UserError(what, "choose another task.target")
        if scale == "quantile":
            return cls(name, 0.0, 1.0, unit, scale, normal_quantiles(train_N))
        y_N = np.log(train_N) if scale == "log" else train_N
        return cls(name, float(y_N.mean()), float(y_N.std()), unit, scale)

    @classmethod
    def restored(cls, learnt: dict[str, Any]) -> Target:
        """Returns the target that `learnt` described; before `scale` there was one only."""
        points = tuple(tuple(axis) for axis in learnt.get("points", ()))
        mean, sd = learnt["mean"], learnt["sd"]
        scale = learnt.get("scale", "standard")
        return cls(learnt["name"], mean, sd, learnt.get("unit", sd), scale, points)

    def learnt(self) -> dict[str, Any]:
        """Returns all of it, for JSON."""
        found = {"name": self.name, "kind": "number", "mean": self.mean, "sd": self.sd}
        if self.scale == "standard":
            return found
        return found | {"unit": self.unit, "scale": self.scale, "points": self.points}

    def labels(self, y_N: np.ndarray) -> np.ndarray:
        """Returns float32 labels of numbers."""
        if self.points:
            return np.interp(y_N, *self.points).astype(np.float32)
        y_N = np.log(y_N) if self.scale == "log" else y_N
        return ((y_N - self.mean) / self.sd).astype(np.float32)

    def values(self, label_N: Any, xp: Any = np) -> Any:
        """Returns the numbers that labels, or outputs of a model, stand for.

        xp: numpy, or jax.numpy inside a step. No quantile goes beyond the training rows.
        """
        if self.points:
            value, normal = (xp.asarray(axis, label_N.dtype) for axis in self.points)
            return xp.interp(label_N, normal, value)
        value_N = label_N * self.sd + self.mean
        return xp.exp(value_N) if self.scale == "log" else value_N
