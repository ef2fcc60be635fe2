"""Character n-grams of words: which ones, where they stand in a batch, also of unseen words."""

from __future__ import annotations

import doctest
import zlib

import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import registry
from cerebra_jax.tasks.intent import subwords
from cerebra_jax.tasks.table import Table

BUCKETS = 1000
WORDS = "transfer transfers card cards why don't zürich a 42 , internationalisation".split()


def task_of(path, **more):
    task = {
        "name": "intent",
        "seq_len": 0,
        "path": str(path),
        "tokenizer": "words",
        "min_count": 2,
    } | more
    return registry.build(
        config.parse({"task": task, "net": {"name": "transformer", "causal": False}}),
        lambda line: None,
    )


@pytest.fixture
def texts(tmp_path):
    """60 texts of 2 to 5 words.

    Each ends in one of its own, which is known by its n-grams alone.
    """
    rng = np.random.RandomState(0)
    rows = [" ".join([*rng.choice(WORDS[:-2], rng.randint(1, 5)), f"own{i}"]) for i in range(60)]
    path = tmp_path / "t.csv"
    path.write_text("text,label\n" + "".join(f'"{text}",{i % 3}\n' for i, text in enumerate(rows)))
    return path


def test_the_n_grams_of_a_word():
    assert doctest.testmod(subwords).failed == 0
    for word in WORDS:
        marked, found = f"<{word}>", subwords.grams(word)
        every = {
            marked[i:j]
            for i in range(len(marked))
            for j in range(i + 3, min(i + 5, len(marked)) + 1)
        }
        assert (
            set(found) <= every
            and len(found) <= subwords.MOST
            and [len(g) for g in found] == sorted(map(len, found))
        )
        assert set(found) == every or len(word) > 9
    one, two = set(subwords.grams("transfer")), set(subwords.grams("tranfser"))
    assert 0 < len(one & two) < len(one)


def test_a_token_has_the_n_grams_of_its_word(texts):
    task = task_of(texts, subwords=BUCKETS)
    plain = task_of(texts)
    first = plain.shape.vocab_size  # the tokenizer's ids and padding come before
    assert (task.shape.vocab_size, task.shape.subwords) == (first + BUCKETS, subwords.MOST)
    seen = [
        line.rpartition(",")[0].strip('"').split() for line in texts.read_text().splitlines()[1:]
    ]
    parts = {
        frozenset(first + zlib.crc32(g.encode()) % BUCKETS for g in subwords.grams(w)): w
        for x in seen
        for w in x
    }
    for split in ("valid", "test"):
        batch = next(task.eval_batches(split, 6))
        ids, mask, rows = batch["inputs_BxL"], batch["mask_BxL"], batch["subwords_BxLxG"]
        np.testing.assert_array_equal(ids, next(plain.eval_batches(split, 6))["inputs_BxL"])
        assert rows.shape == (*ids.shape, subwords.MOST) and rows.dtype == np.int32
        assert "words_BxL" not in batch
        # the summary token and padding are no words
        assert (rows[:, 0] == -1).all() and (rows[~mask] == -1).all()
        texts_here = []
        for row, real in zip(rows[:, 1:], mask[:, 1:], strict=True):
            texts_here.append([parts[frozenset(word[word >= 0].tolist())] for word in row[real]])
        assert all(text in seen for text in texts_here)
        assert (ids[:, 1:][mask[:, 1:]] == 0).any()  # never seen in training, and yet read


def test_a_hidden_word_hides_its_n_grams(texts):
    plain, noisy = (
        task_of(texts, subwords=BUCKETS),
        task_of(texts, subwords=BUCKETS, word_noise=0.5),
    )
    for step in range(3):
        a, b = plain.train_batch(0, step, 16), noisy.train_batch(0, step, 16)
        hidden = (a["inputs_BxL"] != b["inputs_BxL"])[:, 1:]
        assert 0.2 < hidden.sum() / a["mask_BxL"][:, 1:].sum() < 0.8
        before, after = a["subwords_BxLxG"][:, 1:], b["subwords_BxLxG"][:, 1:]
        assert (after[hidden] == -1).all()
        np.testing.assert_array_equal(after[~hidden], before[~hidden])


def test_the_n_grams_are_part_of_what_a_run_must_find_again(texts):
    found = [
        task_of(texts, subwords=n).info()["sha256"] for n in (0, BUCKETS, BUCKETS + 1, BUCKETS)
    ]
    assert len(set(found)) == 3 and found[1] == found[3]


@pytest.mark.parametrize(
    "task", [{"name": "intent", "tokenizer": "bytes"}, {"name": "tabular"}, {"name": "text"}]
)
def test_only_words_have_n_grams(task):
    with pytest.raises(UserError, match="task.subwords is set"):
        config.parse({"task": task | {"subwords": 10}})


def test_a_table_to_be_predicted_may_have_words_that_are_new(texts):
    task = task_of(texts, subwords=BUCKETS)
    rows = task.inputs(Table("new", {"text": ["zebra quagga okapi"]}))
    (batch,) = task.given(rows).eval_batches("given", 1)
    found = {frozenset(word[word >= 0].tolist()) for word in batch["subwords_BxLxG"][0, 1:4]}
    first = task._tok.vocab_size + 1
    words = subwords.Subwords(BUCKETS, first)
    words.rows(["zebra", "quagga", "okapi"])
    wanted = {frozenset(word[word >= 0].tolist()) for word in words.table()[1:]}
    assert found == wanted
