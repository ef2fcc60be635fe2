"""Long-range recall: sequences made on the fly, scored at their answers only, by how far back those stand.

No file, no network: example i of a split is a pure function of (seed of the split, i). Training never repeats one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cerebra_jax.config import RunCfg
from cerebra_jax.tasks.long_sequence import generate
from cerebra_jax.tasks.task import Metric, Pairs, Shape, host_rows
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

NOMINAL = 100_000  # examples that "an epoch" means
HELD_OUT = {"valid": 1_000, "test": 3_000}
STREAM = {"train": 0, "valid": 1, "test": 2}
QUARTERS = 4


class LongSeq:
    """Answers are logits of Q positions an example (`at_BxQ`); labels, weights and quarters of L back are (B, Q)."""

    notice = ""
    examples = 0
    choice = Metric("accuracy", "accuracy", 4, lower=False)

    def __init__(self, kind: str, rules: generate.Rules, causal: bool):
        self._kind, self._rules, self._make = kind, rules, generate.KINDS[kind]
        self.dataset = f"{kind}: L={rules.L}, {rules.pairs} to remember, vocabulary {rules.V}"
        if kind == "mqar":
            self.dataset += f", a={rules.skew:g}, filler {rules.filler}"
        self.shape = Shape(rules.L, rules.V, causal=causal, answers=generate.answers(kind, rules),
                           needed=True)  # fmt: skip
        far = tuple(Metric(f"accuracy_q{i + 1}", f"quarter {i + 1}", 4, lower=False, table=False)
                    for i in range(QUARTERS))  # fmt: skip
        self.metrics = (
            self.choice,
            Metric("solved", "all right", 4, lower=False, table=False),
            *far,
        )

    def steps_per_epoch(self, batch_size: int) -> int:
        """Steps of NOMINAL examples."""
        return -(-NOMINAL // batch_size)

    def example(self, batch_size: int) -> Batch:
        """A batch of the right shapes and dtypes, for init."""
        return self.train_batch(0, 0, batch_size)

    def train_batch(
        self, seed: int, step: int, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """The rows of the global batch `step` that belong to host (i, n): examples that no other step has."""
        ex_B = host_rows(batch_size, host)
        return self._batch(
            "train", seed, step * batch_size + ex_B.astype(np.int64), np.ones(len(ex_B)), ex_B
        )

    def eval_batches(
        self, split: str, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """The same held-out examples for every seed, each once; what fills the last batch weighs 0."""
        n, ex_B = HELD_OUT[split], host_rows(batch_size, host)
        for first in range(0, n, batch_size):
            row_B = first + ex_B.astype(np.int64)
            yield self._batch(split, 0, row_B, row_B < n, ex_B)

    def _batch(
        self, split: str, seed: int, row_B: np.ndarray, w_B: np.ndarray, ex_B: np.ndarray
    ) -> Batch:
        made = [
            self._make(np.random.RandomState([STREAM[split], seed, i]), self._rules) for i in row_B
        ]
        tokens, at, answers, distance, needed = (np.stack(x) for x in zip(*made, strict=True))
        quarter = np.minimum(QUARTERS * distance // self._rules.L, QUARTERS - 1)
        w_BxQ = np.broadcast_to(np.asarray(w_B, np.float32)[:, None], at.shape)
        return {
            "inputs_BxL": tokens.astype(np.int32),
            "at_BxQ": at.astype(np.int32),
            "labels_BxL": answers.astype(np.int32),
            "w_BxL": np.ascontiguousarray(w_BxQ),
            "quarter_BxQ": quarter.astype(np.int32),
            "needed_BxL": needed,
            "ex_B": ex_B,
        }

    def loss(self, out: Out, batch: Batch, chunk: int) -> tuple[Any, Pairs]:
        """Total nats of the answers; right ones, also by quarter of L back; examples with all of them right."""
        import jax
        import jax.numpy as jnp

        w_BxQ, label_BxQ = batch["w_BxL"], batch["labels_BxL"]
        head_VxD = out.head_VxD.astype(out.h.dtype)
        logits = jnp.einsum("bqd,vd->bqv", out.h, head_VxD, preferred_element_type=jnp.float32)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), label_BxQ[..., None], axis=-1)[
            ..., 0
        ]
        nats = -(w_BxQ * picked).sum()
        right_BxQ = w_BxQ * (logits.argmax(-1) == label_BxQ)
        far_Qx4 = (batch["quarter_BxQ"][..., None] == jnp.arange(QUARTERS)[None, None]).astype(
            jnp.float32
        )
        rows_B = w_BxQ.max(1)
        return nats, {
            "loss": (nats, w_BxQ.sum()),
            "right": (right_BxQ.sum(), w_BxQ.sum()),
            "by_quarter": (
                (right_BxQ[..., None] * far_Qx4).sum((0, 1)),
                (w_BxQ[..., None] * far_Qx4).sum((0, 1)),
            ),
            "solved": ((rows_B * (right_BxQ >= w_BxQ).all(1)).sum(), rows_B.sum()),
        }

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Accuracy over all answers, by quarter of L back (where any stand), and the share of examples all right."""
        found = {"accuracy": float(sums["right"][0]) / float(sums["right"][1])}
        if split == "train":
            return found
        found["solved"] = float(sums["solved"][0]) / float(sums["solved"][1])
        right, of = (np.asarray(x, np.float64) for x in sums["by_quarter"])
        return found | {
            f"accuracy_q{i + 1}": float(right[i] / of[i]) for i in range(QUARTERS) if of[i]
        }

    def info(self) -> dict[str, Any]:
        """The rules, for result.json; the sha256 is of the first held-out examples, so it names rules and generator."""
        found = hashlib.sha256(repr((self._kind, self._rules)).encode())
        for split in ("valid", "test"):
            for _, x in sorted(next(self.eval_batches(split, 8)).items()):
                found.update(np.ascontiguousarray(x).tobytes())
        rules = self._rules._asdict() | {"kind": self._kind, "examples": HELD_OUT}
        return {"dataset": self.dataset, "sha256": found.hexdigest(), "rules": rules}


def build(cfg: RunCfg, say: Callable[[str], None] = print) -> LongSeq:
    """The task of a configuration; UserError where no example can be made of its sizes."""
    task = cfg.task
    rules = generate.Rules(task.seq_len, task.vocab_size, task.pairs, task.skew, task.filler)
    generate.check(task.kind, rules)
    return LongSeq(task.kind, rules, cfg.net.causal)
