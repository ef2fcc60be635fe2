"""Language modelling on a text: windows shuffled by a counter; perplexity per token and per word, bits per byte.

The model reads x[t-1] and predicts x[t] for every token of a split, the first included: before it stands bos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from cerebra_jax.config import RunCfg
from cerebra_jax.tasks.task import LOSS, Metric, Pairs, Shape, host_rows
from cerebra_jax.tasks.text import prepare, reading
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    import jax

    from cerebra_jax.types import Out


class Sketch:
    """What is known of language modelling before there is a text: its shape, its loss, and a batch of zeros."""

    metrics = (
        Metric("ppl_word", "perplexity per word", 1, lower=True),
        Metric("bits_per_byte", "bits per byte", 3, lower=True),
        Metric("ppl_token", "perplexity per token", 1, lower=True, table=False),
    )
    choice = LOSS

    def __init__(self, seq_len: int, vocab_size: int):
        self.shape = Shape(seq_len, vocab_size, causal=True)

    def example(self, batch_size: int) -> Batch:
        """A batch of the right shapes and dtypes, for init."""
        zero_BxL = np.zeros((batch_size, self.shape.seq_len), np.int32)
        w_BxL, ex_B = np.ones(zero_BxL.shape, np.float32), np.arange(batch_size, dtype=np.int32)
        return {"inputs_BxL": zero_BxL, "labels_BxL": zero_BxL, "w_BxL": w_BxL, "ex_B": ex_B}

    def steps_per_epoch(self, batch_size: int) -> int:
        """0: only the text's tokens can say."""
        return 0

    def loss(
        self, out: Out, batch: Batch, chunk: int, each: bool = False
    ) -> tuple[jax.Array, Pairs]:
        """Total nats of a batch, and {"loss": (nats, tokens)}; `chunk` tokens have their logits at once."""
        from cerebra_jax.kernels.cross_entropy import chunked_xent

        w_BxL = batch["w_BxL"]
        found = chunked_xent(out.h, out.head_VxD, batch["labels_BxL"], w_BxL, chunk, each)
        nats, nats_BxL = found if each else (found, None)
        return nats, {"loss": (nats, w_BxL.sum())} | (
            {"each": (nats_BxL.sum(1), w_BxL.sum(1))} if each else {}
        )


class TextTask(Sketch):
    """A text in three splits as batches of windows. A training batch is a pure function of (seed, step)."""

    def __init__(self, ready: prepare.Prepared, seq_len: int, eval_context: int = 0):
        super().__init__(seq_len, ready.tokenizer.vocab_size)
        self._ready, self._seq_len, self._context = ready, seq_len, eval_context
        self._tokens = {split: ready.memmap(split) for split in prepare.SPLITS}
        self._orders: dict[
            tuple[int, int], tuple[int, np.ndarray]
        ] = {}  # (seed, epoch) -> its last two
        self._tok, self.bos = ready.tokenizer, ready.tokenizer.bos
        self.dataset, self.notice = ready.dataset, ready.source.notice
        self.examples = self.windows("train")

    @property
    def vocabulary(self) -> str:
        """Of the tokenizer, as JSON; "" where it is bytes."""
        return self._tok.json

    def windows(self, split: str) -> int:
        """Windows of an epoch (train) or of a pass (valid, test)."""
        if split == "train":
            return -(-len(self._tokens[split]) // self._seq_len)
        return self._eval_windows(split)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Steps after which every window was seen; the last may reach into the next epoch."""
        return -(-self.windows("train") // batch_size)

    def example(self, batch_size: int) -> Batch:
        """A batch of the right shapes and dtypes, for init."""
        return self.train_batch(0, 0, batch_size)

    def train_batch(
        self, seed: int, step: int, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """The rows of the global batch `step` that belong to host (i, n).

        Window step * B + j of the run is window (step * B + j) % N of its epoch's order. In an epoch the text is a ring
        that is cut into N windows from a random place on: each token is learnt once, what the last repeats weighs 0.
        """
        L, N, T = self._seq_len, self.windows("train"), len(self._tokens["train"])
        ex_B = host_rows(batch_size, host)
        index_B = step * batch_size + ex_B.astype(np.int64)
        start_B = np.empty_like(index_B)
        place_B = np.empty_like(index_B)
        for epoch in np.unique(index_B // N):
            rows = index_B // N == epoch
            offset, order_N = self._order(seed, int(epoch), N)
            start_B[rows], place_B[rows] = offset, order_N[index_B[rows] % N]
        along_BxL = place_B[:, None] * L + np.arange(L)  # from the place of the cut
        return self._batch("train", (start_B[:, None] + along_BxL) % T, along_BxL < T, ex_B)

    def pick(
        self, seed: int, step: int, index_B: np.ndarray, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """The rows of host (i, n) of a global batch of these windows, cut at the start of the text in every epoch."""
        ex_B = host_rows(len(index_B), host)
        along_BxL = index_B[ex_B].astype(np.int64)[:, None] * self._seq_len + np.arange(
            self._seq_len
        )
        T = len(self._tokens["train"])
        return self._batch("train", along_BxL % T, along_BxL < T, ex_B)

    def eval_batches(
        self, split: str, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Batches of one shape in which every token of the split weighs 1 exactly once; padding and context weigh 0."""
        L, T, context = self._seq_len, len(self._tokens[split]), self._context
        n = self._eval_windows(split)
        ex_B = host_rows(batch_size, host)
        for first in range(0, n, batch_size):
            window_B = first + ex_B.astype(np.int64)
            pos_BxL = window_B[:, None] * (L - context) + np.arange(L)
            fresh_BxL = (np.arange(L) >= context) | (window_B == 0)[:, None]
            yield self._batch(split, pos_BxL, (pos_BxL < T) & fresh_BxL, ex_B)

    def _eval_windows(self, split: str) -> int:
        """The first scores seq_len tokens, each of the others seq_len - context: those that it does not re-read."""
        rest = max(0, len(self._tokens[split]) - self._seq_len)
        return 1 + -(-rest // (self._seq_len - self._context))

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Of a whole split, by its own counts; a word is one of the text's own, or the <eos> of a line."""
        nats, seen = map(float, sums["loss"])
        if split == "train":
            return {"ppl": _exp(nats / seen)}
        count, tokens = self._ready.counts[split], self._ready.tokens[split]
        return {
            "nats_per_token": nats / tokens,
            "ppl_token": _exp(nats / tokens),
            "ppl_word": _exp(nats / (count.words + count.lines)),
            "bits_per_byte": nats / math.log(2) / count.bytes,
        }

    def info(self) -> dict:
        """What the text is, for result.json; its sha256 names the data that a run must find again to go on."""
        ready = self._ready
        splits = {}
        for split, c in ready.counts.items():
            words = c.words + c.lines  # as `report` counts them
            splits[split] = {
                "tokens": ready.tokens[split],
                "words": words,
                "bytes": c.bytes,
                "sha256": c.sha256,
            }
        return {
            "dataset": self.dataset,
            "source": ready.source.origin,
            "notice": self.notice,
            "sha256": prepare.digest(ready),
            "tokenizer": {"name": self._tok.name, "sha256": self._tok.sha256},
            "vocab_size": self.shape.vocab_size,
            "splits": splits,
        }

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without bos."""
        return self._tok.encode_blocks([text.encode()]).tolist()

    def read(self, text: str) -> reading.Reading:
        """A text as inputs: bos, then all its tokens, in windows of L as an evaluation cuts them."""
        pieces = self._tok.pieces(ids := [self.bos, *self.encode(reading.readable(text))])
        return reading.Reading(
            ids, reading.spans_of(text, pieces), reading.windows(ids, self._seq_len)
        )

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each token; none for bos."""
        return self._tok.pieces(ids)

    def counts(self, split: str) -> np.ndarray:
        """How often the split holds each token, (V,)."""
        return np.bincount(self._tokens[split], minlength=self.shape.vocab_size)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of tokens; bos gives nothing, half a character gives U+FFFD."""
        return self._tok.decode(ids)

    def _order(self, seed: int, epoch: int, n: int) -> tuple[int, np.ndarray]:
        """Where an epoch cuts the ring, and the order of its windows. numpy has frozen RandomState's stream."""
        key = (seed, epoch)
        if key not in self._orders:
            rng = np.random.RandomState([seed, epoch])
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            self._orders[key] = (int(rng.randint(self._seq_len)), rng.permutation(n))
        return self._orders[key]

    def _batch(
        self, split: str, pos_BxL: np.ndarray, counts_BxL: np.ndarray, ex_B: np.ndarray
    ) -> Batch:
        tokens = self._tokens[split]
        pos_BxL = np.minimum(
            pos_BxL, len(tokens) - 1
        )  # padding reads the last token, with weight 0
        before_BxL = tokens[np.maximum(pos_BxL - 1, 0)].astype(np.int32)
        return {
            "inputs_BxL": np.where(pos_BxL == 0, np.int32(self._tok.bos), before_BxL),
            "labels_BxL": tokens[pos_BxL].astype(np.int32),
            "w_BxL": counts_BxL.astype(np.float32),
            "ex_B": ex_B,
        }


def _exp(x: float) -> float | None:
    return None if x >= 700 else math.exp(x)  # JSON has no infinity


def build(cfg: RunCfg, say: Callable[[str], None] = print) -> TextTask:
    """The text task of a configuration; prepares its data where that was not done before."""
    return TextTask(prepare.prepare(cfg.task, say), cfg.task.seq_len, cfg.task.eval_context)


def sketch(cfg: RunCfg) -> Sketch:
    """The task of a configuration without its text; a BPE may find fewer tokens in a small text."""
    sizes = {"bytes": 257, "gpt2": 50_257}
    return Sketch(cfg.task.seq_len, sizes.get(cfg.task.tokenizer, cfg.task.vocab_size))
