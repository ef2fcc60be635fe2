"""Which examples a step trains on: p(x) ∝ exp(β·ρ(x) − γ·C(x)), with a floor (Cerebra 3.4).

ρ is the running loss of the example, standardised over the examples seen so far (0 for the others); C its running
expected cost, 1.0 = dense. Both come out of the training step itself: no forward pass is added. A batch is drawn
without replacement (Gumbel top-k, Kool et al. 2019, arXiv:1903.06059).

The batch of step t follows what steps up to t − 2 have shown: each step draws the batch of the step after the next, so
that the host gathers its rows while the device works. The draws not yet used stand in the state, hence in the
checkpoint. A draw is a pure function of (key, step, table) and is the same on every host, which takes its rows of it.

Importance weights: an example that is drawn counts B / (N·q) times, q = 1 − exp(−exp(log p − κ)) its inclusion
probability given κ, the largest perturbed log p that was not drawn. (Σ_drawn weight·f) / B is then exactly unbiased for
the mean of f over all N examples, at any B < N (priority sampling: Duffield, Lund & Thorup 2007,
doi:10.1145/1314690.1314696); for B ≪ N the weight is nearly 1/(N·p). The weights average 1 in expectation and are not
divided by their own sum, which would bias the gradient by O(1/B). The clip is the one bias, and the floor, which keeps
1/(N·p) below 1/floor, leaves it little to cut.

With groups (the buckets of task.buckets) a batch is of one group, drawn first, with the sum of its p: examples of low C
are then short programs too. q is the inclusion probability among the group, times that of the group: unbiased again.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.config import SamplerCfg

AHEAD = 2  # steps between a draw and its use
_STREAM, _GROUP = (
    0x5A,
    0x5B,
)  # keep the draws apart from dropout and routing noise, keyed by the step too


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


def init(cfg: SamplerCfg, examples: int, batch_size: int, key: jax.Array, first: int,
         group_N: np.ndarray | None = None) -> Sampler:  # fmt: skip
    """Nothing is known: the draws of steps `first` and `first` + 1 are uniform."""
    zero_N = jnp.zeros(examples, jnp.float32)
    empty = Drawn(
        jnp.zeros((AHEAD, batch_size), jnp.int32), jnp.zeros((AHEAD, batch_size), jnp.float32)
    )
    s = Sampler(zero_N, zero_N + 1.0, zero_N > 0, empty)
    each = [draw(cfg, s, key, first + i, group_N) for i in range(AHEAD)]
    return s._replace(drawn=Drawn(*(jnp.stack(x) for x in zip(*each, strict=True))))


def probs(cfg: SamplerCfg, s: Sampler) -> jax.Array:
    """p_N = (1 − floor)·softmax(β·ρ − γ·C) + floor / N."""
    n = jnp.maximum(1, s.seen_N.sum()).astype(jnp.float32)
    mean = (s.loss_N * s.seen_N).sum() / n
    far_N = jnp.where(s.seen_N, s.loss_N - mean, 0.0)
    rho_N = far_N / jnp.maximum(1e-6, jnp.sqrt(jnp.square(far_N).sum() / n))
    cost_N = jnp.where(s.seen_N, s.cost_N, (s.cost_N * s.seen_N).sum() / n)
    return (1 - cfg.floor) * jax.nn.softmax(
        cfg.beta * rho_N - cfg.gamma * cost_N
    ) + cfg.floor / rho_N.size


def observe(cfg: SamplerCfg, s: Sampler, index_B: jax.Array, loss_B: jax.Array, cost_B: jax.Array,
            real_B: jax.Array) -> Sampler:  # fmt: skip
    """The table with what a step showed of the examples index_B: running means of memory `decay`, from the first value
    on. Rows that are not real leave it as it was."""

    def follow(table_N, new_B):
        old_B = table_N[index_B]
        new_B = jnp.where(s.seen_N[index_B], cfg.decay * old_B + (1 - cfg.decay) * new_B, new_B)
        return table_N.at[index_B].set(jnp.where(real_B, new_B, old_B))

    seen_N = s.seen_N.at[index_B].set(s.seen_N[index_B] | real_B)
    return s._replace(
        loss_N=follow(s.loss_N, loss_B), cost_N=follow(s.cost_N, cost_B), seen_N=seen_N
    )


def draw(
    cfg: SamplerCfg, s: Sampler, key: jax.Array, step, group_N: np.ndarray | None = None
) -> Drawn:
    """The batch of a step: B different examples, each with its importance weight (curriculum: 1). With group_N, the
    number of the group of each example, all of one group; a group has none or more than B."""
    B, N = s.drawn.index_B.shape[1], s.loss_N.size  # noqa: N806
    p_N, chance = probs(cfg, s), 1.0
    logp_N = jnp.log(p_N)
    if group_N is not None:
        mass_G = jnp.zeros(int(group_N.max()) + 1).at[group_N].add(p_N)
        chosen = jax.random.categorical(
            jax.random.fold_in(jax.random.fold_in(key, _GROUP), step), jnp.log(mass_G)
        )
        logp_N, chance = jnp.where(group_N == chosen, logp_N, -jnp.inf), mass_G[chosen]
    noise_N = jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, _STREAM), step), (N,))
    best, index = jax.lax.top_k(logp_N + noise_N, B + 1)
    index_B = index[:B]
    if cfg.mode == "curriculum":
        return Drawn(index_B, jnp.ones(B, jnp.float32))
    included_B = -jnp.expm1(-jnp.exp(logp_N[index_B] - best[B]))
    return Drawn(index_B, jnp.minimum(cfg.clip, B / (N * chance * included_B)))


def advance(cfg: SamplerCfg, s: Sampler, key: jax.Array, step,
            group_N: np.ndarray | None = None) -> tuple[Sampler, Drawn]:  # fmt: skip
    """The state after a step, and the draw that joins it: the batch of step + AHEAD."""
    new = draw(cfg, s, key, step + AHEAD, group_N)
    queue = Drawn(*(jnp.concatenate([q[1:], x[None]]) for q, x in zip(s.drawn, new, strict=True)))
    return s._replace(drawn=queue), new
