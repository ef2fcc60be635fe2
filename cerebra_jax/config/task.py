"""The keys of a task: what is learned, its data and how they are read. No JAX here."""

from __future__ import annotations

from dataclasses import dataclass

from cerebra_jax.config.field import key, path


@dataclass(frozen=True)
class TaskCfg:
    """Holds what is learned: the task, its data and how they are read."""

    name: str = key(
        "text", "task", of=("text", "tabular", "intent", "long_sequence", "listops", "mixed")
    )
    dataset: str = key("wikitext2", "text to train on", of=("wikitext2", "wikitext103", "offline"))
    data_dir: str = path("read", "folder with train/valid/test text, plain or .gz; empty: download")
    cache_dir: str = path(
        "write", "where prepared data is kept; empty: $CEREBRA_CACHE or ~/.cache/cerebra_jax"
    )
    offline_fallback: bool = key(
        True, "train on the offline corpus where nothing can be downloaded"
    )
    tokenizer: str = key(
        "bpe", "tokenizer; words for intent only", of=("bpe", "words", "bytes", "gpt2")
    )
    tokenizer_from: str = path(
        "read",
        "folder of a run whose bpe or words are taken as they are; empty: learnt from the texts",
    )
    vocab_size: int = key(
        4096,
        "tokens of a BPE or of words at most, or symbols of a synthetic task",
        lo=3,
        hi=200_000,
    )
    gpt2_dir: str = path("read", "folder with GPT-2's vocab.json and merges.txt")
    seq_len: int = key(
        256,
        "tokens per window or example (L); 0: what the data need (not for a text)",
        lo=0,
        hi=1 << 20,
    )
    buckets: int = key(
        0,
        "programs for texts or expressions of similar length; 0: one, of task.seq_len",
        lo=0,
        hi=16,
    )
    eval_context: int = key(0, "tokens of context re-read before each evaluation window", lo=0)
    path: str = path(
        "read",
        "table (CSV, or .gz) of tabular and intent; of intent also a folder or CLINC150's JSON; "
        "empty: made up",
    )
    tfds: str = key(
        "",
        "a data set of tensorflow-datasets for intent, instead of task.path: NAME or NAME/CONFIG",
    )
    target: str = key(
        "",
        "column to predict: numbers are a regression, anything else a classification; of intent: "
        "the labels",
    )
    columns: tuple[str, ...] = key(
        (),
        "columns to predict from; empty: all others; of intent: the one with the texts",
        item=str,
    )
    ignore: tuple[str, ...] = key((), "columns to leave out", item=str)
    types: tuple[str, ...] = key(
        (),
        "NAME:number, NAME:category or NAME:date of columns; *:KIND for all features; else by what "
        "they hold",
        item=str,
    )
    delimiter: str = key("", "what parts the fields of a table: one sign, or tab; empty: found out")
    encoding: str = key(
        "", "of a table: utf-8, utf-16, cp1252 …, as Python names it; empty: found out"
    )
    decimal: str = key(
        "", "mark before the decimals of a table; empty: found out", of=("", "point", "comma")
    )
    missing: tuple[str, ...] = key(
        (), "fields of a table that stand for nothing, beside the usual NA, #N/A, - …", item=str
    )
    dates: str = key("", "form of the dates of a table, such as %m/%d/%Y; empty: found out")
    scale: str = key(
        "standard",
        "how columns of numbers are scaled, by training rows",
        of=("standard", "quantile"),
    )
    target_scale: str = key(
        "standard",
        "what a regression learns: the number, its logarithm (of positive ones), or its quantile",
        of=("standard", "log", "quantile"),
    )
    class_weights: tuple[str, ...] = key(
        (),
        "how much classes count in training: balanced, or NAME:WEIGHT of some; empty: alike",
        item=str,
    )
    min_count: int = key(
        2, "a category or word that training shows less often is one with those never seen", lo=1
    )
    dedup: bool = key(False, "leave out rows that equal an earlier one in every column")
    valid_share: float = key(0.1, "share of the rows for validation", lo=0.0, hi=0.9)
    test_share: float = key(0.1, "share of the rows for the test", lo=0.0, hi=0.9)
    split_column: str = key("", "column that says train, valid or test of each row; empty: none")
    group: str = key("", "column whose equal rows stay in one split; empty: none")
    time: str = key("", "column of dates or numbers by which the latest rows are the test")
    stratify: bool = key(False, "split each class at random, so that splits have equal shares")
    folds: int = key(
        0, "k-fold: the test is fold `seed` mod folds, others train; 0: one split", lo=0, hi=1000
    )
    shots: int = key(0, "training texts of each intent; 0: all", lo=0)
    oos: bool = key(False, "add the class of texts that belong to no intent, labelled oos")
    subwords: int = key(
        0,
        "rows of a table of hashed character n-grams, for words of intent; 0: none",
        lo=0,
        hi=1 << 22,
    )
    word_noise: float = key(
        0.0, "share of the tokens of training texts that are hidden", lo=0.0, hi=0.9
    )
    kind: str = key(
        "mqar",
        "what is recalled in long_sequence",
        of=("mqar", "selective", "copy", "masked", "induction"),
    )
    pairs: int = key(8, "long_sequence: pairs, data tokens or masked tokens to remember (K)", lo=1)
    skew: float = key(
        1.0,
        "mqar: queries come at gap g with weight (g + 1)^(skew - 1); 1: anywhere alike",
        lo=0.0,
        hi=1.0,
    )
    filler: str = key("random", "mqar: tokens between the queries", of=("random", "zero"))
    rows: int = key(10_000, "listops: expressions in all three splits", lo=100, hi=1_000_000)
    shortest: int = key(
        500, "listops: expressions are longer than this, and shorter than task.seq_len", lo=2
    )
