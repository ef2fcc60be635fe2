"""One network for a text, texts with labels and ListOps: each row says what it asks for.

All of it is next-token prediction by a causal model. Each task has its own rows of the one table:
for what it reads, and after those of all for its answers, which are its head: an example with a
label is asked for it at its last token. A batch takes its rows from the tasks in turn, and every
row weighs as much as a window of text does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cerebra_jax.checks import Problem
from cerebra_jax.config import RunCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.examples import digest
from cerebra_jax.tasks.registry import find, register
from cerebra_jax.tasks.task import (
    LOSS,
    Log,
    Metric,
    Pairs,
    Shape,
    Task,
    check_language_model,
    check_vocabulary,
    host_rows,
)
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

NAMES = ("text", "intent", "listops")


@register("mixed")
class Mixed:
    """The three tasks as one; `Shape.tasks` numbers them, batch key `task_B`."""

    metrics = (
        Metric("nats_text", "nats per token of the text", 4, lower=True),
        Metric("accuracy_intent", "accuracy of labels", 4, lower=False),
        Metric("accuracy_listops", "accuracy of ListOps", 4, lower=False),
    )
    choice = LOSS
    padded = False
    examples = 0  # no sampler: a row of one task is no choice against one of another
    group_N = None

    def __init__(self, parts: tuple[Task, ...], seq_len: int):
        self._parts = parts
        self._L = seq_len
        # first ids: of what each task reads, then of what each answers
        read = [part.shape.vocab_size for part in parts]
        answered = [part.shape.outputs for part in parts]
        self._first = np.cumsum([0, *read, *answered]).tolist()
        self.shape = Shape(seq_len, self._first[-1], causal=True, tasks=len(parts))
        self.dataset = " + ".join(part.dataset for part in parts)
        self.notice = "; ".join(part.notice for part in parts if part.notice)

    @staticmethod
    def check(cfg: RunCfg) -> Iterator[Problem]:
        """Yields what the three tasks together forbid: each needs a row, all have one length."""
        if cfg.train.batch_size < len(NAMES):
            what = f"train.batch_size is {cfg.train.batch_size} for {len(NAMES)} tasks"
            yield what, "use a row for each at least"
        if cfg.task.seq_len == 0:
            hint = "the tasks are joined at one length: task.seq_len=256"
            yield "task.seq_len is 0", hint
        yield from check_language_model(cfg)
        yield from check_vocabulary(cfg)
        yield from find("listops").check(cfg)

    @classmethod
    def build(cls, cfg: RunCfg, log: Log = print) -> Mixed:
        """Returns the three tasks of a configuration, each by its own keys of `task`."""
        for problem in cls.check(cfg):
            raise UserError(*problem)
        parts = []
        for name in NAMES:
            task = dataclasses.replace(cfg.task, name=name)
            parts.append(find(name).build(dataclasses.replace(cfg, task=task), log))
        return cls(tuple(parts), cfg.task.seq_len)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the steps after which the text was read once."""
        return self._parts[0].steps_per_epoch(len(self._rows(0, batch_size)))

    def example(self, batch_size: int) -> Batch:
        """Returns a batch of the right shapes and dtypes, for init."""
        return self.train_batch(0, 0, batch_size)

    def train_batch(
        self, seed: int, step: int, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """Returns the rows of host (i, n) of the global batch `step`; row j is of task j mod 3."""
        joined: Batch = {}
        for i, part in enumerate(self._parts[:batch_size]):
            rows = self._rows(i, batch_size)
            batch = self._joined(i, part.train_batch(seed, step, len(rows)))
            for name, array in batch.items():
                if name not in joined:
                    joined[name] = np.zeros((batch_size, *array.shape[1:]), array.dtype)
                joined[name][rows] = array
        ex_B = host_rows(batch_size, host)
        return {name: array[ex_B] for name, array in joined.items()} | {"ex_B": ex_B}

    def eval_batches(
        self, split: str, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Yields every example of every task once, task after task; padding weighs 0."""
        for i, part in enumerate(self._parts):
            for batch in part.eval_batches(split, batch_size, host):
                yield self._joined(i, batch) | {"ex_B": batch["ex_B"]}

    def loss(self, out: Out, batch: Batch, chunk: int, each: bool = False) -> tuple[Any, Pairs]:
        """Returns the total nats, and sums by task, (T,).

        These are nats and their weight, right answers and questions.
        """
        import jax
        import jax.numpy as jnp

        from cerebra_jax.kernels.cross_entropy import chunked_xent

        # nats of every token
        w_BxL, task_B, tasks = batch["w_BxL"], batch["task_B"], len(self._parts)
        labels_BxL = batch["labels_BxL"]
        nats, nats_BxL = chunked_xent(out.h, out.head_VxD, labels_BxL, w_BxL, chunk, True)
        nats_B, w_B = nats_BxL.sum(1), w_BxL.sum(1)

        # logits of all classes at the token where each row is asked
        asked_at_Bx1 = batch["at_B"][:, None]
        h_Bx1xD = jnp.take_along_axis(out.h, asked_at_Bx1[..., None], axis=1)
        first_class = self._first[tasks]
        head_CxD = out.head_VxD[first_class:].astype(jnp.float32)
        logits_BxC = h_Bx1xD[:, 0].astype(jnp.float32) @ head_CxD.T

        # the likeliest class of the row's own task, and whether it is right
        task_1xC = np.repeat(np.arange(tasks), np.diff(self._first[tasks:]))[None]
        own_BxC = jnp.where(task_1xC == task_B[:, None], logits_BxC, -jnp.inf)
        said_B = own_BxC.argmax(1) + first_class
        label_B = jnp.take_along_axis(labels_BxL, asked_at_Bx1, axis=1)[:, 0]
        asked_B = ((w_B > 0) & (task_B > 0)).astype(jnp.float32)
        right_B = asked_B * (said_B == label_B)

        # sums by task
        is_BxT = jax.nn.one_hot(task_B, tasks)
        sums = {
            "loss": (nats, w_BxL.sum()),
            "nats": (nats_B @ is_BxT, w_B @ is_BxT),
            "right": (right_B @ is_BxT, asked_B @ is_BxT),
        }
        if each:
            sums["each"] = (nats_B, w_B)
        return nats, sums

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Returns the nats per token of the text, and the accuracy of the others.

        An answer is the likeliest of the task's own classes.
        """
        nats_T, w_T = (np.asarray(x, np.float64) for x in sums["nats"])
        right_T, asked_T = (np.asarray(x, np.float64) for x in sums["right"])
        found = {"nats_text": float(nats_T[0] / max(w_T[0], 1))}
        for i, name in enumerate(NAMES[1:], start=1):
            found[f"accuracy_{name}"] = float(right_T[i] / max(asked_T[i], 1))
        return found

    def info(self) -> dict[str, Any]:
        """Returns what the three are, for result.json."""
        parts = {name: part.info() for name, part in zip(NAMES, self._parts, strict=True)}
        hashes = {
            name: {"sha256": np.frombuffer(part["sha256"].encode(), np.uint8)}
            for name, part in parts.items()
        }
        return {
            "dataset": self.dataset,
            "notice": self.notice,
            "sha256": digest(hashes),
            "parts": parts,
        }

    def _rows(self, task: int, batch_size: int) -> np.ndarray:
        return np.arange(task, batch_size, len(self._parts))

    def _joined(self, task: int, batch: Batch) -> Batch:
        """Returns a batch of one task in the terms of all.

        That is windows of L tokens with a label wherever one is asked for.
        """
        w_BxL = batch["w_BxL"]
        ids_BxL = batch["inputs_BxL"] + np.int32(self._first[task])
        rows = len(ids_BxL)
        joined = {"task_B": np.full(rows, task, np.int32)}

        # a text asks at every token
        if w_BxL.shape[1] > 1:
            return joined | {
                "at_B": np.zeros(rows, np.int32),
                "inputs_BxL": ids_BxL,
                "labels_BxL": batch["labels_BxL"],
                "w_BxL": w_BxL,
            }

        # others ask once, at the last real token
        label_Bx1 = batch["labels_BxL"] + np.int32(self._first[len(self._parts) + task])
        at_B = np.maximum(batch["mask_BxL"].sum(1) - 1, 0).astype(np.int32)
        asked_BxL = np.arange(self._L)[None] == at_B[:, None]
        weight_Bx1 = np.float32(self._L) * w_BxL  # of a window of text
        return joined | {
            "at_B": at_B,
            "inputs_BxL": np.pad(ids_BxL, ((0, 0), (0, self._L - ids_BxL.shape[1]))),
            "labels_BxL": np.where(asked_BxL, label_Bx1, 0).astype(np.int32),
            "w_BxL": np.where(asked_BxL, weight_Bx1, np.float32(0)),
        }
