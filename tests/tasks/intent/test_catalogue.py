"""Data sets of tensorflow-datasets: prepared once, without TensorFlow, in their official splits."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile

import pytest
import tensorflow_datasets as tfds
from etils import epath

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import registry
from cerebra_jax.tasks.examples import cut
from cerebra_jax.tasks.intent import read

MADE = []  # which data sets were prepared


class TinyReviews(tfds.core.GeneratorBasedBuilder):
    """Reviews in two splits and one without labels, as imdb_reviews has them."""

    VERSION = tfds.core.Version("1.0.0")
    SIZES = {"train": 30, "test": 12, "unsupervised": 4}
    HIDDEN = "unsupervised"
    MORE = {}

    def _info(self):
        label = tfds.features.ClassLabel(names=["neg", "pos"])
        features = {"text": tfds.features.Text(), "label": label} | self.MORE
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        MADE.append(self.name)
        return {split: self._generate_examples(split, n) for split, n in self.SIZES.items()}

    def _generate_examples(self, split, n):
        for i in range(n):
            label = -1 if split == self.HIDDEN else ("neg", "pos")[i % 2]
            yield (
                i,
                {"text": f"né {split} {i}", "label": label} | {name: "other" for name in self.MORE},
            )


class TinyGlue(TinyReviews):
    """The test's labels are not given away, and there are two texts."""

    SIZES = {"train": 10, "validation": 6, "test": 5}
    HIDDEN = "test"
    MORE = {"second": tfds.features.Text()}


class TinyPair(TinyReviews):
    """One split, and no text that is called text."""

    SIZES = {"train": 20}
    MORE = {"other": tfds.features.Text(), "second": tfds.features.Text()}

    def _info(self):
        names = {"premise": tfds.features.Text(), "second": tfds.features.Text()}
        features = {**names, "label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _generate_examples(self, split, n):
        for i in range(n):
            yield i, {"premise": f"p {i}", "second": f"s {i}", "label": i % 2}


class TinyBroken(TinyReviews):
    """Cannot be made."""

    def _split_generators(self, dl_manager):
        raise ImportError("apache_beam is missing\nand more")


class TinyArchive(TinyReviews):
    """Reviews as files of an archive, read in it and unpacked."""

    def _split_generators(self, dl_manager):
        path = epath.Path(self.data_dir).parent.parent.parent / "reviews.tar.gz"
        unpacked = dl_manager.extract(path)
        files = {
            "train": dl_manager.iter_archive(path),
            "test": ((f.name, io.BytesIO(f.read_bytes())) for f in unpacked.iterdir()),
        }
        return {split: self._generate_examples(split, found) for split, found in files.items()}

    def _generate_examples(self, split, found):
        for name, file in found:
            yield name, {"text": file.read(), "label": name.partition("-")[0]}


def find(name: str, folder, said=None, **more):
    task = config.TaskCfg(name="intent", tfds=name, cache_dir=str(folder), **more)
    return read.find(config.RunCfg(task=task), (said if said is not None else []).append)


def test_a_data_set_by_name_has_its_own_splits_and_validation_from_train(tmp_path, capfd):
    said = []
    found = find("tiny_reviews", tmp_path, said)

    def row(split, i):
        return f"né {split} {i}", ("neg", "pos")[i % 2]

    parts = cut(30, 0.1, 0.0)
    assert found.rows == {
        "train": [row("train", i) for i in parts["train"]],
        "valid": [row("train", i) for i in parts["valid"]],
        "test": [row("test", i) for i in range(12)],
    }
    assert len(said) == 1 and "preparing tiny_reviews" in said[0] and found.notice == ""
    before = MADE.count("tiny_reviews")
    assert find("tiny_reviews:1.0.0", tmp_path, said).rows == found.rows
    assert len(said) == 1 and MADE.count("tiny_reviews") == before  # prepared once
    assert capfd.readouterr() == ("", "")


def test_a_test_without_labels_is_replaced_by_validation_and_that_is_said(tmp_path):
    found = find("tiny_glue", tmp_path)
    assert [len(found.rows[s]) for s in ("train", "valid", "test")] == [9, 1, 6]
    assert (
        found.rows["test"][0] == ("né validation 0", "neg")
        and "validation split is the test" in found.notice
    )


def test_features_are_named_where_they_are_not_clear(tmp_path):
    with pytest.raises(
        UserError, match=r"2 features may be the text.*task.columns=premise\|second"
    ):
        find("tiny_pair", tmp_path)
    found = find("tiny_pair", tmp_path, columns=("second",))
    parts = cut(20, 0.1, 0.1)
    assert {s: [text for text, _ in rows] for s, rows in found.rows.items()} == {
        s: [f"s {i}" for i in rows] for s, rows in parts.items()
    }
    assert {label for rows in found.rows.values() for _, label in rows} == {"0", "1"}
    with pytest.raises(
        UserError,
        match="task.target is 'premise', which is no label of tiny_pair; choose one of label",
    ):
        find("tiny_pair", tmp_path, columns=("second",), target="premise")


def test_bytes_are_cut_at_the_length_and_the_notice_says_how_much(tmp_path):
    def task_of(L):
        task = {
            "name": "intent",
            "tfds": "tiny_reviews",
            "cache_dir": str(tmp_path),
            "tokenizer": "bytes",
            "seq_len": L,
        }
        net = {"name": "transformer", "causal": False}
        return registry.build(config.parse({"task": task, "net": net}), lambda line: None)

    whole, short = task_of(40), task_of(12)
    assert (whole.dataset, whole.notice, whole.shape[:3]) == (
        "intent:tiny_reviews",
        "",
        (40, 258, 2),
    )
    # " né test 0" has 11 bytes, " né test 10" 12; the summary token takes one place of 12
    assert short.notice == "17% of the test texts are cut at 12 tokens, 1% of all tokens"
    text = short._splits["test"]["inputs_BxL"][11]
    assert text[0] == short._tok.bos and short._tok.decode(text) == " né test 1"


def test_what_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    for name, match in (
        ("tiny_reviewz", "no data set 'tiny_reviewz'.*did you mean tiny_reviews"),
        ("imdb_reviews/none", "task.tfds is imdb_reviews/none: BuilderConfig none not found"),
        ("tiny_reviews:9.9.9", "cannot be loaded at version 9.9.9"),
        ("imdb_reviews", r"cannot download imdb_reviews \(ai.stanford.edu: .*copy .*tfds here"),
        ("tiny_broken", r"cannot prepare tiny_broken \(apache_beam is missing\)"),
        ("mnist", "no feature is a text of mnist"),
    ):
        with pytest.raises(UserError, match=match) as e:
            find(name, tmp_path)
        assert "\n" not in str(e.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache_dir"):
        find("tiny_reviews", tmp_path / "file")
    for task in ({"name": "text"}, {"name": "intent", "path": "x.csv"}):
        with pytest.raises(UserError, match="task.tfds is set beside"):
            config.parse({"task": {"tfds": "imdb_reviews", **task}})


def test_archives_are_read_without_tensorflow(tmp_path):
    with tarfile.open(tmp_path / "reviews.tar.gz", "w:gz") as archive:
        for i in range(20):
            text = f"né {i:02d}".encode()
            member = tarfile.TarInfo(f"{('neg', 'pos')[i % 2]}-{i:02d}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    found = find("tiny_archive", tmp_path).rows
    want = [(f"né {i:02d}", ("neg", "pos")[i % 2]) for i in range(20)]
    assert sorted(found["test"]) == want and sorted(found["train"] + found["valid"]) == want


def test_tensorflow_is_not_loaded(tmp_path):
    code = (
        "import sys; from tests.tasks.intent import test_catalogue as t\n"
        f"t.find('tiny_reviews', {str(tmp_path)!r}); print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr
