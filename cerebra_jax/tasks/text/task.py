"""Language modelling on a text: windows in random order.

Perplexity per token and per word, bits per byte.

The model reads x[t-1] and predicts x[t] for every token of a split, the first included: before it
stands bos.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cerebra_jax.checks import Problem
from cerebra_jax.config import RunCfg
from cerebra_jax.documents import TEXT
from cerebra_jax.tasks.registry import register
from cerebra_jax.tasks.task import (
    LOSS,
    SPLITS,
    Log,
    Metric,
    Pairs,
    Shape,
    check_language_model,
    check_vocabulary,
    host_rows,
    no_data,
)
from cerebra_jax.tasks.text import prepare, reading, tokenizer
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

VOCAB_SIZES = {"bytes": 257, "gpt2": 50_257}  # of tokenizers that no text is needed for
LONGEST_WORD = 32  # bytes of a word, in the mean; a text with longer ones has no white space
LARGEST_EXPONENT = 700.0  # math.exp of more is infinite, which JSON cannot hold


class Sketch:
    """What is known of language modelling without a text: its shape, its loss, a batch of zeros."""

    metrics = (
        Metric("ppl_word", "perplexity per word", 1, lower=True),
        Metric("bits_per_byte", "bits per byte", 3, lower=True),
        Metric("ppl_token", "perplexity per token", 1, lower=True, table=False),
    )
    choice = LOSS
    padded = False

    def __init__(self, seq_len: int, vocab_size: int):
        self.shape = Shape(seq_len, vocab_size, causal=True)

    def example(self, batch_size: int) -> Batch:
        """Returns a batch of the right shapes and dtypes, for init."""
        zero_BxL = np.zeros((batch_size, self.shape.seq_len), np.int32)
        return {
            "inputs_BxL": zero_BxL,
            "labels_BxL": zero_BxL,
            "w_BxL": np.ones(zero_BxL.shape, np.float32),
            "ex_B": np.arange(batch_size, dtype=np.int32),
        }

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns 0: only the text's tokens can say."""
        return 0

    def loss(self, out: Out, batch: Batch, chunk: int, each: bool = False) -> tuple[Any, Pairs]:
        """Returns the total nats of a batch, and {"loss": (nats, tokens)}.

        `Task.loss` tells of the arguments.
        """
        from cerebra_jax.kernels.cross_entropy import chunked_xent

        w_BxL = batch["w_BxL"]
        found = chunked_xent(out.h, out.head_VxD, batch["labels_BxL"], w_BxL, chunk, each)
        if not each:
            return found, {"loss": (found, w_BxL.sum())}
        nats, nats_BxL = found
        per_example = (nats_BxL.sum(1), w_BxL.sum(1))
        return nats, {"loss": (nats, w_BxL.sum()), "each": per_example}


class Encoded(Sketch):
    """A run's text task without its text: its tokenizer, and what is told of the data."""

    group_N = None
    LEARNT = {  # the shape of `learnt`
        "tokenizer": {"name": TEXT, "json": TEXT},
        "digests": {"*": TEXT},
    }

    def __init__(self, tok: tokenizer.Bytes | tokenizer.Bpe, seq_len: int, info: dict[str, Any]):
        super().__init__(seq_len, tok.vocab_size)
        self._seq_len = seq_len
        self._tok = tok
        self._info = info
        self.bos = tok.bos
        self.dataset: str = info["dataset"]
        self.notice: str = info["notice"]
        self.examples = self.windows("train")
        self._counts_words = _has_words(info)
        if not self._counts_words:
            self.metrics = tuple(m for m in self.metrics if m.key != "ppl_word")

    @property
    def vocabulary(self) -> str:
        """Returns the tokenizer as JSON; "" where it is bytes."""
        return self._tok.json

    def tokens(self, split: str) -> int:
        """Returns the tokens of a split."""
        return self._info["splits"][split]["tokens"]

    def windows(self, split: str) -> int:
        """Returns the windows of an epoch."""
        return -(-self.tokens(split) // self._seq_len)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the steps after which every window was seen.

        The last may reach into the next epoch.
        """
        return -(-self.windows("train") // batch_size)

    def info(self) -> dict[str, Any]:
        """Returns what the text is, for result.json.

        A run goes on only with data of the same sha256.
        """
        return self._info

    def learnt(self) -> dict[str, Any]:
        """Returns all that was learnt from the text, for JSON: its tokenizer."""
        splits = self._info["splits"]
        return {
            "tokenizer": {"name": self._tok.name, "json": self._tok.json},
            "digests": {f"{split} text": splits[split]["sha256"] for split in splits},
        }

    def train_batch(self, *_: Any) -> Batch:
        """Raises UserError, as `pick`, `eval_batches` and `counts` do: there is no text here."""
        no_data()

    pick = eval_batches = counts = train_batch

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, without bos."""
        return self._tok.encode_blocks([text.encode()]).tolist()

    def read(self, text: str) -> reading.Reading:
        """Returns a text as inputs: bos, then its tokens, in windows of L as in an evaluation."""
        ids = [self.bos, *self.encode(reading.readable(text))]
        spans = reading.spans_of(text, self._tok.pieces(ids))
        return reading.Reading(ids, spans, reading.windows(ids, self._seq_len))

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """Returns the bytes of each token; none for bos."""
        return self._tok.pieces(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of tokens; bos gives nothing, half a character gives U+FFFD."""
        return self._tok.decode(ids)


@register("text")
class TextTask(Encoded):
    """A text in three splits as batches of windows.

    A training batch is a pure function of (seed, step).
    """

    def __init__(self, ready: prepare.Prepared, seq_len: int, eval_context: int = 0):
        self._ready = ready
        self._context = eval_context
        super().__init__(ready.tokenizer, seq_len, _info(ready))
        self._tokens = {split: ready.memmap(split) for split in SPLITS}
        # (seed, epoch) -> where the text is cut and the order of its windows; the last two
        self._orders: dict[tuple[int, int], tuple[int, np.ndarray]] = {}

    @staticmethod
    def check(cfg: RunCfg) -> Iterator[Problem]:
        """Yields what language modelling forbids."""
        yield from check_language_model(cfg)
        yield from check_vocabulary(cfg)

    @classmethod
    def build(cls, cfg: RunCfg, log: Log = print) -> TextTask:
        """Returns the task of a configuration; prepares its data where that was not done before."""
        return cls(prepare.prepare(cfg.task, log), cfg.task.seq_len, cfg.task.eval_context)

    @staticmethod
    def sketch(cfg: RunCfg) -> Sketch:
        """Returns the task of a configuration without its text.

        A BPE may find fewer tokens in a small text.
        """
        vocab_size = VOCAB_SIZES.get(cfg.task.tokenizer, cfg.task.vocab_size)
        if cfg.task.tokenizer_from:
            given = tokenizer.of_run(cfg.task)
            vocab_size = tokenizer.named(given["name"], given["json"]).vocab_size
        return Sketch(cfg.task.seq_len, vocab_size)

    @staticmethod
    def restored(cfg: RunCfg, learnt: dict[str, Any], info: dict[str, Any]) -> Encoded:
        """Returns the task of a run without its text: what `learnt` and `info` returned of it."""
        tok = tokenizer.named(learnt["tokenizer"]["name"], learnt["tokenizer"]["json"])
        tok.encode_each([""])  # what is no tokenizer shows here
        return Encoded(tok, cfg.task.seq_len, info)

    def windows(self, split: str) -> int:
        """Returns the windows of an epoch (train) or of a pass (valid, test).

        In a pass the first window scores L tokens, and each of the others L - context: those that
        it does not re-read.
        """
        if split == "train":
            return super().windows(split)
        rest = max(0, self.tokens(split) - self._seq_len)
        return 1 + -(-rest // (self._seq_len - self._context))

    def example(self, batch_size: int) -> Batch:
        """Returns a batch of the right shapes and dtypes, for init."""
        return self.train_batch(0, 0, batch_size)

    def train_batch(
        self, seed: int, step: int, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """Returns the rows of the global batch `step` that belong to host (i, n).

        Window step * B + j of the run is window (step * B + j) % N of its epoch's order. In an
        epoch the text is a ring that is cut into N windows from a random place on: each token is
        learnt once, what the last repeats weighs 0.
        """
        L = self._seq_len
        N = self.windows("train")
        T = len(self._tokens["train"])
        ex_B = host_rows(batch_size, host)
        index_B = step * batch_size + ex_B.astype(np.int64)

        # the place of the cut, and which window after it, epoch by epoch
        start_B = np.empty_like(index_B)
        window_B = np.empty_like(index_B)
        for epoch in np.unique(index_B // N):
            rows = index_B // N == epoch
            start, order_N = self._order(seed, int(epoch), N)
            start_B[rows] = start
            window_B[rows] = order_N[index_B[rows] % N]

        # tokens, counted from the cut
        from_start_BxL = window_B[:, None] * L + np.arange(L)
        pos_BxL = (start_B[:, None] + from_start_BxL) % T
        return self._batch("train", pos_BxL, from_start_BxL < T, ex_B)

    def pick(
        self, seed: int, step: int, index_B: np.ndarray, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """Returns the rows of host (i, n) of a global batch of these windows.

        The text is always cut at its start.
        """
        ex_B = host_rows(len(index_B), host)
        start_B = index_B[ex_B].astype(np.int64) * self._seq_len
        pos_BxL = start_B[:, None] + np.arange(self._seq_len)
        T = len(self._tokens["train"])
        return self._batch("train", pos_BxL % T, pos_BxL < T, ex_B)

    def eval_batches(
        self, split: str, batch_size: int, host: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Yields batches of one shape in which every token of the split weighs 1 exactly once.

        Padding weighs 0, and so does what a window re-reads as context.
        """
        L = self._seq_len
        T = len(self._tokens[split])
        ex_B = host_rows(batch_size, host)
        for first in range(0, self.windows(split), batch_size):
            window_B = first + ex_B.astype(np.int64)
            pos_BxL = window_B[:, None] * (L - self._context) + np.arange(L)
            fresh_BxL = (np.arange(L) >= self._context) | (window_B == 0)[:, None]
            yield self._batch(split, pos_BxL, (pos_BxL < T) & fresh_BxL, ex_B)

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Returns the figures of a split, by its own counts, or the perplexity of a training batch.

        A word is one of the text's own, or the <eos> of a line.
        """
        nats, seen = map(float, sums["loss"])
        if split == "train":
            return {"ppl": _exp(nats / seen)}
        count = self._ready.counts[split]
        tokens = self._ready.tokens[split]
        found = {
            "nats_per_token": nats / tokens,
            "ppl_token": _exp(nats / tokens),
            "bits_per_byte": nats / math.log(2) / count.bytes,
        }
        if self._counts_words:
            found["ppl_word"] = _exp(nats / (count.words + count.lines))
        return found

    def counts(self, split: str) -> np.ndarray:
        """Returns how often the split holds each token, (V,)."""
        return np.bincount(self._tokens[split], minlength=self.shape.vocab_size)

    def _order(self, seed: int, epoch: int, n: int) -> tuple[int, np.ndarray]:
        """Returns where an epoch cuts the ring, and the order of its windows.

        numpy has frozen RandomState's stream.
        """
        key = (seed, epoch)
        if key not in self._orders:
            rng = np.random.RandomState([seed, epoch])
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            start = int(rng.randint(self._seq_len))
            self._orders[key] = (start, rng.permutation(n))
        return self._orders[key]

    def _batch(
        self, split: str, pos_BxL: np.ndarray, counts_BxL: np.ndarray, ex_B: np.ndarray
    ) -> Batch:
        tokens = self._tokens[split]
        # padding reads the last token, with weight 0
        pos_BxL = np.minimum(pos_BxL, len(tokens) - 1)
        before_BxL = tokens[np.maximum(pos_BxL - 1, 0)].astype(np.int32)
        return {
            "inputs_BxL": np.where(pos_BxL == 0, np.int32(self._tok.bos), before_BxL),
            "labels_BxL": tokens[pos_BxL].astype(np.int32),
            "w_BxL": counts_BxL.astype(np.float32),
            "ex_B": ex_B,
        }


def _has_words(info: dict[str, Any]) -> bool:
    """Returns whether white space parts the words of a text, in every split.

    It does not in Chinese or Japanese: then a figure per word says nothing, and bits per byte lead.
    """
    parts = info["splits"].values()
    return all(part["bytes"] <= LONGEST_WORD * part["words"] for part in parts)


def _info(ready: prepare.Prepared) -> dict[str, Any]:
    """Returns what a text is, for result.json."""
    splits = {}
    for split, count in ready.counts.items():
        splits[split] = {
            "tokens": ready.tokens[split],
            "words": count.words + count.lines,  # as `report` counts them
            "bytes": count.bytes,
            "sha256": count.sha256,
        }
    tok = ready.tokenizer
    return {
        "dataset": ready.dataset,
        "source": ready.source.origin,
        "notice": ready.source.notice,
        "sha256": prepare.digest(ready),
        "tokens_sha256": ready.tokens_sha256,
        "tokenizer": {"name": tok.name, "sha256": tok.sha256},
        "vocab_size": tok.vocab_size,
        "splits": splits,
    }


def _exp(x: float) -> float | None:
    return None if x >= LARGEST_EXPONENT else math.exp(x)
