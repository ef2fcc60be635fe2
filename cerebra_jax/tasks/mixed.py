"""One network for a text, texts with labels and ListOps: what each row asks for stands in its batch.

All of it is next-token prediction by a causal model. Each task has its own rows of the one table: for what it reads,
and after those of all for its answers, which are its head: an example with a label is asked for it at its last token.
A batch takes its rows from the tasks in turn, and every row weighs as much as a window of text does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cerebra_jax.checks import need
from cerebra_jax.config import RunCfg
from cerebra_jax.tasks import intent, listops, text
from cerebra_jax.tasks.examples import digest
from cerebra_jax.tasks.task import LOSS, Metric, Pairs, Shape, Task, host_rows
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

NAMES = ("text", "intent", "listops")


class Mixed:
    """The three tasks as one; `Shape.tasks` numbers them, batch key `task_B`."""

    metrics = (
        Metric("nats_text", "nats per token of the text", 4, lower=True),
        Metric("accuracy_intent", "accuracy of labels", 4, lower=False),
        Metric("accuracy_listops", "accuracy of ListOps", 4, lower=False),
    )
    choice, examples, group_N = (
        LOSS,
        0,
        None,
    )  # no sampler: a row of one task is no choice against one of another

    def __init__(self, parts: tuple[Task, ...], seq_len: int):
        self._parts, self._L = parts, seq_len
        sizes = [part.shape.vocab_size for part in parts] + [part.shape.outputs for part in parts]
        self._first = np.cumsum(
            [0, *sizes]
        ).tolist()  # of what each reads, then of what each answers
        self.shape = Shape(seq_len, self._first[-1], causal=True, tasks=len(parts))
        self.dataset = " + ".join(part.dataset for part in parts)
        self.notice = "; ".join(part.notice for part in parts if part.notice)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Steps after which the text was read once."""
        return self._parts[0].steps_per_epoch(len(self._rows(0, batch_size)))

    def example(self, batch_size: int) -> Batch:
        """A batch of the right shapes and dtypes, for init."""
        return self.train_batch(0, 0, batch_size)

    def train_batch(
        self, seed: int, step: int, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """The rows of host (i, n) of the global batch `step`; row j is of task j mod 3."""
        found: Batch = {}
        for i, part in enumerate(self._parts[:batch_size]):
            rows = self._rows(i, batch_size)
            for name, x in self._joined(i, part.train_batch(seed, step, len(rows))).items():
                found.setdefault(name, np.zeros((batch_size, *x.shape[1:]), x.dtype))[rows] = x
        mine = host_rows(batch_size, host)
        return {name: x[mine] for name, x in found.items()} | {"ex_B": mine}

    def eval_batches(
        self, split: str, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Every example of every task once, task after task; padding weighs 0."""
        for i, part in enumerate(self._parts):
            for batch in part.eval_batches(split, batch_size, host):
                yield self._joined(i, batch) | {"ex_B": batch["ex_B"]}

    def loss(self, out: Out, batch: Batch, chunk: int, each: bool = False) -> tuple[Any, Pairs]:
        """Total nats, and by task (T,): nats and their weight, right answers and questions."""
        import jax
        import jax.numpy as jnp

        from cerebra_jax.kernels.cross_entropy import chunked_xent

        w_BxL, task_B, T = batch["w_BxL"], batch["task_B"], len(self._parts)
        nats, nats_BxL = chunked_xent(out.h, out.head_VxD, batch["labels_BxL"], w_BxL, chunk, True)
        of_BxT, w_B = jax.nn.one_hot(task_B, T), w_BxL.sum(1)
        h_BxD = jnp.take_along_axis(out.h, batch["at_B"][:, None, None], axis=1)[:, 0].astype(
            jnp.float32
        )
        logits_BxC = h_BxD @ out.head_VxD[self._first[T] :].astype(jnp.float32).T
        owner_C = np.repeat(np.arange(T), np.diff(self._first[T:]))
        said_B = (
            jnp.where(owner_C[None] == task_B[:, None], logits_BxC, -jnp.inf).argmax(1)
            + self._first[T]
        )
        label_B = jnp.take_along_axis(batch["labels_BxL"], batch["at_B"][:, None], axis=1)[:, 0]
        asked_B = ((w_B > 0) & (task_B > 0)).astype(jnp.float32)
        right_B = asked_B * (said_B == label_B)
        sums = {"loss": (nats, w_BxL.sum()), "nats": (nats_BxL.sum(1) @ of_BxT, w_B @ of_BxT)}
        sums["right"] = (right_B @ of_BxT, asked_B @ of_BxT)
        return nats, sums | ({"each": (nats_BxL.sum(1), w_B)} if each else {})

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Nats per token of the text, accuracy of the others among their own classes."""
        (nats_T, w_T), (right_T, asked_T) = (
            [np.asarray(x, np.float64) for x in sums[k]] for k in ("nats", "right")
        )
        accuracy_T = right_T[1:] / np.maximum(asked_T[1:], 1)
        return {"nats_text": float(nats_T[0] / max(w_T[0], 1))} | {
            f"accuracy_{name}": float(a) for name, a in zip(NAMES[1:], accuracy_T, strict=True)
        }

    def info(self) -> dict[str, Any]:
        """What the three are, for result.json."""
        parts = {name: part.info() for name, part in zip(NAMES, self._parts, strict=True)}
        bits = {
            name: {"sha256": np.frombuffer(x["sha256"].encode(), np.uint8)}
            for name, x in parts.items()
        }
        return {
            "dataset": self.dataset,
            "notice": self.notice,
            "sha256": digest(bits),
            "parts": parts,
        }

    def _rows(self, task: int, batch_size: int) -> np.ndarray:
        return np.arange(task, batch_size, len(self._parts))

    def _joined(self, task: int, batch: Batch) -> Batch:
        """A batch of one of the tasks in the terms of all: windows of L tokens, a label wherever one is asked for."""
        w_BxL, B = batch["w_BxL"], len(batch["inputs_BxL"])
        ids = batch["inputs_BxL"] + np.int32(self._first[task])
        found = {"task_B": np.full(B, task, np.int32), "at_B": np.zeros(B, np.int32)}
        if w_BxL.shape[1] > 1:
            return found | {"inputs_BxL": ids, "labels_BxL": batch["labels_BxL"], "w_BxL": w_BxL}
        at_B = np.maximum(batch["mask_BxL"].sum(1) - 1, 0).astype(np.int32)
        asked_BxL = np.arange(self._L)[None] == at_B[:, None]
        labels = np.where(
            asked_BxL, batch["labels_BxL"] + np.int32(self._first[len(self._parts) + task]), 0
        )
        weights = np.where(asked_BxL, np.float32(self._L) * w_BxL, np.float32(0))
        ids = np.pad(ids, ((0, 0), (0, self._L - ids.shape[1])))
        return found | {
            "at_B": at_B,
            "inputs_BxL": ids,
            "labels_BxL": labels.astype(np.int32),
            "w_BxL": weights,
        }


def build(cfg: RunCfg, say: Callable[[str], None] = print) -> Mixed:
    """The three tasks of a configuration, each by its own keys of `task`, all of task.seq_len tokens at most."""
    L = cfg.task.seq_len
    what = f"train.batch_size is {cfg.train.batch_size} for {len(NAMES)} tasks"
    need(cfg.train.batch_size >= len(NAMES), what, "use a row for each at least")
    need(L > 0, "task.seq_len is 0", "the tasks are joined at one length: task.seq_len=256")
    builders = (text.build, intent.build, listops.build)
    of = (dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, name=name)) for name in NAMES)
    return Mixed(tuple(make(c, say) for make, c in zip(builders, of, strict=True)), L)
