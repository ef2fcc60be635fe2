"""Long-range recall: sequences made on the fly, scored at their answers, by how far back those are.

No file, no network: example i of a split is a pure function of (seed of the split, i). Training
never repeats one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cerebra_jax.checks import Problem
from cerebra_jax.config import RunCfg, TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.long_sequence import generate
from cerebra_jax.tasks.registry import register
from cerebra_jax.tasks.task import Log, Metric, Pairs, Shape, host_rows
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

NOMINAL = 100_000  # examples that "an epoch" means
HELD_OUT = {"valid": 1_000, "test": 3_000}
STREAM = {"train": 0, "valid": 1, "test": 2}
QUARTERS = 4


@register("long_sequence")
class LongSequence:
    """Answers are logits of Q positions an example (`at_BxQ`).

    Labels, weights and quarters of L back are (B, Q).
    """

    notice = ""
    padded = False
    examples = 0
    group_N = None
    choice = Metric("accuracy", "accuracy", 4, lower=False)
    metrics = (
        choice,
        Metric("solved", "all right", 4, lower=False, table=False),
        Metric("accuracy_q1", "quarter 1", 4, lower=False, table=False),
        Metric("accuracy_q2", "quarter 2", 4, lower=False, table=False),
        Metric("accuracy_q3", "quarter 3", 4, lower=False, table=False),
        Metric("accuracy_q4", "quarter 4", 4, lower=False, table=False),
    )

    def __init__(self, kind: str, rules: generate.Rules, causal: bool):
        self._kind = kind
        self._rules = rules
        self._make = generate.KINDS[kind]
        self.dataset = f"{kind}: L={rules.L}, {rules.pairs} to remember, vocabulary {rules.V}"
        if kind == "mqar":
            self.dataset += f", a={rules.skew:g}, filler {rules.filler}"
            self.notice = _notice(rules)
        answers = generate.answers(kind, rules)
        self.shape = Shape(rules.L, rules.V, causal=causal, answers=answers, needed=True)

    @staticmethod
    def check(cfg: RunCfg) -> Iterator[Problem]:
        """Yields why no example can be made of these sizes."""
        yield from generate.check(cfg.task.kind, _rules(cfg.task))

    @classmethod
    def build(cls, cfg: RunCfg, log: Log = print) -> LongSequence:
        """Returns the task of a configuration.

        Raises UserError where no example can be made of its sizes.
        """
        for problem in cls.check(cfg):
            raise UserError(*problem)
        return cls(cfg.task.kind, _rules(cfg.task), cfg.net.causal)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the steps of NOMINAL examples."""
        return -(-NOMINAL // batch_size)

    def example(self, batch_size: int) -> Batch:
        """Returns a batch of the right shapes and dtypes, for init."""
        return self.train_batch(0, 0, batch_size)

    def train_batch(
        self, seed: int, step: int, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """Returns the rows of the global batch `step` that belong to host (i, n).

        No other step has these examples.
        """
        ex_B = host_rows(batch_size, host)
        row_B = step * batch_size + ex_B.astype(np.int64)
        return self._batch("train", seed, row_B, np.ones(len(ex_B))) | {"ex_B": ex_B}

    def eval_batches(
        self, split: str, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Yields the same held-out examples for every seed, each once.

        What fills the last batch weighs 0.
        """
        n = HELD_OUT[split]
        ex_B = host_rows(batch_size, host)
        for first in range(0, n, batch_size):
            row_B = first + ex_B.astype(np.int64)
            yield self._batch(split, 0, row_B, row_B < n) | {"ex_B": ex_B}

    def _batch(self, split: str, seed: int, row_B: np.ndarray, w_B: np.ndarray) -> Batch:
        examples = []
        for row in row_B:
            rng = np.random.RandomState([STREAM[split], seed, row])
            examples.append(self._make(rng, self._rules))
        tokens_BxL, at_BxQ, answers_BxQ, distance_BxQ, needed_BxL = map(
            np.stack, zip(*examples, strict=True)
        )
        quarter_BxQ = np.minimum(QUARTERS * distance_BxQ // self._rules.L, QUARTERS - 1)
        w_BxQ = np.broadcast_to(np.asarray(w_B, np.float32)[:, None], at_BxQ.shape)
        return {
            "inputs_BxL": tokens_BxL.astype(np.int32),
            "at_BxQ": at_BxQ.astype(np.int32),
            "labels_BxL": answers_BxQ.astype(np.int32),
            "w_BxL": np.ascontiguousarray(w_BxQ),
            "quarter_BxQ": quarter_BxQ.astype(np.int32),
            "needed_BxL": needed_BxL,
        }

    def loss(self, out: Out, batch: Batch, chunk: int) -> tuple[Any, Pairs]:
        """Returns the total nats of the answers; right ones, also by quarter of L back.

        They also count the examples whose answers are all right.
        """
        import jax
        import jax.numpy as jnp

        # nats of the answers
        w_BxQ, label_BxQ = batch["w_BxL"], batch["labels_BxL"]
        head_VxD = out.head_VxD.astype(out.h.dtype)
        logits_BxQxV = jnp.einsum(
            "bqd,vd->bqv", out.h, head_VxD, preferred_element_type=jnp.float32
        )
        log_p_BxQxV = jax.nn.log_softmax(logits_BxQxV)
        log_p_BxQ = jnp.take_along_axis(log_p_BxQxV, label_BxQ[..., None], axis=-1)[..., 0]
        nats = -(w_BxQ * log_p_BxQ).sum()

        # right answers: all, by quarter, and by example
        right_BxQ = w_BxQ * (logits_BxQxV.argmax(-1) == label_BxQ)
        quarter_1x1x4 = jnp.arange(QUARTERS)[None, None]
        is_BxQx4 = (batch["quarter_BxQ"][..., None] == quarter_1x1x4).astype(jnp.float32)
        right_4 = (right_BxQ[..., None] * is_BxQx4).sum((0, 1))
        asked_4 = (w_BxQ[..., None] * is_BxQx4).sum((0, 1))
        w_B = w_BxQ.max(1)
        solved = (w_B * (right_BxQ >= w_BxQ).all(1)).sum()

        return nats, {
            "loss": (nats, w_BxQ.sum()),
            "right": (right_BxQ.sum(), w_BxQ.sum()),
            "by_quarter": (right_4, asked_4),
            "solved": (solved, w_B.sum()),
        }

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Returns the accuracy of answers, by quarter of L back, and the share of solved examples.

        An example is solved where all its answers are right.

        A quarter in which no answer stands has no figure.
        """
        found = {"accuracy": float(sums["right"][0]) / float(sums["right"][1])}
        if split == "train":
            return found
        found["solved"] = float(sums["solved"][0]) / float(sums["solved"][1])
        right_4, asked_4 = (np.asarray(x, np.float64) for x in sums["by_quarter"])
        for i in range(QUARTERS):
            if asked_4[i]:
                found[f"accuracy_q{i + 1}"] = float(right_4[i] / asked_4[i])
        return found

    def info(self) -> dict[str, Any]:
        """Returns the rules, for result.json.

        The sha256 of the first held-out examples names rules and generator.
        """
        found = hashlib.sha256(repr((self._kind, self._rules)).encode())
        for split in ("valid", "test"):
            for _, array in sorted(next(self.eval_batches(split, 8)).items()):
                found.update(np.ascontiguousarray(array).tobytes())
        rules = self._rules._asdict() | {"kind": self._kind, "examples": HELD_OUT}
        return {"dataset": self.dataset, "sha256": found.hexdigest(), "rules": rules}


def _notice(rules: generate.Rules) -> str:
    """Returns what a model can reach in mqar without any recall, where that is more than chance."""
    if rules.skew >= 1.0:
        return ""
    floor = f"{generate.in_order(rules):.4f} of the answers"
    rule = "the rule that the j-th query has the j-th value"
    return f"task.skew is {rules.skew:g}: {rule} gives {floor}, without any recall"


def _rules(task: TaskCfg) -> generate.Rules:
    return generate.Rules(task.seq_len, task.vocab_size, task.pairs, task.skew, task.filler)
