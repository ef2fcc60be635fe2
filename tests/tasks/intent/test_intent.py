"""Short texts: their splits, k-shot, the out-of-scope class, tokens of training texts, padding."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.models.model import build as build_model
from cerebra_jax.models.model import neutral_knobs
from cerebra_jax.tasks import registry
from cerebra_jax.tasks.examples import cut
from cerebra_jax.tasks.intent import read, synthetic
from cerebra_jax.tasks.intent.words import Words
from cerebra_jax.tasks.task import SPLITS

LABELS = ["card", "loan", "rate"]


def rows_of(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Makes (text, label) pairs; each text ends in its own number."""
    rng = random.Random(seed)
    words = "why is my a the card loan now not ok".split()
    rows = []
    for i in range(n):
        text = " ".join(rng.choice(words) for _ in range(rng.randint(1, 9)))
        rows.append((f"{text}, no. {i}", rng.choice(LABELS)))
    return rows


def csv_of(path: Path, rows, header: str = "text,label") -> Path:
    path.write_text(header + "\n" + "".join(f'"{a}",{b}\n' for a, b in rows))
    return path


def task_of(path="", said: list[str] | None = None, **more):
    task = {
        "name": "intent",
        "seq_len": 0,
        "path": str(path),
        "tokenizer": "words",
        "min_count": 1,
    } | more
    return registry.build(
        config.parse({"task": task, "net": {"name": "transformer", "causal": False}}),
        ([] if said is None else said).append,
    )


def numbers(task, split: str) -> list[int]:
    """Returns which rows of `rows_of` a split of bytes holds."""
    rows = zip(task._splits[split]["inputs_BxL"], task._splits[split]["mask_BxL"], strict=True)
    return [int(task._tok.decode(ids[mask]).rsplit(" ", 1)[1]) for ids, mask in rows]


LONG = {"tokenizer": "bytes", "seq_len": 100}  # every text can be read back whole


def test_one_file_is_cut_by_the_common_rule(tmp_path):
    task = task_of(csv_of(tmp_path / "t.csv", rows_of(50)), **LONG)
    for split, rows in cut(50, 0.1, 0.1).items():
        assert numbers(task, split) == rows.tolist()
        labels = [LABELS.index(rows_of(50)[i][1]) for i in rows]
        assert task._splits[split]["labels_BxL"][:, 0].tolist() == labels
    assert (task.shape.outputs, task.shape.causal, task.dataset) == (3, False, "intent:t")


def test_a_folder_without_validation_rows_takes_them_from_its_training_file(tmp_path):
    folder = tmp_path / "bank"
    folder.mkdir()
    csv_of(folder / "train.csv", rows_of(40), "text,category")
    csv_of(folder / "test.csv", rows_of(9, 5), "text,category")
    task = task_of(folder, **LONG)
    parts = cut(40, 0.1, 0.0)
    assert [numbers(task, s) for s in SPLITS] == [
        parts["train"].tolist(),
        parts["valid"].tolist(),
        list(range(9)),
    ]
    assert task.dataset == "intent:bank"
    # as SNIPS has it: one held-out file is the test
    (folder / "test.csv").rename(folder / "valid.csv")
    assert numbers(task_of(folder, **LONG), "test") == list(range(9))
    csv_of(folder / "test.csv", rows_of(7, 6), "text,category")
    task = task_of(folder, **LONG)
    assert [len(numbers(task, s)) for s in SPLITS] == [40, 9, 7]
    assert sorted(numbers(task, "train")) == list(range(40))


def clinc(path: Path) -> Path:
    rows = {key: rows_of(n, n) for key, n in (("train", 30), ("val", 8), ("test", 10))}
    out = {
        f"oos_{key}": [(f"else {i}", "oos") for i in range(n)]
        for key, n in (("train", 6), ("val", 2), ("test", 4))
    }
    path.write_bytes(gzip.compress(json.dumps(rows | out).encode()))
    return path


def test_clinc_keeps_its_splits_and_adds_the_class_without_intent_on_demand(tmp_path):
    path = clinc(tmp_path / "data_small.json.gz")
    task, whole = task_of(path, **LONG), task_of(path, oos=True, **LONG)
    assert task.size == {"train": 30, "valid": 8, "test": 10}
    assert whole.size == {"train": 36, "valid": 10, "test": 14}
    assert sorted(numbers(task, "train")) == list(range(30))
    assert numbers(task, "test") == list(range(10))
    assert (task.shape.outputs, whole.shape.outputs) == (3, 4)
    said: list[str] = []
    task_of(path, said=said, **LONG)
    assert any(
        "12 texts of the class oos are left out (30 train, 8 valid, 10 test" in x for x in said
    )
    assert [m.key for m in whole.metrics][:2] == ["accuracy_in_scope", "oos_recall"]
    # card, loan, oos, rate: 10 texts of intents and 4 of none, of which 6 and 1 are right
    sums = {
        "is": ([4, 3, 4, 3], 1),
        "said": ([5, 3, 3, 3], 1),
        "right": ([3, 2, 1, 1], 1),
        "loss": (1.0, 14.0),
    }
    got = whole.report("test", sums)
    assert got["accuracy_in_scope"] == pytest.approx(0.6)
    assert got["oos_recall"] == pytest.approx(0.25)
    assert got["accuracy"] == pytest.approx(0.5)
    assert got["macro_f1"] == pytest.approx(np.mean([6 / 9, 4 / 6, 2 / 6, 2 / 7]))


def test_k_shot_takes_the_first_of_each_intent_in_the_order_of_the_permutation(tmp_path):
    path, rows = csv_of(tmp_path / "t.csv", rows_of(60)), rows_of(60)
    whole, few = task_of(path, **LONG), task_of(path, shots=3, **LONG)
    order, want, seen = numbers(whole, "train"), [], dict.fromkeys(LABELS, 0)
    for i in order:
        seen[rows[i][1]] += 1
        want += [i] if seen[rows[i][1]] <= 3 else []
    assert numbers(few, "train") == want and len(want) == 9 and few.dataset == "intent:t, 3-shot"
    assert few.size["test"] == whole.size["test"] and few.size["valid"] == whole.size["valid"]
    words = {k: task_of(path, shots=k).shape.vocab_size for k in (0, 3)}
    assert words[3] < words[0]  # of the shots only
    assert read.shots([("a", "x")] * 2, 5) == [("a", "x")] * 2


@pytest.mark.parametrize(("kind", "size"), [("words", 300), ("bpe", 300), ("bytes", 300)])
def test_nothing_is_learnt_from_validation_or_test_texts(tmp_path, kind, size):
    rows = rows_of(60)
    here = task_of(csv_of(tmp_path / "a.csv", rows), tokenizer=kind, vocab_size=size)
    parts = cut(60, 0.1, 0.1)
    for i in (*parts["valid"], *parts["test"]):
        rows[i] = ("zebra " * 30 + "quagga", rows[i][1])
    there = task_of(csv_of(tmp_path / "b.csv", rows), tokenizer=kind, vocab_size=size)
    assert here.shape == there.shape and here.info()["tokenizer"] == there.info()["tokenizer"]
    for name, x in here._splits["train"].items():
        np.testing.assert_array_equal(x, there._splits["train"][name])
    if kind == "words":
        # one id for all that was never seen
        assert set(there._splits["test"]["inputs_BxL"][0, 1:].tolist()) == {0}


def test_words_are_lower_case_frequent_and_few():
    words = Words.learnt(["Don't stop, DON'T!", "stop it", "it is a_b 42"], 2, 100)
    assert sorted(words._ids) == ["don't", "it", "stop"] and words.vocab_size == 5
    assert [x.tolist() for x in words.encode_each(["It, don't"])] == [
        [words._ids["it"], 0, words._ids["don't"]]
    ]
    assert list(Words.learnt(["a b b c c c"], 1, 4)._ids) == ["c", "b"]


def test_a_text_is_a_summary_token_its_own_tokens_and_padding(tmp_path):
    path = csv_of(tmp_path / "t.csv", rows_of(60))
    for kind in ("words", "bpe", "bytes"):
        task = task_of(path, tokenizer=kind, vocab_size=300)
        L, pad = task.shape.seq_len, task.shape.vocab_size - 1
        for split in SPLITS:
            ids, mask = task._splits[split]["inputs_BxL"], task._splits[split]["mask_BxL"]
            assert ids.shape[1] == L and (ids[:, 0] == task._tok.bos).all()
            assert (mask == (ids != pad)).all()
            assert (np.diff(mask.astype(int), axis=1) <= 0).all()  # padding comes last
        short = task_of(path, tokenizer=kind, vocab_size=300, seq_len=4)
        np.testing.assert_array_equal(
            short._splits["test"]["inputs_BxL"], task._splits["test"]["inputs_BxL"][:, :4]
        )
        lost = {s: x["cut"] for s, x in short.info()["splits"].items()}
        long = {s: int(task._splits[s]["mask_BxL"][:, 4:].any(1).sum()) for s in SPLITS}
        assert lost == long
        json.dumps(task.info(), allow_nan=False)


def test_padding_changes_no_output(tmp_path):
    task = task_of(csv_of(tmp_path / "t.csv", rows_of(60)))
    for name in ("transformer", "cerebra"):
        net = {"name": name, "causal": False, "depth": 1, "width": 16, "heads": 2, "ffn_width": 16}
        cfg = config.parse(
            {"task": {"name": "intent", "seq_len": 0}, "net": net | {"route": {"mode": "topk"}}}
        )
        cfg = registry.fitted(cfg, task.shape)
        model = build_model(cfg, task.shape.vocab_size)
        batch = task.example(8)
        variables = model.init(jax.random.key(0), batch)
        apply = jax.jit(model.apply)
        other = batch | {
            "inputs_BxL": np.where(batch["mask_BxL"], batch["inputs_BxL"], 3).astype(np.int32)
        }
        assert (other["inputs_BxL"] != batch["inputs_BxL"]).any()
        h, other_h = (apply(variables, rows, neutral_knobs())[0].h for rows in (batch, other))
        np.testing.assert_allclose(h, other_h, rtol=1e-5, atol=1e-6)


def test_word_noise_hides_other_training_words_at_every_step_and_none_elsewhere(tmp_path):
    # all of one length
    rows = [(f"one two three four five six seven {label}", label) for label in LABELS * 20]
    path = csv_of(tmp_path / "t.csv", rows)
    plain, noisy = task_of(path, seq_len=12), task_of(path, word_noise=0.3, seq_len=12)
    share, steps = [], []
    for step in range(20):
        a, b = plain.train_batch(1, step, 16), noisy.train_batch(1, step, 16)
        hidden = a["inputs_BxL"] != b["inputs_BxL"]
        assert (b["inputs_BxL"][hidden] == noisy._tok.bos).all()
        assert not hidden[~a["mask_BxL"]].any()
        share.append(hidden[:, 1:].sum() / a["mask_BxL"][:, 1:].sum())
        steps.append(hidden.tobytes())
        again = [noisy.train_batch(1, step, 16, (h, 2))["inputs_BxL"] for h in range(2)]
        np.testing.assert_array_equal(np.concatenate(again), b["inputs_BxL"])
    assert abs(np.mean(share) - 0.3) < 0.04 and len(set(steps)) == 20
    for a, b in zip(plain.eval_batches("test", 4), noisy.eval_batches("test", 4), strict=True):
        np.testing.assert_array_equal(a["inputs_BxL"], b["inputs_BxL"])


def test_the_made_up_utterances_are_the_same_everywhere():
    rows = synthetic.utterances()
    assert len(rows) == len(set(rows)) > 2000
    assert {label for _, label in rows} == set(synthetic.INTENTS)
    assert len({text for text, _ in rows}) == len(rows)  # no text has two intents
    assert all("{" not in text and text == " ".join(text.split()) for text, _ in rows)
    assert rows[0] == ("shut in the bathroom", "lock"), (
        f"{rows[0]}: other texts. Intended? Say why in the commit."
    )
    task = task_of()
    assert task.shape.outputs == len(synthetic.INTENTS) - 1 and "made-up" in task.notice
    assert task_of(oos=True).shape.outputs == len(synthetic.INTENTS)


@pytest.mark.parametrize(
    ("text", "more", "what"),
    [
        ("text,label\n", {}, "has no rows"),
        ("words,label\na,b\n", {}, "has no column text"),
        ("text,label,more\na,b,c\n", {}, "2 columns beside text"),
        ("text,label\na,b\nc,\n", {}, "t.csv:3: the row has no label"),
        ("text,label\na,b\n", {"target": "labl"}, "did you mean label?"),
        ("text,label\na,b\n", {"columns": "x"}, "task.columns names 'x'"),
        ("text,label\n" + "a,b\n" * 20, {}, "one label only, 'b'"),
        ("text,label\n" + "a,b\nb,c\n" * 2, {}, "no row is left"),
        ("text,label\n" + "a,b\nb,c\n" * 20, {"oos": True}, "no row of t is labelled oos"),
        ("text,label\n" + "a,oos\n" * 20, {}, "has no row for train"),
        ("text,label\n" + "a,b\nb,c\n" * 20, {"seq_len": 1}, "task.seq_len is 1"),
        ('text,label\n"a,b\n', {}, "is not CSV"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, text, more, what):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError) as e:
        task_of(tmp_path / "t.csv", **more)
    assert what in str(e.value) and e.value.hint


def test_a_broken_folder_or_json_is_one_line(tmp_path):
    broken = [
        "{",
        "[]",
        '{"train": []}',
        '{"train": [["a"]], "val": [], "test": []}',
        '{"train": [["a", 1]], "val": [], "test": []}',
    ]
    for i, text in enumerate(broken):
        path = tmp_path / f"{i}.json"
        path.write_text(text)
        with pytest.raises(UserError, match="not in CLINC150's form"):
            task_of(path)
    with pytest.raises(UserError, match="has no train.csv"):
        task_of(tmp_path)
    csv_of(tmp_path / "train.csv", rows_of(20))
    with pytest.raises(UserError, match="has no test.csv"):
        task_of(tmp_path)
    for name in ("test.csv", "test.tsv"):
        csv_of(tmp_path / name, rows_of(5))
    with pytest.raises(UserError, match="one split twice"):
        task_of(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        task_of(tmp_path / "none.csv")


def test_the_sets_beside_the_checkout_have_their_published_sizes():
    data = Path(__file__).resolve().parents[4] / "shared" / "data"
    if not (data / "clinc150").is_dir():
        pytest.skip("no intent data beside the checkout")
    sizes = {
        ("clinc150/data_full.json.gz", False, 0.1): (15_000, 3_000, 4_500, 150),
        ("clinc150/data_small.json.gz", True, 0.1): (7_600, 3_100, 5_500, 151),
        ("banking77", False, 0.1): (9_002, 1_001, 3_080, 77),
        ("snips", False, 0.05): (13_094, 690, 700, 7),
    }
    for (name, oos, share), want in sizes.items():
        task = task_of(data / name, oos=oos, valid_share=share)
        assert (*task.size.values(), task.shape.outputs) == want, name
    assert task_of(data / "banking77", shots=10).size["train"] == 770
