"""Classification of short texts: tokens learnt from the training texts alone, padding that no token sees.

A text is a summary token and its own tokens, cut at L. Of CLINC150's form, task.oos adds the class of what belongs to
no intent, and the figures then tell intents and that class apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cerebra_jax.config import RunCfg, TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import scores
from cerebra_jax.tasks.examples import SPLITS, Arrays, Examples, digest
from cerebra_jax.tasks.intent import read
from cerebra_jax.tasks.intent.subwords import MOST, NONE, Subwords
from cerebra_jax.tasks.intent.words import Words
from cerebra_jax.tasks.intent.words import split as words_of
from cerebra_jax.tasks.table import Table
from cerebra_jax.tasks.task import Metric, Pairs, Shape, host_rows
from cerebra_jax.tasks.text import reading, tokenizer
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

FITS = 0.995  # share of the training texts that L holds where task.seq_len is 0


class IntentTask(Examples):
    """Texts and their intents in three splits."""

    choice = scores.ACCURACY

    def __init__(self, dataset: str, notice: str, splits: dict[str, Arrays], classes: list[str], tok: Any,
                 subwords: Subwords | None, cfg: TaskCfg, about: dict[str, Any]):  # fmt: skip
        super().__init__(splits)
        self.dataset, self.notice, self._classes, self._about = dataset, notice, classes, about
        self.bos, self.vocabulary = tok.bos, tok.json
        self._tok, self._noise, self._subwords, self._column = (
            tok,
            cfg.word_noise,
            subwords,
            ",".join(cfg.columns),
        )
        self._out = classes.index(read.OUT) if read.OUT in classes else None
        self._subwords_WxG = subwords.table() if subwords else None
        # the ids of the tokenizer, padding, and the n-grams
        vocab, most = (
            tok.vocab_size + 1 + (subwords.buckets if subwords else 0),
            MOST if subwords else 0,
        )
        self.shape = Shape(
            splits["train"]["inputs_BxL"].shape[1], vocab, outputs=len(classes), subwords=most
        )
        self.metrics: tuple[Metric, ...] = (scores.ACCURACY, scores.MACRO_F1)
        if self._out is not None:
            inside = Metric("accuracy_in_scope", "in-scope accuracy", 4, lower=False)
            recall = Metric("oos_recall", "out-of-scope recall", 4, lower=False)
            self.metrics = (inside, recall, *self.metrics)

    def pick(
        self, seed: int, step: int, row_B: np.ndarray, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """As `Examples`; of the words, a share of task.word_noise becomes the summary token, others at every step."""
        batch = super().pick(seed, step, row_B, host)
        if self._noise:
            ids = batch["inputs_BxL"]
            lost = np.random.RandomState([seed, step]).rand(len(row_B), ids.shape[1]) < self._noise
            lost = lost[host_rows(len(row_B), host)] & batch["mask_BxL"]
            batch["inputs_BxL"] = np.where(lost, np.int32(self._tok.bos), ids)
            if self._subwords_WxG is not None:
                batch["subwords_BxLxG"][lost] = NONE
        return batch

    def _batch(
        self, split: str, row_B: np.ndarray, w_B: np.ndarray, ex_B: np.ndarray, length=None
    ) -> Batch:
        rows = super()._batch(split, row_B, w_B, ex_B, length)
        if self._subwords_WxG is not None:
            rows["subwords_BxLxG"] = self._subwords_WxG[rows.pop("words_BxL")]
        return rows

    def inputs(self, table: Table) -> Arrays:
        """The texts of a table, which needs no labels."""
        texts = table.columns[read.text_column(table, self._column)]
        return tokens(
            texts, _encode(self._tok, texts), self._tok, self._subwords, self.shape.seq_len
        )

    def answers(self, out_NxC: np.ndarray) -> dict[str, list]:
        """`scores.named`."""
        return scores.named(out_NxC, self._classes)

    def read(self, text: str) -> reading.Reading:
        """A text as one input: the summary token and its own tokens, cut at L; what is cut has no tokens."""
        L, spaced = self.shape.seq_len, f" {reading.readable(text)}"
        ids = self._tok.encode_each([spaced])[0].tolist()
        words = self._tok.name == "words"
        spans = (
            self._tok.spans(spaced) if words else reading.spans_of(spaced, self._tok.pieces(ids))
        )
        spans = [(max(0, a - 1), b - 1) for a, b in spans]  # the space is ours
        ids, spans = [self._tok.bos, *ids][:L], [(0, 0), *spans][:L]
        batch = reading.windows(ids, L)
        batch["mask_BxL"] = np.arange(L)[None] < len(ids)
        batch["inputs_BxL"] = np.where(
            batch["mask_BxL"], batch["inputs_BxL"], np.int32(self._tok.vocab_size)
        )
        if self._subwords:
            numbers = [0, *self._subwords.rows(words_of(text)[: L - 1])]
            numbers += [0] * (L - len(numbers))
            batch["subwords_BxLxG"] = self._subwords.table()[np.asarray([numbers])]
        return reading.Reading(ids, spans, batch)

    def loss(self, out: Out, batch: Batch, chunk: int, each: bool = False) -> tuple[Any, Pairs]:
        """`scores.classify`."""
        return scores.classify(out, batch, each)

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Accuracy and macro-F1 over all classes; with an out-of-scope class, both sides of it too."""
        found = scores.classes(sums)
        if self._out is None or split == "train":
            return found
        is_C, right_C = (np.asarray(sums[name][0], np.float64) for name in ("is", "right"))
        inside = np.arange(len(is_C)) != self._out
        recall = right_C[self._out] / is_C[self._out] if is_C[self._out] else float("nan")
        return found | {
            "accuracy_in_scope": float(right_C[inside].sum() / is_C[inside].sum()),
            "oos_recall": float(recall),
        }

    def info(self) -> dict[str, Any]:
        """What the texts are, for result.json."""
        tok = {"name": self._tok.name, "sha256": self._tok.sha256}
        sizes = {split: {"rows": n} | self._about["cut"][split] for split, n in self.size.items()}
        more = (
            {} if self._subwords_WxG is None else {"subwords": {"subwords_WxG": self._subwords_WxG}}
        )
        what = {
            "dataset": self.dataset,
            "notice": self.notice,
            "sha256": digest(self._splits | more),
            "splits": sizes,
        }
        return what | {
            "tokenizer": tok,
            "vocab_size": self.shape.vocab_size,
            "classes": self._classes,
        }


def build(cfg: RunCfg, say: Callable[[str], None] = print) -> IntentTask:
    """The texts of a configuration as tokens; UserError says what is wrong with the files or the settings."""
    task = cfg.task
    found = read.find(task, say)
    rows = {s: [r for r in rs if task.oos or r[1] != read.OUT] for s, rs in found.rows.items()}
    name = found.name
    if task.oos:
        if not any(label == read.OUT for _, label in rows["train"]):
            raise UserError(
                f"task.oos is set, but no row of {name} is labelled {read.OUT}",
                "use task.oos=False",
            )
        name += f" with {read.OUT}"
    if task.shots:
        rows["train"] = read.shots(rows["train"], task.shots)
        name += f", {task.shots}-shot"
    for split in SPLITS:
        if not rows[split]:
            raise UserError(f"{name} has no row for {split}", "give more rows, or other shares")
    classes = sorted({label for rs in rows.values() for _, label in rs})
    if len(classes) < 2:
        raise UserError(f"{name} has one label only, {classes[0]!r}", "choose another task.target")
    if never := set(classes) - {label for _, label in rows["train"]}:
        say(
            f"{len(never)} of {len(classes)} labels, {min(never)!r} among them, are in no training row"
        )
    tok = _tokenizer(task, [text for text, _ in rows["train"]])
    ids = {s: _encode(tok, [text for text, _ in rs]) for s, rs in rows.items()}
    longest = sorted(len(x) for x in ids["train"])
    L = task.seq_len or 1 + longest[min(len(longest) - 1, int(FITS * len(longest)))]
    if L < 2:
        raise UserError(
            f"task.seq_len is {L}, or no training text has a word", "use task.seq_len=0, or 32"
        )
    splits, number = {}, {label: i for i, label in enumerate(classes)}
    subwords = Subwords(task.subwords, tok.vocab_size + 1) if task.subwords else None
    for split in SPLITS:
        texts = [text for text, _ in rows[split]]
        labels = np.asarray([number[label] for _, label in rows[split]], np.int32)[:, None]
        splits[split] = tokens(texts, ids[split], tok, subwords, L) | {"labels_BxL": labels}
    about = {"cut": {s: {"cut": sum(len(x) >= L for x in xs)} for s, xs in ids.items()}}
    notice = "; ".join(
        filter(None, (found.notice, _shortened(ids["test"], L) if task.seq_len else ""))
    )
    return IntentTask(f"intent:{name}", notice, splits, classes, tok, subwords, task, about)


def _encode(tok: Any, texts: list[str]) -> list[np.ndarray]:
    """A space before each text, so that its first word is one like any other."""
    return tok.encode_each([f" {text}" for text in texts])


def tokens(
    texts: list[str], ids: list[np.ndarray], tok: Any, subwords: Subwords | None, L: int
) -> Arrays:
    """Batch keys of some texts: the summary token and their own tokens, cut and padded to L."""
    inputs = np.full((len(texts), L), tok.vocab_size, np.int32)  # padding
    for row, x in zip(inputs, ids, strict=True):
        row[0], row[1 : 1 + len(x)] = tok.bos, x[: L - 1]
    found = {"inputs_BxL": inputs, "mask_BxL": inputs != tok.vocab_size}
    if subwords:
        found["words_BxL"] = np.zeros((len(texts), L), np.int32)
        for row, text in zip(found["words_BxL"], texts, strict=True):
            numbers = subwords.rows(words_of(text)[: L - 1])
            row[1 : 1 + len(numbers)] = numbers
    return found


def _shortened(ids: list[np.ndarray], L: int) -> str:
    """What a reader must know of texts that do not fit; "" where all do."""
    lost, every = sum(max(0, len(x) - L + 1) for x in ids), sum(len(x) for x in ids)
    cut = sum(len(x) >= L for x in ids)
    return (
        f"{cut / len(ids):.0%} of the test texts are cut at {L} tokens, {lost / every:.0%} of all tokens"
        if cut
        else ""
    )


def _tokenizer(task: TaskCfg, train: list[str]) -> Any:
    """Tokens of the training texts."""
    if task.tokenizer == "bytes":
        return tokenizer.Bytes()
    if task.tokenizer == "words":
        return Words(train, task.min_count, task.vocab_size)
    if task.tokenizer == "gpt2":
        return tokenizer.Bpe(tokenizer.gpt2(Path(task.gpt2_dir).expanduser()), "gpt2")
    return tokenizer.Bpe(
        tokenizer.train_bpe((f" {text}".encode() for text in train), task.vocab_size), "bpe"
    )
