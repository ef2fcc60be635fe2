"""What a configuration and its task give to a run, before anything is compiled.

`prepare` derives all of it, one value from the other; nothing changes afterwards. The compiled
steps are programs.py, and what changes from step to step is trainer.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from cerebra_jax import checks
from cerebra_jax.config import RunCfg
from cerebra_jax.cost.device import present_platform
from cerebra_jax.errors import UserError
from cerebra_jax.models.model import Model
from cerebra_jax.policies import division, sampler
from cerebra_jax.policies.adaptive_capacity import AdaptiveCapacity
from cerebra_jax.policies.budget import Budget
from cerebra_jax.policies.demand import Demand
from cerebra_jax.policies.division import Division
from cerebra_jax.policies.policy import Policy
from cerebra_jax.policies.sampler import Drawn, Sampling
from cerebra_jax.policies.schedule import Length
from cerebra_jax.policies.thresholds import RunningThresholds
from cerebra_jax.tasks.registry import fitted
from cerebra_jax.tasks.task import Task
from cerebra_jax.training import optimizer as optim
from cerebra_jax.training import pruning_rounds, state
from cerebra_jax.training.pruning_rounds import Rounds
from cerebra_jax.training.sizes import Sizes, controlled, sizes
from cerebra_jax.types import Batch

LEAK = (
    "not causal: these figures use later tokens and the other texts of a batch "
    "(net.route.meta=batch)"
)


class Serving(NamedTuple):
    """Which program evaluates a state and is reported."""

    size: int
    quantized: bool
    remaining: float | None = None  # of a pruned run: its executed cost if shrunk to its masks
    by_layer: Division = ()  # how its slots are divided, where the run does so


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """The parts of a run that are fixed before its first step. Made by `prepare`."""

    cfg: RunCfg  # as it really runs: `resolved`
    task: Task
    length: Length
    sizes: Sizes
    rounds: Rounds  # of pruning
    optimizer: optax.GradientTransformation
    sampling: Sampling | None
    quantized_from: int  # the first step in 8 bits; the total: the result alone is; beyond it: none
    key: jax.Array

    # its figures

    @property
    def micro(self) -> int:
        """Examples of a micro-batch."""
        return self.cfg.train.batch_size // self.cfg.train.accum

    @property
    def penalty(self) -> float:
        """A weight that the expected cost will have in J; 0 where it never has one."""
        if self.sizes.plan:
            return float(self.sizes.plan.steers == "penalty")
        return self.cfg.objective.lam

    @property
    def notice(self) -> str:
        """What must stand beside its figures.

        It is about the data, and about a language model that sees what it predicts.
        """
        model = self.model
        leak = LEAK if model.net.causal and not model.causal else ""
        return "; ".join(text for text in (self.task.notice, leak) if text)

    @property
    def divides(self) -> bool:
        """Whether the run divides its slots among the layers by demand."""
        return by_demand(self.cfg)

    def score(self, line: dict[str, Any]) -> float:
        """Returns what the checkpoint to be tested is chosen by, from its validation line.

        Less is better.
        """
        choice = self.task.choice
        return line[choice.key] if choice.lower else -line[choice.key]

    @property
    def largest_loss(self) -> float:
        """A loss beyond which a run has diverged: nats, or squared standard deviations.

        More than 700 nats are more than 1e300 perplexity.
        """
        return 1e6 if self.task.shape.outputs == 1 else 700.0

    @property
    def cure(self) -> str:
        """What helps against a loss that is huge or not finite."""
        hint = f"lower train.lr (it is {self.cfg.train.lr:g})"
        if self.task.shape.outputs == 1:
            hint += ", or bound what is learnt: task.target_scale=quantile"
        return hint

    # its models

    @property
    def model(self) -> Model:
        """The model that evaluates before the first step."""
        return self.model_of(self.first)

    @property
    def first(self) -> Serving:
        """The program that evaluates before the first step."""
        return Serving(self.sizes.final, self.quantized(0))

    def quantized(self, step: int) -> bool:
        """Returns whether a state after `step` steps is evaluated, and trained on, in 8 bits."""
        return step >= self.quantized_from

    def serving(self, found: state.TrainState) -> Serving:
        """Returns the program for a state: its size, its precision, and what its masks leave."""
        size = int(found.demand["program"]) if self.sizes.slots else self.sizes.final
        remaining = None
        if self.cfg.prune.on:
            remaining = self.rounds.relative(jax.device_get(found.prune))
        by_layer: Division = ()
        if self.divides:
            by_layer = division.stored(jax.device_get(found.division["by_layer_R"]).tolist())
        return Serving(size, self.quantized(int(found.step)), remaining, by_layer)

    def model_of(self, serving: Serving, length: int = 0) -> Model:
        """Returns the model of a program, for examples of `length` tokens (0: L)."""
        return self.sizes.model(serving.size, length, serving.quantized, serving.by_layer)

    # its state

    def policies(self, serving: Serving, draws: bool) -> tuple[Policy, ...]:
        """Returns the policies of the step of one program, on plain batches or the sampler's."""
        given, size = policies(self.cfg), serving.size
        if plan := self.sizes.planned(size, serving.by_layer):
            capacity = self.sizes.cfgs[size].net.route.capacity
            given += (Budget(plan, size, capacity, self.cfg.objective),)
        if self.sizes.slots:
            given += (AdaptiveCapacity(self.sizes.slots),)
        if self.sampling and draws:
            given += (self.sampling,)
        return given

    def fresh(self) -> state.TrainState:
        """Returns the state before the first step."""
        return self._initializer(self.key)

    @functools.cached_property
    def like(self) -> state.TrainState:
        """Shapes and dtypes of the state."""
        return jax.eval_shape(self._initializer, self.key)

    @functools.cached_property
    def _initializer(self) -> Callable[[jax.Array], state.TrainState]:
        given = self.policies(self.first, draws=True)
        return state.initializer(self.model, self.optimizer, self.task.example(1), given)

    # its batches

    def draws(self, step: int) -> bool:
        """Returns whether the sampler chooses the batch of the step after `step` steps."""
        return self.sampling is not None and step >= self.sampling.first

    def drawn(self, host: state.TrainState, step: int) -> dict[int, Drawn]:
        """Returns the draws that a state after `step` steps holds, by the step they are for."""
        if self.sampling is None:
            return {}
        first = max(step, self.sampling.first)
        queue = [np.asarray(x) for x in host.sampler.drawn]
        return {first + i: Drawn(*(x[i] for x in queue)) for i in range(sampler.AHEAD)}

    def batch(self, step: int, drawn: dict[int, Drawn], passed_over: int = 0) -> Batch:
        """Returns the batch of the step after `step` steps, of which some batches are left out.

        A draw for it is taken out of `drawn`.
        """
        seed = self.cfg.seed
        if not self.draws(step):
            return self.task.train_batch(seed, step + passed_over, self.cfg.train.batch_size)
        index_B, weight_B = drawn.pop(step)
        batch = self.task.pick(seed, step, np.asarray(index_B))
        return batch | {"index_B": index_B[batch["ex_B"]], "weight_B": weight_B[batch["ex_B"]]}

    def tokens(self, batch: Batch) -> int:
        """Returns the tokens of each example of a batch."""
        return batch["mask_BxL"].shape[1] if self.task.shape.lengths else self.sizes.tokens


def prepare(cfg: RunCfg, task: Task, platform: str = "") -> Experiment:
    """Returns the experiment of a configuration; raises UserError for what its task cannot do.

    Its programs are for `platform`, cpu, gpu, old_gpu or tpu; "": for the present one.
    """
    # how long it is, and of which programs
    cfg = resolved(cfg, task)
    runs_on = platform or present_platform()
    if cfg.net.attention == "cudnn" and runs_on not in ("gpu", "old_gpu"):
        what = f"net.attention is cudnn, and the programs are for a {runs_on}"
        raise UserError(what, "use net.attention=auto, which takes cuDNN's kernel on a GPU")
    length = length_of(cfg, task)
    vocab = task.shape.vocab_size
    programs = sizes(cfg, vocab, length, platform)
    quantized_from = _quantized_from(cfg, length)
    model = programs.model(programs.final, 0, quantized_from <= 0)

    # what happens in it
    optimizer = optax.identity() if cfg.quant.stored else optim.make(cfg.train, length)
    experiment = Experiment(
        cfg=cfg,
        task=task,
        length=length,
        sizes=programs,
        rounds=Rounds(cfg, model, vocab, length),
        optimizer=optimizer,
        sampling=_sampling(cfg, task, length),
        quantized_from=quantized_from,
        key=jax.random.key(cfg.seed),
    )
    _check_lengths(experiment)
    return experiment


def resolved(cfg: RunCfg, task: Task) -> RunCfg:
    """Returns what really runs: cfg with what its task decides, or the control that it names.

    A control runs at the rate that a budget chose for the model it is compared with.
    """
    return controlled(fitted(cfg, task.shape), task.shape.vocab_size, length_of(cfg, task))


def length_of(cfg: RunCfg, task: Task) -> Length:
    """Returns the length of a run on the data of its task."""
    per_epoch = task.steps_per_epoch(cfg.train.batch_size)
    return Length(Length(0, per_epoch).steps(cfg.train.duration), per_epoch)


def policies(cfg: RunCfg) -> tuple[Policy, ...]:
    """Returns the policies that a configuration has by itself, whatever its task and its size."""
    given: tuple[Policy, ...] = ()
    if cfg.net.name in checks.ROUTED and cfg.net.route.tau != "calibrated":
        given += (RunningThresholds(cfg.net.route.decay),)
    if by_demand(cfg):
        given += (Demand(cfg.net.depth),)
    if cfg.prune.on:
        given += (pruning_rounds.policy(cfg),)
    return given


def by_demand(cfg: RunCfg) -> bool:
    """Returns whether a run of this configuration divides its slots by demand."""
    return cfg.net.name == "cerebra" and cfg.net.route.by_demand


def _sampling(cfg: RunCfg, task: Task, length: Length) -> Sampling | None:
    """Returns the sampler of a run, if it has one.

    Raises UserError where there is nothing to choose from.
    """
    if not cfg.sampler.on:
        return None
    size = cfg.train.batch_size
    set_ = "sampler.beta or sampler.gamma is set"
    off = "use sampler.beta=0 and sampler.gamma=0"
    checks.require(
        task.examples > 0, f"{set_}, but {cfg.task.name} makes new examples at every step", off
    )
    checks.require(
        task.examples > size,
        f"{set_}, but there are {task.examples} examples for batches of {size}",
        f"{off}, or smaller batches",
    )
    groups = task.group_N if task.shape.lengths else None
    return Sampling(cfg.sampler, task.examples, size, length.steps(cfg.sampler.start), groups)


def _quantized_from(cfg: RunCfg, length: Length) -> int:
    """Returns the first step that is in 8 bits, counted from 0.

    Beyond the run without quantization.
    """
    if not cfg.quant.bits:
        return length.total + 1
    first = 0 if cfg.quant.stored else length.steps(cfg.quant.start)
    checks.require(
        first <= length.total,
        f"quant.start is {cfg.quant.start!r}, step {first:,} of {length.total:,}",
        "begin before the end: quant.start='0.7 frac'",
    )
    return first


def _check_lengths(experiment: Experiment) -> None:
    """Raises UserError where a model for shorter examples has other parameters."""

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.shape, tree)

    example = experiment.task.example(1)
    for length in experiment.task.shape.lengths[:-1]:
        cut = {name: x[:, :length] if x.ndim > 1 else x for name, x in example.items()}
        model = experiment.sizes.model(0, length)
        found = jax.eval_shape(model.init, experiment.key, cut)["params"]
        checks.require(
            shapes(found) == shapes(experiment.like.params),
            f"net.name={experiment.cfg.net.name} has other parameters for {length} tokens than for "
            f"{experiment.sizes.tokens}",
            "use other task.buckets, or net.compress.kind=attention",
        )
