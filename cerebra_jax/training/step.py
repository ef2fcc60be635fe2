"""The training step and the evaluation step: pure functions; the axis to sum over is an argument.

To follow a batch from the step to the logits: `train_step` (here) calls `Objective.__call__`
(objective.py), which calls `Model.apply` (models/model.py), which calls the model's own file, which
calls its layers. What else happens in a step is a list of policies (policies/policy.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cerebra_jax.config import RunCfg
from cerebra_jax.errors import UserError
from cerebra_jax.models.model import Model, neutral_knobs
from cerebra_jax.policies import schedule, thresholds
from cerebra_jax.policies.policy import Metrics, Outcome, Seen, choose, once
from cerebra_jax.policies.schedule import Length
from cerebra_jax.tasks.task import Task
from cerebra_jax.training import optimizer as optim
from cerebra_jax.training.objective import OWN, Conditions, Objective, Sums
from cerebra_jax.training.state import TrainState
from cerebra_jax.types import Batch, Knobs


class Schedules(NamedTuple):
    """What changes with the step and with nothing else; functions of the step."""

    knobs: Callable[..., Knobs]
    lr: optax.Schedule


class Point(NamedTuple):
    """Where J's gradient is taken, or the gradient there."""

    params: Any
    probes: tuple[Any, ...]  # of each policy


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """train_step(state, batch, key, *, axis=None) -> (state, metrics).

    One optimizer step: J with its gradient, the update, and what the objective's policies do before
    and after, in one program. `batch` is this device's share (`accum` micro-batches of it), `key`
    the same on every device: noise is keyed by global example index. Sums over `axis` where given.
    A step that is not finite changes nothing but the counts of steps.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    schedules: Schedules
    accum: int = 1

    def __call__(
        self, state: TrainState, batch: Batch, key: jax.Array, *, axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        # before: the knobs, and how many real targets and examples the step has on all devices
        policies = self.objective.policies
        owned = tuple(getattr(state, policy.owns) for policy in policies)
        knobs = self.schedules.knobs(state.step)
        for policy, own in zip(policies, owned, strict=True):
            knobs = policy.knobs(own, state.step, knobs)
        noise = jax.random.fold_in(key, state.step)
        conditions = Conditions(knobs, noise, *_total(_counts(batch), axis))

        # J's gradient, over micro-batches and devices
        slopes, sums = self._gradient(state, owned, batch, conditions)
        slopes, metrics, observed = _total((slopes, sums.metrics, sums.observed), axis)

        # the update, unless something is not finite
        norm = optax.tree.norm(slopes.params)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics[f"{OWN}loss"][0])
        new = self._updated(state, slopes.params, finite)

        # after: each policy moves its own part of the state
        reports = self._report(state, new, norm, knobs)
        ended = Outcome(state.step, key, batch, axis, conditions.examples, metrics, finite)
        for i, policy in enumerate(policies):
            seen = Seen(observed[i], sums.listed[i], slopes.probes[i])
            moved, report = policy.after(owned[i], seen, ended)
            new = new.replace(**{policy.owns: moved})
            reports = reports | report
        return new, metrics | reports

    def _gradient(
        self, state: TrainState, owned: tuple[Any, ...], batch: Batch, conditions: Conditions
    ) -> tuple[Point, Sums]:
        """Returns J's gradient on this device's share of the batch, and its sums."""
        policies = self.objective.policies

        def share(point: Point, micro: Batch):
            params = point.params
            for policy, own, probe in zip(policies, owned, point.probes, strict=True):
                params = policy.view(params, own, probe)
            variables = {"params": params, "routing": state.routing}
            return self.objective(variables, micro, conditions)

        probes = tuple(policy.probe(own) for policy, own in zip(policies, owned, strict=True))
        gradient = jax.grad(share, has_aux=True)
        return _accumulated(gradient, Point(state.params, probes), batch, self.accum)

    def _updated(self, state: TrainState, slopes: Any, finite: jax.Array) -> TrainState:
        """Returns the state after the optimizer's step, if that is finite."""
        updates, opt_state = self.optimizer.update(slopes, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(
            step=state.step + 1,
            params=choose(finite, params, state.params),
            opt_state=choose(finite, opt_state, state.opt_state),
            skipped=jnp.where(finite, 0, state.skipped + 1),
        )

    def _report(self, state: TrainState, new: TrainState, norm: jax.Array, knobs: Knobs) -> Metrics:
        """Returns the metrics that every step has, with or without policies."""
        values = {
            "grad_norm": norm,
            "lr": self.schedules.lr(state.step),
            "lam": knobs.lam,
            "temperature": knobs.temperature,
            "skipped": new.skipped.astype(jnp.float32),
        }
        return {name: once(value) for name, value in (values | state.routing).items()}


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, cfg: RunCfg, length: Length
) -> TrainStep:
    """Returns the training step of a configuration, for a run of that length."""
    knobs = schedule.schedule(cfg.objective, length)
    lr = optim.learning_rate(cfg.train, length)
    return TrainStep(objective, optimizer, Schedules(knobs, lr), cfg.train.accum)


def _total(tree: Any, axis: str | None) -> Any:
    """Sums over all devices."""
    return lax.psum(tree, axis) if axis else tree


def _counts(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns the weight of all targets of a batch, and how many examples have any."""
    real = batch["w_BxL"].any(axis=1).sum().astype(jnp.float32)
    return batch["w_BxL"].sum(), real


def _accumulated(gradient: Callable, point: Point, batch: Batch, accum: int) -> tuple[Point, Sums]:
    """Returns gradient and sums over `accum` micro-batches, one after the other in one loop."""
    if accum == 1:
        return gradient(point, batch)
    micros = jax.tree.map(lambda x: x.reshape(accum, x.shape[0] // accum, *x.shape[1:]), batch)
    first = jax.tree.map(lambda x: x[0], micros)
    slopes, sums = jax.eval_shape(gradient, point, first)
    added = (slopes, sums.metrics, sums.observed)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), added)

    def add(total, micro):
        slopes, sums = gradient(point, micro)
        new = (slopes, sums.metrics, sums.observed)
        return jax.tree.map(jnp.add, total, new), sums.listed

    (slopes, metrics, observed), listed = lax.scan(add, zeros, micros)
    return slopes, Sums(metrics, observed, listed)


def make_eval_step(model: Model, task: Task) -> Callable[..., Metrics]:
    """Returns eval_step(state, batch, *, axis=None) -> metrics; it has no noise."""
    objective = Objective(model, task)
    one = jnp.float32(1)

    def eval_step(state: TrainState, batch: Batch, *, axis: str | None = None):
        conditions = Conditions(neutral_knobs(), None, one, one)
        _, sums = objective(state.variables, batch, conditions)
        return _total(sums.metrics, axis)

    return eval_step


def check_cost_gradient(model: Model, state: TrainState, batch: Batch, lam: float) -> None:
    """Raises UserError if λ > 0 but no parameter moves the expected cost.

    A router that keeps no more than its floor has a zero gradient where it stands, and may have
    another one elsewhere: so the gradient is also looked at near there.
    """
    if lam == 0.0:
        return
    # more than one example: the cost of one that fills its slots is flat
    few = {name: x[:4] for name, x in batch.items()}

    def cost(params):
        _, aux = model.apply({"params": params, "routing": state.routing}, few, neutral_knobs())
        return aux.expected_B.sum()

    @jax.jit
    def largest(params):
        slopes = jax.tree.leaves(jax.grad(cost)(params))
        return jnp.stack([jnp.abs(slope).max() for slope in slopes]).max()

    def near(seed):
        noise = optax.tree_utils.tree_random_like(jax.random.key(seed), state.params)
        return optax.tree_utils.tree_add(state.params, noise)

    if largest(state.params) > 0 or any(largest(near(seed)) > 0 for seed in range(8)):
        return
    raise UserError(
        f"objective.lam is {lam:g}, but no parameter of {model.name} changes its cost",
        "use objective.lam=0, or a model whose routing can move",
    )


def calibrate(model: Model, state: TrainState, batches: Iterable[Batch]) -> TrainState:
    """Returns the state with thresholds measured on held-out batches (route.tau = "calibrated")."""
    params = state.effective

    @jax.jit
    def compiled(params, routing, batch):
        _, aux = model.apply({"params": params, "routing": routing}, batch, neutral_knobs())
        return aux.scores["score"]

    def scores_of(routing, batch):
        score_RxBxL = np.asarray(compiled(params, routing, batch))
        return score_RxBxL[:, thresholds.real_rows(batch)]

    return state.replace(routing=thresholds.calibrate(scores_of, state.routing, batches))
