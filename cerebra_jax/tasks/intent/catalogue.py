"""Labelled texts of tensorflow-datasets, by name, without TensorFlow.

A data set is downloaded and prepared once, into ArrayRecord files below the cache.
This module imports tensorflow_datasets (a second): import it only where a data set is asked for by name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from urllib.parse import urlsplit

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import extractor

from cerebra_jax.config import TaskCfg, suggest
from cerebra_jax.errors import DISK_ERRNOS, DiskError, UserError
from cerebra_jax.tasks.text import download
from cerebra_jax.tasks.text.prepare import cache_folder
from cerebra_jax.tasks.text.wikitext import silenced

ANSWER_S = 10.0  # how long a server of the data may take to answer: the downloader itself gives up after minutes
UNLABELLED = -1  # what a ClassLabel holds where the label is not given away


def load(
    cfg: TaskCfg, splits: Sequence[str], texts: Sequence[str], say: Callable[[str], None]
) -> dict[str, list[tuple[str, str]]]:
    """{split: (text, label) pairs} of those splits that task.tfds has, downloaded where it must be; UserError.

    The text is the only feature of that type, the one named in `texts`, or task.columns; the label is the only
    ClassLabel, or task.target. Rows without a label are left out, and a split of nothing else.
    """
    name = cfg.tfds
    known = tfds.list_builders(with_community_datasets=False)
    if (base := name.partition(":")[0].partition("/")[0]) not in known:
        near = suggest(base, known)
        mend = near if near.startswith("did") else "tensorflow.org/datasets/catalog lists them"
        raise UserError(
            f"tensorflow-datasets has no data set {base!r} that it can make itself", mend
        )
    folder = cache_folder(cfg) / "tfds"
    with silenced():
        try:
            builder = tfds.builder(name, data_dir=folder, file_format="array_record")
            ready = builder.is_prepared()
        except (
            ValueError,
            AssertionError,
        ) as e:  # what it says of a wrong configuration or version
            raise UserError(f"task.tfds is {name}: {_said(e)}", f"use task.tfds={base}") from None
    features = builder.info.features
    text = _feature(
        ",".join(cfg.columns), "task.columns", _of(features, tfds.features.Text), texts, f"text of {name}"
    )
    label = _feature(
        cfg.target, "task.target", _of(features, tfds.features.ClassLabel), (), f"label of {name}"
    )
    if not ready:
        say(f"preparing {name} with tensorflow-datasets (once, kept in {folder})")
        _prepare(builder, name, folder)
    found = {
        split: _rows(builder, split, text, label)
        for split in builder.info.splits
        if split in splits
    }
    return {split: rows for split, rows in found.items() if rows}


def _of(features, kind: type) -> list[str]:
    """The names of the features of a kind; those of examples that are no mapping have none."""
    return (
        [k for k, f in features.items() if isinstance(f, kind)]
        if isinstance(features, tfds.features.FeaturesDict)
        else []
    )


def _feature(given: str, key: str, found: list[str], usual: Iterable[str], what: str) -> str:
    if given:
        if given not in found:
            raise UserError(
                f"{key} is {given!r}, which is no {what}",
                f"choose one of {', '.join(found) or 'none'}",
            )
        return given
    if len(found) == 1:
        return found[0]
    for name in usual:
        if name in found:
            return name
    if not found:
        raise UserError(
            f"no feature is a {what}",
            "choose another task.tfds: it must have texts and class labels",
        )
    raise UserError(
        f"{len(found)} features may be the {what}", f"choose --config.{key}={'|'.join(found)}"
    )


def _prepare(builder, name: str, folder) -> None:
    """Downloads and writes a data set; UserError or DiskError where that fails."""
    hosts = {
        urlsplit(url).hostname: url for url in builder.url_infos or ()
    }  # one pinned download of each server
    live, why = download.answering(list(hosts.values()), ANSWER_S)
    if hosts and not live:
        reasons = "; ".join(f"{urlsplit(url).hostname}: {said}" for url, said in why.items())
        raise UserError(f"cannot download {name} ({reasons})", _ELSEWHERE.format(folder=folder))
    try:
        with silenced(), _local_files():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    except OSError as e:
        mend = "choose another --config.task.cache_dir"
        if e.errno in DISK_ERRNOS:
            raise DiskError(f"cannot write {folder} ({e.strerror})", mend) from e
        if isinstance(e, PermissionError | NotADirectoryError | FileExistsError):
            raise UserError(f"cannot use {folder} ({e.strerror})", mend) from e
        raise UserError(
            f"cannot download {name} ({_said(e)})", _ELSEWHERE.format(folder=folder)
        ) from e
    except Exception as e:  # each builder has its own: a missing package, files to be fetched by hand, a wrong checksum
        raise UserError(
            f"tensorflow-datasets cannot prepare {name} ({_said(e)})", "choose another task.tfds"
        ) from e


_ELSEWHERE = "run it where there is a network, and copy {folder} here"


@contextlib.contextmanager
def _local_files() -> Iterator[None]:
    """tfds opens the archives it has downloaded through TensorFlow (its issue 11058); Python can open them too."""
    files = SimpleNamespace(io=SimpleNamespace(gfile=SimpleNamespace(GFile=open)),
                            compat=SimpleNamespace(as_text=os.fsdecode))  # fmt: skip
    before, extractor.tf = extractor.tf, files
    try:
        yield
    finally:
        extractor.tf = before


def _said(e: Exception) -> str:
    """The first line of a message of the library, without the arguments it repeats."""
    lines = str(e).rpartition('}": ')[2].strip().splitlines()
    return lines[0][:200] if lines else type(e).__name__


def _rows(builder, split: str, text: str, label: str) -> list[tuple[str, str]]:
    source, classes = builder.as_data_source(split=split), builder.info.features[label]
    examples = (source[i] for i in range(len(source)))
    return [
        (x[text].decode(), classes.int2str(x[label])) for x in examples if x[label] != UNLABELLED
    ]
