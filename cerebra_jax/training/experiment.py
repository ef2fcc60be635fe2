"""What a configuration and its task give to a run: model, programs, durations, the shape of the state."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from cerebra_jax import checks
from cerebra_jax.config import RunCfg, to_steps
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.errors import Diverged
from cerebra_jax.models import model as models
from cerebra_jax.models.controls import control
from cerebra_jax.policies import adaptive_capacity as demand
from cerebra_jax.policies import budget, sampler
from cerebra_jax.policies import schedule as phases
from cerebra_jax.tasks.registry import fitted
from cerebra_jax.tasks.task import Task
from cerebra_jax.training import metrics, parallel, state, step
from cerebra_jax.training import optimizer as optim
from cerebra_jax.training import pruning_rounds as rounds
from cerebra_jax.training.objective import OWN
from cerebra_jax.types import Batch


def resolved(cfg: RunCfg, task: Task) -> RunCfg:
    """What really runs: cfg with what its task decides, or the twin that it names, at the rate that a budget chose."""
    cfg = fitted(cfg, task.shape)
    if cfg.twin and cfg.objective.budget:
        rate = Session(dataclasses.replace(cfg, twin=""), task).model.net.route.rate
        cfg = dataclasses.replace(models.at_rate(cfg, rate), twin=cfg.twin)
    return control(cfg, task.shape.vocab_size)


LEAK = "not causal: these figures use later tokens and the other texts of a batch (net.route.meta=batch)"


class Session:
    """`model` is the one that evaluates and is reported; under a budget larger programs lead down to it, under a λ
    demand chooses among several (`adopt`). With task.buckets each comes in several lengths: `model` is that of L."""

    def __init__(self, cfg: RunCfg, task: Task):
        cfg = resolved(cfg, task)
        self.cfg, self.task = cfg, task
        t, vocab = cfg.train, task.shape.vocab_size
        self.per_epoch = task.steps_per_epoch(t.batch_size)
        self.total = to_steps(t.duration, 0, self.per_epoch)
        self.plan = step.plan_budget(cfg, vocab, self.total, self.per_epoch)
        rates = self.plan.rates if self.plan else ()
        self._cfgs = [models.at_rate(cfg, rate) for rate in rates] or demand.programs(cfg)
        self.shares = () if self.plan or len(self._cfgs) < 2 else demand.shares(self._cfgs)
        self._built = functools.cache(self._build)
        self.final = (
            len(self._cfgs) - 1 if self.plan else 0
        )  # the program that a run without demand ends in
        self.model = self.built(self.final)
        self._demanded: dict[int, int] = {}
        self.eight_from = self._eight_from()
        self.optimizer = (
            optax.identity() if cfg.quant.stored else optim.make(t, self.total, self.per_epoch)
        )
        self.key = jax.random.key(cfg.seed)
        self.groups = task.group_N if task.shape.lengths else None
        if cfg.sampler.on:
            self._check_sampler()
        self.first_draw = self.steps(cfg.sampler.start) if cfg.sampler.on else self.total
        self.rounds = rounds.Rounds(cfg, self.model, vocab, self.total, self.per_epoch)
        self.like = jax.eval_shape(self.fresh)
        self._check_lengths()
        self.micro = t.batch_size // t.accum
        self.devices = parallel.choose_devices(t.devices, t.batch_size, t.accum)
        self.program = functools.cache(self._program)
        self.adopt(self.final, self.eight(0))

    def _check_sampler(self) -> None:
        """UserError where there is nothing to choose from."""
        N, B = self.task.examples, self.cfg.train.batch_size  # noqa: N806
        what = "sampler.beta or sampler.gamma is set"
        off = "use sampler.beta=0 and sampler.gamma=0"
        checks.need(
            N > 0, f"{what}, but {self.cfg.task.name} makes new examples at every step", off
        )
        checks.need(
            N > B,
            f"{what}, but there are {N} examples for batches of {B}",
            f"{off}, or smaller batches",
        )

    def _eight_from(self) -> int:
        """The first step that is in 8 bits, counted from 0; `total`: the result alone is; beyond it: nothing."""
        q = self.cfg.quant
        if not q.bits:
            return self.total + 1
        first = 0 if q.stored else self.steps(q.start)
        what = f"quant.start is {q.start!r}, step {first:,} of {self.total:,}"
        checks.need(first <= self.total, what, "begin before the end: quant.start='0.7 frac'")
        return first

    def eight(self, at: int) -> bool:
        """Whether a state after `at` steps is evaluated, and trained on, in 8 bits."""
        return at >= self.eight_from

    def _check_lengths(self) -> None:
        """UserError where a model for shorter examples has other parameters."""
        example, shapes = self.task.example(1), lambda tree: jax.tree.map(lambda x: x.shape, tree)
        for length in self.task.shape.lengths[:-1]:
            cut = {name: x[:, :length] if x.ndim > 1 else x for name, x in example.items()}
            found = jax.eval_shape(self.built(0, length).init, self.key, cut)["params"]
            checks.need(
                shapes(found) == shapes(self.like.params),
                f"net.name={self.cfg.net.name} has other parameters for {length} tokens than for {self.model.L}",
                "use other task.buckets, or net.compress.kind=attention",
            )

    def _build(self, bucket: int, length: int, eight: bool) -> models.Model:
        cfg, L = self._cfgs[bucket], self.cfg.task.seq_len  # noqa: N806
        cfg = dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, seq_len=length))
        return models.build(cfg, self.task.shape.vocab_size, L, eight)

    def built(self, bucket: int, length: int = 0, eight: bool = False) -> models.Model:
        """The model of a program, for batches of `length` tokens (0: L); its costs are relative to dense at L."""
        return self._built(bucket, length or self.cfg.task.seq_len, eight)

    def length(self, batch: Batch) -> int:
        """Tokens of each example of a batch."""
        return batch["mask_BxL"].shape[1] if self.task.shape.lengths else self.cfg.task.seq_len

    def _program(
        self, bucket: int, length: int, draws: bool, eight: bool = False
    ) -> parallel.DataParallel:
        """The compiled steps of one of the programs, of plain batches or of the sampler's, for batches of a length, in
        float or in 8 bits."""
        cfg, o, control = self._cfgs[bucket], self.cfg.objective, None
        if self.plan:
            control = budget.Control(
                self.plan, bucket, cfg.net.route.capacity, o.dual_rate, o.lam_max
            )
        model = self.built(bucket, length, eight)
        common = (model, self.task, self.optimizer, cfg, self.total, self.per_epoch)
        train = step.make_train_step(*common, control, self.shares, draws, self.groups)
        return parallel.DataParallel(train, step.make_eval_step(model, self.task), self.devices)

    def draws(self, at: int) -> bool:
        """Whether the sampler chooses the batch of the step after `at` steps."""
        return at >= self.first_draw

    def drawn(self, host: state.TrainState, at: int) -> dict[int, sampler.Drawn]:
        """The draws that a state after `at` steps holds, by the step they are for."""
        if not self.cfg.sampler.on:
            return {}
        queue, first = host.sampler.drawn, max(at, self.first_draw)
        return {
            first + i: sampler.Drawn(*(np.asarray(x[i]) for x in queue))
            for i in range(sampler.AHEAD)
        }

    def batch(self, at: int, drawn: dict[int, sampler.Drawn]) -> Batch:
        """The batch of the step after `at` steps; what the sampler drew for it is taken out of `drawn`."""
        seed, B = self.cfg.seed, self.cfg.train.batch_size  # noqa: N806
        if not self.draws(at):
            return self.task.train_batch(seed, at, B)
        index_B, weight_B = drawn.pop(at)
        batch = self.task.pick(seed, at, index_B)
        return batch | {"index_B": index_B[batch["ex_B"]], "weight_B": weight_B[batch["ex_B"]]}

    def sampler_flops(self) -> int:
        """What the sampler adds to a step: its elementwise operations and comparisons, each one FLOP; 0 without one."""
        if not self.cfg.sampler.on:
            return 0
        c, row = self.cfg.sampler, jax.ShapeDtypeStruct((self.cfg.train.batch_size,), "float32")

        def work(s, index_B, loss_B, cost_B):
            seen = sampler.observe(c, s, index_B, loss_B, cost_B, loss_B > 0)
            return sampler.advance(c, seen, self.key, 0, self.groups)

        return jaxpr.count(
            work, self.like.sampler, jax.ShapeDtypeStruct(row.shape, "int32"), row, row
        ).elementwise

    def bucket(self, at: int) -> int:
        """Which program takes the step after `at` steps."""
        return self.plan.bucket(at) if self.plan else self._demanded.get(at, 0)

    def adopt(self, bucket: int, eight: bool = False) -> None:
        """From here on that program evaluates and is reported."""
        self.adopted, self.in_eight = bucket, eight
        self.model = self.built(bucket, 0, eight)
        self.parallel = self.program(bucket, self.model.L, False, eight)
        self.executed = self.model.executed

    def adopt_of(self, found: state.TrainState) -> None:
        """`adopt` for the program that takes the next step of a state, and what its masks leave."""
        if found.prune:
            self.kept = self.rounds.relative(found.prune)
        bucket = int(found.demand["program"]) if found.demand else self.adopted
        self.adopt(bucket, self.eight(int(found.step)))

    def prune(self, at: int, found: state.TrainState) -> tuple[state.TrainState, str]:
        """The state after the round of pruning at a step, and a line about it."""
        masks, line = self.rounds.turn(at, found.params, found.prune)
        self.kept = self.rounds.relative(masks)
        return found.replace(prune=masks), line

    def choose(self, at: int, bucket: int) -> None:
        """Demand has it that program `bucket` takes the step after `at` steps."""
        self._demanded[at] = bucket
        self._demanded.pop(at - 4, None)  # its line is written

    def flops_of(self, bucket: int, length: int = 0) -> int:
        """Forward FLOPs per example of a program, for batches of `length` tokens (0: L)."""
        return self.built(bucket, length).cost.executed_flops

    def fresh(self) -> state.TrainState:
        """The state before the first step."""
        new = state.init(self.model, self.optimizer, self.task.example(1), self.key, self.cfg.objective,
                         self.shares)  # fmt: skip
        new = new.replace(prune=rounds.init(self.cfg, new.params))
        if not self.cfg.sampler.on:
            return new
        make = functools.partial(
            sampler.init, self.cfg.sampler, self.task.examples, self.cfg.train.batch_size
        )
        begin = jax.jit(functools.partial(make, group_N=self.groups))
        return new.replace(sampler=begin(self.key, self.first_draw))

    @property
    def penalty(self) -> float:
        """A weight that the expected cost will have in J; 0 where it never has one."""
        return float(self.plan.steers == "penalty") if self.plan else self.cfg.objective.lam

    @property
    def notice(self) -> str:
        """What must stand beside its figures: about the data, and where a language model sees what it predicts."""
        sees = self.model.net.causal and not self.model.causal
        return "; ".join(filter(None, (self.task.notice, LEAK if sees else "")))

    def steps(self, spec: str) -> int:
        return to_steps(spec, self.total, self.per_epoch)

    def line(self, at: int, split: str, sums: metrics.Sums, ran: dict[int, int]) -> dict[str, Any]:
        """A line of metrics.jsonl from sums: the task's figures, scalars by name, per-layer figures under gates. Costs
        are named by what they count, `hard_rel_flops`; what the program executes is there in FLOPs too, the mean over
        the examples: `ran` says how many had which length."""
        own = {k.removeprefix(OWN): pair for k, pair in sums.items() if k.startswith(OWN)}
        formed = metrics.form({k: pair for k, pair in sums.items() if not k.startswith(OWN)})
        loss = metrics.form({"loss": own["loss"]})["loss"]
        figures = {} if loss is None else self.task.report(split, own)
        gates = {k: v for k, v in formed.items() if isinstance(v, list)}
        cost = {
            name: f"{name}_rel_{self.model.unit.name}" for name in ("expected", "hard", "executed")
        }
        scalars = {cost.get(k, k): v for k, v in formed.items() if k not in gates}
        pruning = self.rounds.plan.steps[:1] + self.rounds.plan.steps[-1:]
        eight = self.eight(at - 1) if split == "train" else self.in_eight
        phase = phases.phase(
            self.cfg.objective, max(0, at - 1), self.total, self.per_epoch, pruning, eight
        )
        scalars.pop("program_next", None)
        bucket = self.bucket(at - 1) if split == "train" else self.adopted
        all_of, unit_cost, flops = sum(ran.values()), 0.0, 0.0
        for length, n in ran.items():
            m = self.built(bucket, length)
            unit_cost += n / all_of * m.executed
            flops += n / all_of * m.cost.executed_flops
        executed = {"executed_rel_flops": flops / self.model.dense.executed_flops}
        head = {"step": at, "split": split, "phase": phase, "loss": loss}
        head |= {"program": bucket} if self.shares else {}
        head |= {"bits": 8} if eight else {}
        head |= {"length": max(ran)} if split == "train" and self.task.shape.lengths else {}
        head |= {name: metrics.plain(value) for name, value in figures.items()}
        executed |= {"kept_rel_flops": self.kept} if self.cfg.prune.on else {}
        return head | scalars | executed | {cost["executed"]: unit_cost, "gates": gates}

    def evaluate(
        self, placed: Any, at: int, split: str, stop: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """The line of a whole split, every example once; None where a signal stopped it on the way."""
        total, previous, ran = None, None, collections.Counter()
        for batch in self.task.eval_batches(split, self.micro):
            if stop():
                return None
            length = self.length(batch)
            ran[length] += int(batch["w_BxL"].any(1).sum())
            now = self.program(self.adopted, length, False, self.in_eight).eval(
                placed, self.parallel.shard(batch)
            )
            if previous is not None:
                total = metrics.add(total, jax.device_get(previous))
            previous = now
        total = metrics.add(total, jax.device_get(previous))
        line = self.line(at, split, total, ran)
        if line["loss"] is None:
            raise Diverged(f"step {at}: the {split} loss is not finite", "lower train.lr")
        return line

    def score(self, line: dict[str, Any]) -> float:
        """What the checkpoint to be tested is chosen by, from its validation line; less is better."""
        choice = self.task.choice
        return line[choice.key] if choice.lower else -line[choice.key]
