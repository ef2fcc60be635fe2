"""The training step and the evaluation step: pure functions; the axis to sum over is an argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cerebra_jax.config import RunCfg
from cerebra_jax.errors import UserError
from cerebra_jax.layers import prunable as layer_units
from cerebra_jax.models import model as models
from cerebra_jax.models.model import Model, neutral_knobs
from cerebra_jax.policies import adaptive_capacity as demand
from cerebra_jax.policies import budget, sampler, thresholds
from cerebra_jax.policies import pruning as prune
from cerebra_jax.policies import schedule as phases
from cerebra_jax.tasks.task import Task
from cerebra_jax.training import optimizer as optim
from cerebra_jax.training.objective import OWN, Metrics, objective
from cerebra_jax.training.state import TrainState
from cerebra_jax.types import Batch


def make_train_step(model: Model, task: Task, optimizer: optax.GradientTransformation, cfg: RunCfg, total: int,
                    per_epoch: int, control: budget.Control | None = None, shares: tuple[float, ...] = (),
                    draws: bool = False, groups: np.ndarray | None = None,
                    ) -> Callable[..., tuple[TrainState, Metrics]]:  # fmt: skip
    """train_step(state, batch, key, *, axis=None) -> (state, metrics).

    One optimizer step: loss, analytic cost, penalty and gradients in one program. `batch` is this device's share
    (train.accum micro-batches of it), `key` the same on every device: noise is keyed by global example index. Sums
    over `axis` where given. A step whose gradients are not finite changes nothing but the count in state.skipped.
    `control` holds the cost at a budget (`plan_budget`); `cfg` is then that of the program of its bucket. `shares` are
    the slots per token of the programs among which `policies.adaptive_capacity` chooses. `draws`: the batch is one of the
    sampler's, with its index_B and weight_B, and metrics["drawn"] is the draw of step + 2, of one of `groups` (N,).
    """
    knobs_at = phases.schedule(cfg.objective, total, per_epoch)
    lr_at = optim.learning_rate(cfg.train, total, per_epoch)
    accum, running = cfg.train.accum, cfg.net.route.tau != "calibrated"

    def train_step(state: TrainState, batch: Batch, key: jax.Array, *, axis: str | None = None):
        def psum(tree):
            return lax.psum(tree, axis) if axis else tree

        knobs = knobs_at(state.step)
        if control:
            knobs = control.knobs(state.dual, state.step, knobs)
        noise = jax.random.fold_in(key, state.step)
        real = batch["w_BxL"].any(axis=1).sum().astype(jnp.float32)
        tokens, examples = psum((batch["w_BxL"].sum(), real))

        masks = state.prune.get("units", {})

        def share(both, micro):
            params, masks = both
            variables = {
                "params": layer_units.masked(params, state.prune | {"units": masks}),
                "routing": state.routing,
            }
            return objective(
                model, task, variables, micro, knobs, noise, tokens, examples, shares, draws
            )

        grad = jax.grad(share, has_aux=True)
        if accum == 1:
            grads, (*sums, each) = grad((state.params, masks), batch)
        else:
            micros = jax.tree.map(
                lambda x: x.reshape(accum, x.shape[0] // accum, *x.shape[1:]), batch
            )
            first = jax.tree.map(lambda x: x[0], micros)
            like, (*parts, _) = jax.eval_shape(grad, (state.params, masks), first)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (like, parts))

            def add(total, micro):
                grads, (*sums, each) = grad((state.params, masks), micro)
                return jax.tree.map(jnp.add, total, (grads, sums)), each

            (grads, sums), each = lax.scan(add, zeros, micros)
        (grads, slopes), (metrics, observed) = psum((grads, sums))

        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        routing = state.routing
        if running and observed:
            rows = metrics["hard"][1] if draws else examples
            means = {name: value / rows for name, value in observed.items()}
            routing = thresholds.follow(routing, means, state.step, cfg.net.route.decay)
        dual = state.dual
        if control:
            target, hard = control.target(state.step), metrics["hard"][0] / metrics["hard"][1]
            dual = control.ascend(dual, state.step, hard)
        wish = state.demand
        if wish:
            wish = demand.follow(wish, metrics["lost"][0] / metrics["lost"][1])
            metrics["lost"] = (wish["lost_2xN"][0], jnp.float32(1))
        fine = jnp.isfinite(norm) & jnp.isfinite(metrics[f"{OWN}loss"][0])
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)  # noqa: E731
        pruned = state.prune
        if pruned:
            pruned = pruned | {"slopes": prune.follow(pruned["slopes"], slopes, state.step)}
        table = state.sampler
        if draws:
            own = (batch["index_B"], *jax.tree.map(jnp.ravel, each))
            own = lax.all_gather(own, axis, tiled=True) if axis else own
            table, drawn = sampler.advance(cfg.sampler, keep(sampler.observe(cfg.sampler, table, *own), table), key,
                                           state.step, groups)  # fmt: skip
        new = TrainState(
            state.step + 1,
            keep(params, state.params),
            keep(opt_state, state.opt_state),
            keep(routing, state.routing),
            jnp.where(fine, 0, state.skipped + 1),
            keep(dual, state.dual),
            keep(wish, state.demand | {"program": wish["program"]}) if wish else {},
            table,
            keep(pruned, state.prune),
        )
        one = jnp.float32(1)
        metrics |= {
            "grad_norm": (norm, one),
            "lam": (knobs.lam, one),
            "lr": (lr_at(state.step), one),
        }
        metrics |= {name: (value, one) for name, value in state.routing.items()}
        metrics |= {
            "temperature": (knobs.temperature, one),
            "skipped": (new.skipped.astype(jnp.float32), one),
        }
        if wish:
            metrics |= {"program_next": (new.demand["next"].astype(jnp.float32), one)}
        if control:
            metrics |= {"budget_target": (target, one), "budget_gap": (hard - target, one)}
            metrics |= {
                "multiplier": (state.dual["multiplier"], one),
                "rate": (control.rate(state.step), one),
            }
        if draws:
            w, w2 = psum((batch["weight_B"].sum(), jnp.square(batch["weight_B"]).sum()))
            metrics |= {"sampler_effective": (jnp.square(w) / w2, examples), "drawn": drawn}
            metrics |= {"sampler_seen": (table.seen_N.astype(jnp.float32).mean(), one)}
        return new, metrics

    return train_step


def plan_budget(cfg: RunCfg, vocab: int, total: int, per_epoch: int) -> budget.Plan | None:
    """The plan of objective.budget, priced by the model's own costs; None without one."""
    if cfg.objective.budget == 0.0:
        return None
    price = models.pricing(cfg, vocab)
    return budget.plan(cfg.objective, cfg.net, cfg.task.seq_len, *price, total, per_epoch)


def make_eval_step(model: Model, task: Task) -> Callable[..., Metrics]:
    """eval_step(state, batch, *, axis=None) -> metrics: no noise, thresholds as they stand."""

    def eval_step(state: TrainState, batch: Batch, *, axis: str | None = None):
        variables = {"params": state.effective, "routing": state.routing}
        one = jnp.float32(1)
        _, (metrics, _, _) = objective(
            model, task, variables, batch, neutral_knobs(), None, one, one
        )
        return lax.psum(metrics, axis) if axis else metrics

    return eval_step


def check_cost_gradient(model: Model, state: TrainState, batch: Batch, lam: float) -> None:
    """UserError if λ > 0 but the expected cost has a zero gradient in every parameter: nothing could move it.

    A router that keeps no more than its floor has none where it stands, and may have one elsewhere: so also near there.
    """
    if lam == 0.0:
        return
    # more than one: the cost of an example that fills its slots is flat
    few = {name: x[:4] for name, x in batch.items()}

    @jax.jit
    def largest(params):
        def cost(p):
            return model.apply({"params": p, "routing": state.routing}, few, neutral_knobs())[
                1
            ].expected_B.sum()

        return jnp.stack([jnp.abs(g).max() for g in jax.tree.leaves(jax.grad(cost)(params))]).max()

    def near(seed):
        noise = optax.tree_utils.tree_random_like(jax.random.key(seed), state.params)
        return optax.tree_utils.tree_add(state.params, noise)

    if not (largest(state.params) > 0 or any(largest(near(seed)) > 0 for seed in range(8))):
        raise UserError(f"objective.lam is {lam:g}, but no parameter of {model.name} changes its cost",
                        "use objective.lam=0, or a model whose routing can move")  # fmt: skip


def calibrate(model: Model, state: TrainState, batches: Any) -> TrainState:
    """The state with thresholds measured on held-out batches (route.tau = "calibrated"); `thresholds.calibrate`."""

    @jax.jit
    def scores_of(params, routing, batch):
        return model.apply({"params": params, "routing": routing}, batch, neutral_knobs())[
            1
        ].scores["score"]

    params = state.effective
    measured = thresholds.calibrate(
        lambda routing, b: scores_of(params, routing, b), state.routing, batches
    )
    return state.replace(routing=measured)
