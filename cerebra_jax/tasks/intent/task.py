"""Classification of short texts: tokens of the training texts alone, padding that no token sees.

A text is a summary token and its own tokens, cut at L. Of CLINC150's form, task.oos adds the class
of what belongs to no intent, and the figures then tell intents and that class apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cerebra_jax import documents
from cerebra_jax.checks import Problem
from cerebra_jax.config import RunCfg, TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import scores, splits
from cerebra_jax.tasks.examples import Arrays, Examples, digest, digest_of_texts
from cerebra_jax.tasks.intent import read
from cerebra_jax.tasks.intent.encoder import Encoder, encode, learn, of_json
from cerebra_jax.tasks.intent.subwords import MOST, NONE, Subwords
from cerebra_jax.tasks.intent.words import UNKNOWN, Words
from cerebra_jax.tasks.registry import register
from cerebra_jax.tasks.table import Table
from cerebra_jax.tasks.task import (
    SPLITS,
    Log,
    Metric,
    Pairs,
    Shape,
    check_vocabulary,
    host_rows,
)
from cerebra_jax.tasks.text import reading
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

FITS = 0.995  # share of the training texts that L holds where task.seq_len is 0


class About(NamedTuple):
    """What is known of the texts of a task."""

    dataset: str
    notice: str
    classes: list[str]
    cut: dict[str, int]  # split -> texts that have more tokens than L holds
    digests: dict[str, str]  # texts, labels -> sha256 of them as they were read
    fields: str = ""  # sha256 of all rows, however they are split


@register("intent")
class IntentTask(Examples):
    """Texts and their intents in three splits."""

    choice = scores.ACCURACY
    padded = True
    LEARNT = {  # the shape of `learnt`
        "tokenizer": {"name": documents.TEXT, "json": documents.TEXT},
        "before": documents.FLAG,
        "tokens": documents.whole(1, 1 << 20),
        "classes": [documents.TEXT],
        "digests": {"*": documents.TEXT},
    }
    weight_C: np.ndarray | None = None  # how much each class counts in training; None: alike

    def __init__(self, splits: dict[str, Arrays], encoder: Encoder, about: About, cfg: TaskCfg):
        super().__init__(splits)
        # the texts
        self.dataset = about.dataset
        self.notice = about.notice
        self._about = about
        self._column = read.one_column(cfg.columns)
        self._noise = cfg.word_noise

        # their tokens
        self._encoder = encoder
        self._tok = encoder.tok
        self.bos = encoder.tok.bos
        self.vocabulary = encoder.tok.json
        self._subwords_WxG = encoder.subwords.table() if encoder.subwords else None
        self.shape = Shape(
            seq_len=encoder.L,
            vocab_size=encoder.vocab_size,
            outputs=len(about.classes),
            subwords=MOST if encoder.subwords else 0,
        )

        # their figures
        self.metrics: tuple[Metric, ...] = (scores.ACCURACY, scores.MACRO_F1)
        self._oos: int | None = None
        if read.OUT in about.classes:
            self._oos = about.classes.index(read.OUT)
            in_scope = Metric("accuracy_in_scope", "in-scope accuracy", 4, lower=False)
            recall = Metric("oos_recall", "out-of-scope recall", 4, lower=False)
            self.metrics = (in_scope, recall, *self.metrics)

    @property
    def classes(self) -> list[str]:
        """Returns the names of the classes in the order of the outputs."""
        return self._about.classes

    @staticmethod
    def check(cfg: RunCfg) -> Iterator[Problem]:
        """Yields what labelled texts forbid."""
        task = cfg.task
        yield from check_vocabulary(cfg)
        yield from splits.check(cfg)
        yield from scores.check_weights(task)
        if task.subwords and task.tokenizer != "words":
            hint = "use task.name=intent with task.tokenizer=words, or task.subwords=0"
            yield f"task.subwords is set for {task.tokenizer}", f"they are parts of words: {hint}"
        if task.target and task.columns == (task.target,):
            hint = "name the column of the texts: --config.task.columns=NAME"
            yield f"task.columns and task.target are both {task.target!r}", hint
        if task.tfds and task.path:
            hint = "it is for task.name=intent, in the place of task.path"
            yield f"task.tfds is set beside task.path={task.path}", hint

    @classmethod
    def build(cls, cfg: RunCfg, log: Log = print, before: bool = False) -> IntentTask:
        """Returns the texts of a configuration as tokens.

        before: words are cut as version 0.1 did. UserError says what is wrong with files or
        settings.
        """
        task = cfg.task
        found = _selected(read.find(cfg, log), task, log)
        classes = _classes(found, log)

        # what the training texts decide: the tokenizer and the length
        texts = {split: [text for text, _ in found.rows[split]] for split in SPLITS}
        tok = learn(task, texts["train"], before)
        ids = {split: encode(tok, texts[split]) for split in SPLITS}
        L = _length(task.seq_len, ids["train"])
        subwords = Subwords(task.subwords, first=tok.vocab_size + 1) if task.subwords else None
        encoder = Encoder(tok, subwords, L)

        # arrays of each split
        number = {label: i for i, label in enumerate(classes)}
        splits = {}
        for split in SPLITS:
            labels = [[number[label]] for _, label in found.rows[split]]
            splits[split] = encoder.arrays(texts[split], ids[split])
            splits[split]["labels_BxL"] = np.asarray(labels, np.int32)

        notices = [found.notice, _notice_of_cuts(ids["test"], L) if task.seq_len else ""]
        about = About(
            dataset=f"intent:{found.name}",
            notice="; ".join(notice for notice in notices if notice),
            classes=classes,
            cut={split: sum(len(x) >= L for x in ids[split]) for split in SPLITS},
            digests=_digests(found),
            fields=_digest_of_rows(found),
        )
        made = cls(splits, encoder, about, task)
        if task.class_weights:
            made.weight_C = scores.weights(task, classes, splits["train"]["labels_BxL"][:, 0])
            made.choice = scores.MACRO_F1
            log(scores.told(made.weight_C, classes))
        return made

    def learnt(self) -> dict[str, Any]:
        """Returns all that was learnt from the texts, for JSON: tokenizer, length and classes."""
        tok = self._tok
        return {
            "tokenizer": {"name": tok.name, "json": tok.json},
            "before": isinstance(tok, Words) and tok.before,
            "bos": tok.bos,
            "padding": self._encoder.padding,
            "tokens": self._encoder.L,
            "subwords": self._encoder.subwords.buckets if self._encoder.subwords else 0,
            "classes": self._about.classes,
            "digests": self._about.digests,
        }

    @classmethod
    def restored(cls, cfg: RunCfg, learnt: dict[str, Any], info: dict[str, Any]) -> IntentTask:
        """Returns the task of a run without its texts: what `learnt` and `info` returned of it.

        One empty text stands for every split.
        """
        tok = of_json(**learnt["tokenizer"], before=learnt["before"])
        buckets = cfg.task.subwords
        subwords = Subwords(buckets, first=tok.vocab_size + 1) if buckets else None
        encoder = Encoder(tok, subwords, learnt["tokens"])
        empty = encoder.arrays([""], encode(tok, [""]))
        empty["labels_BxL"] = np.zeros((1, 1), np.int32)
        lost = {split: part["cut"] for split, part in info["splits"].items()}
        about = About(info["dataset"], info["notice"], learnt["classes"], lost, learnt["digests"])
        task = cls(dict.fromkeys(SPLITS, empty), encoder, about, cfg.task)
        task.without_data(info)
        return task

    def pick(
        self, seed: int, step: int, row_B: np.ndarray, host: tuple[int, int] = (0, 1)
    ) -> Batch:
        """Returns the rows as `Examples.pick` does, with words hidden.

        A share of task.word_noise of the words becomes the summary token, others at every step.
        """
        batch = super().pick(seed, step, row_B, host)
        if self._noise:
            ids_BxL = batch["inputs_BxL"]
            rng = np.random.RandomState([seed, step])
            drawn_BxL = rng.rand(len(row_B), ids_BxL.shape[1]) < self._noise
            hidden_BxL = drawn_BxL[host_rows(len(row_B), host)] & batch["mask_BxL"]
            batch["inputs_BxL"] = np.where(hidden_BxL, np.int32(self.bos), ids_BxL)
            if self._subwords_WxG is not None:
                batch["subwords_BxLxG"][hidden_BxL] = NONE
        return batch

    def _batch(
        self,
        split: str,
        row_B: np.ndarray,
        w_B: np.ndarray,
        ex_B: np.ndarray,
        length: int | None = None,
    ) -> Batch:
        rows = super()._batch(split, row_B, w_B, ex_B, length)
        if self._subwords_WxG is not None:
            rows["subwords_BxLxG"] = self._subwords_WxG[rows.pop("words_BxL")]
        return rows

    def inputs(self, table: Table) -> Arrays:
        """Returns the texts of a table as tokens; it needs no labels."""
        texts = table.columns[read.text_column(table, self._column)]
        found = self._encoder.arrays(texts, encode(self._tok, texts))
        if self._encoder.subwords:
            self._subwords_WxG = self._encoder.subwords.table()  # it has their new words too
        return found

    def unseen(self, table: Table) -> list[str]:
        """Returns lines on what texts hold that training did not show, and on empty ones."""
        texts = table.columns[read.text_column(table, self._column)]
        ids = encode(self._tok, texts)
        found = []
        if isinstance(self._tok, Words):
            words = sum(len(x) for x in ids)
            unknown = sum(int((x == UNKNOWN).sum()) for x in ids)
            if unknown:
                found.append(f"{unknown:,} of {words:,} words were rare or not seen in training")
        empty = [i for i, text in enumerate(texts) if not text.strip()]
        if empty:
            first = table.place(empty[0])
            found.append(f"{len(empty):,} of {len(texts):,} texts are empty (the first: {first})")
        return found

    def answers(self, out_NxC: np.ndarray) -> dict[str, list]:
        """Returns `scores.named`."""
        return scores.named(out_NxC, self._about.classes)

    def read(self, text: str) -> reading.Reading:
        """Returns a text as one input: the summary token and its own tokens, cut at L.

        What is cut has no tokens.
        """
        return self._encoder.read(text)

    def loss(self, out: Out, batch: Batch, chunk: int, each: bool = False) -> tuple[Any, Pairs]:
        """Returns `scores.classify`."""
        return scores.classify(out, batch, each, self.weight_C)

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Returns accuracy and macro-F1 over all classes.

        With an out-of-scope class it also returns the figures of both sides of it.
        """
        found = scores.classes(sums)
        if self._oos is None or split == "train":
            return found
        is_C, right_C = (np.asarray(sums[name][0], np.float64) for name in ("is", "right"))
        in_scope_C = np.arange(len(is_C)) != self._oos
        found["accuracy_in_scope"] = float(right_C[in_scope_C].sum() / is_C[in_scope_C].sum())
        asked = is_C[self._oos]
        found["oos_recall"] = float(right_C[self._oos] / asked) if asked else float("nan")
        return found

    def info(self) -> dict[str, Any]:
        """Returns what the texts are, for result.json."""
        if self.kept_info:
            return self.kept_info
        arrays = dict(self._splits)
        if self._subwords_WxG is not None:
            arrays["subwords"] = {"subwords_WxG": self._subwords_WxG}
        splits = {s: {"rows": n, "cut": self._about.cut[s]} for s, n in self.size.items()}
        return {
            "dataset": self.dataset,
            "notice": self.notice,
            "sha256": digest(arrays),
            "fields_sha256": self._about.fields,
            "splits": splits,
            "tokenizer": {"name": self._tok.name, "sha256": self._tok.sha256},
            "vocab_size": self.shape.vocab_size,
            "classes": self._about.classes,
        }


def _digests(found: read.Labelled) -> dict[str, str]:
    """Returns a sha256 of all texts and of all labels, as they were read."""
    rows = [row for split in SPLITS for row in found.rows[split]]
    return {
        "texts": digest_of_texts([text for text, _ in rows]),
        "labels": digest_of_texts([label for _, label in rows]),
    }


def _digest_of_rows(found: read.Labelled) -> str:
    """Returns one sha256 of all labelled texts, the same for every split of them."""
    rows = [f"{label}\0{text}" for split in SPLITS for text, label in found.rows[split]]
    return digest_of_texts(sorted(rows))


def _selected(found: read.Labelled, task: TaskCfg, log: Log) -> read.Labelled:
    """Returns the rows that task.oos and task.shots leave, under a name that says so.

    Raises UserError for an empty split.
    """
    name, rows = found.name, found.rows
    if not task.oos:
        rows = {s: [row for row in rows[s] if row[1] != read.OUT] for s in SPLITS}
        left_out = sum(len(found.rows[split]) - len(rows[split]) for split in SPLITS)
        if left_out:
            kept = ", ".join(f"{len(rows[split]):,} {split}" for split in SPLITS)
            log(
                f"{left_out:,} texts of the class {read.OUT} are left out ({kept} stay); "
                "--config.task.oos=True keeps them"
            )
    elif all(label != read.OUT for _, label in rows["train"]):
        what = f"task.oos is set, but no row of {name} is labelled {read.OUT}"
        raise UserError(what, "use task.oos=False")
    else:
        name += f" with {read.OUT}"
    if task.shots:
        rows = rows | {"train": read.shots(rows["train"], task.shots)}
        name += f", {task.shots}-shot"
    for split in SPLITS:
        if not rows[split]:
            raise UserError(f"{name} has no row for {split}", "give more rows, or other shares")
    return read.Labelled(name, rows, found.notice)


def _classes(found: read.Labelled, log: Log) -> list[str]:
    """Returns the labels of all splits, sorted; raises UserError where there is one only."""
    labels = {split: {label for _, label in rows} for split, rows in found.rows.items()}
    classes = sorted(set().union(*labels.values()))
    if len(classes) < 2:
        what = f"{found.name} has one label only, {classes[0]!r}"
        raise UserError(what, "choose another task.target")
    never = set(classes) - labels["train"]
    if never:
        count = f"{len(never)} of {len(classes)} labels"
        log(f"{count}, {min(never)!r} among them, are in no training row")
    return classes


def _length(given: int, ids: list[np.ndarray]) -> int:
    """Returns L: task.seq_len, or (0) what holds FITS of the training texts.

    Raises UserError where none has a token.
    """
    tokens = sorted(len(x) for x in ids)
    L = given or 1 + tokens[min(len(tokens) - 1, int(FITS * len(tokens)))]
    if L < 2:
        what = f"task.seq_len is {L}, or no training text has a word"
        raise UserError(what, "use task.seq_len=0, or 32")
    return L


def _notice_of_cuts(ids: list[np.ndarray], L: int) -> str:
    """Returns what a reader must know of test texts that do not fit; "" where all do."""
    cut = sum(len(x) >= L for x in ids)
    if not cut:
        return ""
    lost = sum(max(0, len(x) - L + 1) for x in ids) / sum(len(x) for x in ids)
    texts = f"{cut / len(ids):.0%} of the test texts are cut at {L} tokens"
    return f"{texts}, {lost:.0%} of all tokens"
