"""Which examples a step trains on: p(x) ∝ exp(β·ρ(x) − γ·C(x)), with a floor (Cerebra 3.4).

ρ is the running loss of the example, standardised over the examples seen so far (0 for the others);
C its running expected cost, 1.0 = dense. Both come out of the training step itself: no forward pass
is added. A batch is drawn without replacement (Gumbel top-k, Kool et al. 2019, arXiv:1903.06059).

The batch of step t follows what steps up to t − 2 have shown: each step draws the batch of the step
after the next, so that the host gathers its rows while the device works. The draws not yet used
stand in the state, hence in the checkpoint. A draw is a pure function of (key, step, table) and is
the same on every host, which takes its rows of it.

Importance weights: an example that is drawn counts B / (N·q) times, q = 1 − exp(−exp(log p − κ))
its inclusion probability given κ, the largest perturbed log p that was not drawn. (Σ_drawn
weight·f) / B is then exactly unbiased for the mean of f over all N examples, at any B < N (priority
sampling: Duffield, Lund & Thorup 2007, doi:10.1145/1314690.1314696); for B ≪ N the weight is nearly
1/(N·p). The weights average 1 in expectation and are not divided by their own sum, which would bias
the gradient by O(1/B). The clip is the one bias, and the floor, which keeps 1/(N·p) below 1/floor,
leaves it little to cut. How much it does cut off is a metric of each step, `CLIPPED`.

With groups (the buckets of task.buckets) a batch is of one group, drawn first, with the sum of its
p: examples of low C are then short programs too. q is the inclusion probability among the group,
times that of the group: unbiased again.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.config import SamplerCfg
from cerebra_jax.policies.policy import (
    Losses,
    Metrics,
    Observed,
    Outcome,
    Policy,
    Seen,
    Shown,
    TaskLosses,
    once,
)

CLIPPED = "sampler_clipped"  # metric: share of the weight of all examples that the clip cut off
AHEAD = 2  # steps between a draw and its use
_STREAM = 0x5A  # keeps the draws apart from dropout and routing noise, keyed by the step too
_GROUP = 0x5B


class Drawn(NamedTuple):
    """A batch to be: numbers of training examples, and their weights."""

    index_B: jax.Array  # int32; with a leading axis of AHEAD steps in the state
    weight_B: jax.Array  # float32


class Sampler(NamedTuple):
    """What is known of each training example, and the next two draws."""

    loss_N: jax.Array
    cost_N: jax.Array
    seen_N: jax.Array  # bool
    drawn: Drawn


class Each(NamedTuple):
    """What a step showed of each example of its batch."""

    loss_B: jax.Array  # mean loss
    cost_B: jax.Array  # expected cost
    real_B: jax.Array  # bool: it is an example, not padding


@dataclasses.dataclass(frozen=True, eq=False)
class Sampling(Policy):
    """Trains on batches that it draws; each has its index_B and weight_B.

    Its metric "drawn" is no (sum, count) pair but the `Drawn` of step + AHEAD.
    """

    cfg: SamplerCfg
    examples: int
    batch_size: int
    first: int  # the step it begins at
    group_N: np.ndarray | None = None  # the group of each example, where a batch is of one group

    owns: ClassVar[str] = "sampler"

    def init(self, variables: Any, key: jax.Array) -> Sampler:
        """Returns a table that knows nothing, with uniform draws for the first two steps."""
        empty = Drawn(
            jnp.zeros((AHEAD, self.batch_size), jnp.int32),
            jnp.zeros((AHEAD, self.batch_size), jnp.float32),
        )
        zero_N = jnp.zeros(self.examples, jnp.float32)
        table = Sampler(zero_N, zero_N + 1.0, zero_N > 0, empty)
        draws = [self.draw(table, key, self.first + i) for i in range(AHEAD)]
        queue = Drawn(*(jnp.stack(x) for x in zip(*draws, strict=True)))
        return table._replace(drawn=queue)

    def losses(self, compute: TaskLosses) -> TaskLosses:
        """Returns losses that weigh the examples, and tell the mean of each."""
        return weighted_losses

    def observe(self, shown: Shown) -> Observed:
        """Returns loss and expected cost of each example."""
        return Observed(listed=Each(shown.losses.mean_B, shown.aux.expected_B, shown.real_B))

    def after(self, own: Sampler, seen: Seen, outcome: Outcome) -> tuple[Sampler, Metrics]:
        """Enters what the step showed, and draws the batch of the step after the next.

        It draws even if the step was not finite: the host waits for a batch.
        """
        each = Each(*(jnp.ravel(x) for x in seen.listed))
        index_B, each = outcome.gathered((outcome.batch["index_B"], each))
        learned = outcome.keep(self.learn(own, index_B, each), own)
        table, drawn = self.advance(learned, outcome.key, outcome.step)
        weight_B = outcome.batch["weight_B"]
        total, squares = outcome.total((weight_B.sum(), jnp.square(weight_B).sum()))
        metrics = {
            "sampler_effective": (jnp.square(total) / squares, outcome.examples),
            "sampler_seen": once(table.seen_N.astype(jnp.float32).mean()),
            "drawn": drawn,
        }
        if self.cfg.mode == "importance":
            metrics[CLIPPED] = once(self.clipped(learned, outcome.key, outcome.step + AHEAD))
        return table, metrics

    def learn(self, table: Sampler, index_B: jax.Array, each: Each) -> Sampler:
        """Returns the table with what a step showed of the examples index_B.

        Running means of memory `decay`, from the first value on. Rows that are not real leave it as
        it was.
        """
        decay = self.cfg.decay

        def follow(table_N, new_B):
            old_B = table_N[index_B]
            mean_B = decay * old_B + (1 - decay) * new_B
            new_B = jnp.where(table.seen_N[index_B], mean_B, new_B)
            return table_N.at[index_B].set(jnp.where(each.real_B, new_B, old_B))

        return table._replace(
            loss_N=follow(table.loss_N, each.loss_B),
            cost_N=follow(table.cost_N, each.cost_B),
            seen_N=table.seen_N.at[index_B].set(table.seen_N[index_B] | each.real_B),
        )

    def draw(self, table: Sampler, key: jax.Array, step: Any) -> Drawn:
        """Returns the batch of a step: B different examples, each with its importance weight.

        A curriculum has weights of 1.
        """
        drawn = self._drawn(table, key, step)
        if self.cfg.mode == "curriculum":
            return drawn._replace(weight_B=jnp.ones_like(drawn.weight_B))
        return drawn._replace(weight_B=jnp.minimum(self.cfg.clip, drawn.weight_B))

    def clipped(self, table: Sampler, key: jax.Array, step: Any) -> jax.Array:
        """Returns how much weight the clip cuts off the batch of a step, as a share of B.

        B is the expected weight of a batch. So the mean over steps is the bias of the clip: the
        share of the mean over all examples that no batch stands for.
        """
        weight_B = self._drawn(table, key, step).weight_B
        return jnp.maximum(0.0, weight_B - self.cfg.clip).mean()

    def _drawn(self, table: Sampler, key: jax.Array, step: Any) -> Drawn:
        """Returns the batch of a step with its weights as they are before the clip.

        With group_N all of them are of one group; a group has none or more than B.
        """
        B = table.drawn.index_B.shape[1]
        N = table.loss_N.size
        p_N = probs(self.cfg, table)
        logp_N, chance = jnp.log(p_N), 1.0
        if self.group_N is not None:
            mass_G = jnp.zeros(int(self.group_N.max()) + 1).at[self.group_N].add(p_N)
            group_key = jax.random.fold_in(jax.random.fold_in(key, _GROUP), step)
            chosen = jax.random.categorical(group_key, jnp.log(mass_G))
            logp_N = jnp.where(self.group_N == chosen, logp_N, -jnp.inf)
            chance = mass_G[chosen]
        # Gumbel top-k draws without replacement; the score after the last is the threshold of
        # inclusion
        noise_N = jax.random.gumbel(
            jax.random.fold_in(jax.random.fold_in(key, _STREAM), step), (N,)
        )
        best, index = jax.lax.top_k(logp_N + noise_N, B + 1)
        index_B = index[:B]
        included_B = -jnp.expm1(-jnp.exp(logp_N[index_B] - best[B]))
        return Drawn(index_B, B / (N * chance * included_B))

    def advance(self, table: Sampler, key: jax.Array, step: Any) -> tuple[Sampler, Drawn]:
        """Returns the table after a step, and the draw that joins it: the batch of step + AHEAD."""
        new = self.draw(table, key, step + AHEAD)
        pairs = zip(table.drawn, new, strict=True)
        queue = Drawn(*(jnp.concatenate([waiting[1:], x[None]]) for waiting, x in pairs))
        return table._replace(drawn=queue), new


def weighted_losses(task: Any, out: Any, batch: Any, chunk: int) -> Losses:
    """Returns the losses of a drawn batch: each example counts weight_B times in all sums."""
    weighted = batch | {"w_BxL": batch["w_BxL"] * batch["weight_B"][:, None]}
    total, sums = task.loss(out, weighted, chunk, each=True)
    loss_B, targets_B = sums["each"]
    real_B = weighted["w_BxL"].any(axis=1)
    mean_B = loss_B / jnp.where(real_B, targets_B, 1.0)
    figures = {name: pair for name, pair in sums.items() if name != "each"}
    return Losses(total, figures, real_B.astype(jnp.float32) * batch["weight_B"], mean_B)


def probs(cfg: SamplerCfg, table: Sampler) -> jax.Array:
    """Returns p_N = (1 − floor)·softmax(β·ρ − γ·C) + floor / N."""
    seen = jnp.maximum(1, table.seen_N.sum()).astype(jnp.float32)
    mean = (table.loss_N * table.seen_N).sum() / seen
    far_N = jnp.where(table.seen_N, table.loss_N - mean, 0.0)
    rho_N = far_N / jnp.maximum(1e-6, jnp.sqrt(jnp.square(far_N).sum() / seen))
    mean_cost = (table.cost_N * table.seen_N).sum() / seen
    cost_N = jnp.where(table.seen_N, table.cost_N, mean_cost)
    chosen_N = jax.nn.softmax(cfg.beta * rho_N - cfg.gamma * cost_N)
    return (1 - cfg.floor) * chosen_N + cfg.floor / rho_N.size
