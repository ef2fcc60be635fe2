"""Labelled texts of tensorflow-datasets, by name, without TensorFlow.

A data set is downloaded and prepared once, into ArrayRecord files below the cache. This module
imports tensorflow_datasets (a second): import it only where a data set is asked for by name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import urlsplit

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import extractor

from cerebra_jax.config import TaskCfg, suggest
from cerebra_jax.errors import DISK_ERRNOS, DiskError, UserError
from cerebra_jax.tasks import prepared
from cerebra_jax.tasks.intent.read import one_column
from cerebra_jax.tasks.task import Log
from cerebra_jax.tasks.text import download
from cerebra_jax.tasks.text.wikitext import quiet

# how long a server of the data may take to answer: the downloader itself gives up after minutes
ANSWER_S = 10.0
UNLABELLED = -1  # what a ClassLabel holds where the label is not published


def load(
    cfg: TaskCfg, splits: Sequence[str], texts: Sequence[str], log: Log
) -> dict[str, list[tuple[str, str]]]:
    """Returns {split: (text, label) pairs} of those splits that task.tfds has; raises UserError.

    The data set is downloaded where that was not done before.

    The text is the only feature of that type, the one named in `texts`, or task.columns; the label
    is the only ClassLabel, or task.target. Rows without a label are left out, and a split of
    nothing else.
    """
    # the data set
    name = cfg.tfds
    folder = prepared.cache_folder(cfg) / "tfds"
    builder = _builder(name, folder, log)

    # which of its features
    features = builder.info.features
    text = _Wanted("task.columns", one_column(cfg.columns), f"text of {name}", texts)
    label = _Wanted("task.target", cfg.target, f"label of {name}", ())
    text_name = _feature(text, _names_of(features, tfds.features.Text))
    label_name = _feature(label, _names_of(features, tfds.features.ClassLabel))

    # its rows
    if not builder.is_prepared():
        log(f"preparing {name} with tensorflow-datasets (once, kept in {folder})")
        _prepare(builder, name, folder)
    if not (Path(builder.data_dir) / prepared.SEAL).exists():  # new, or made by tfds itself
        with contextlib.suppress(PermissionError):
            prepared.seal(Path(builder.data_dir))
    found = {}
    for split in builder.info.splits:
        if split in splits:
            rows = _rows(builder, split, text_name, label_name)
            if rows:
                found[split] = rows
    return found


def _remove_damaged(folder: Path, log: Log) -> None:
    """Removes what was prepared of a data set and is not as it was written; says so."""
    for seal in sorted(folder.rglob(prepared.SEAL)):
        if what := prepared.damage(seal.parent):
            log(f"{seal.parent} cannot be used ({what}): it is prepared again")
            shutil.rmtree(seal.parent)


def _builder(name: str, folder: Path, log: Log) -> tfds.core.DatasetBuilder:
    """Returns what makes a data set.

    Raises UserError where there is none of this name, configuration or version.
    """
    known = tfds.list_builders(with_community_datasets=False)
    base = name.partition(":")[0].partition("/")[0]
    if base not in known:
        hint = suggest(base, known)
        if not hint.startswith("did you mean"):
            hint = "tensorflow.org/datasets/catalog lists them"
        what = f"tensorflow-datasets has no data set {base!r} that it can make itself"
        raise UserError(what, hint)
    _remove_damaged(folder / base, log)
    with quiet():
        try:
            builder = tfds.builder(name, data_dir=folder, file_format="array_record")
            builder.is_prepared()  # reads what is there
        # what it says of a wrong configuration or version
        except (ValueError, AssertionError) as e:
            what = f"task.tfds is {name}: {_first_line(e)}"
            raise UserError(what, f"use task.tfds={base}") from None
    return builder


def _names_of(features: tfds.features.FeatureConnector, kind: type) -> list[str]:
    """Returns the names of the features of a kind.

    Those of examples that are no mapping have none.
    """
    if not isinstance(features, tfds.features.FeaturesDict):
        return []
    return [name for name, feature in features.items() if isinstance(feature, kind)]


class _Wanted(NamedTuple):
    """A feature that is looked for."""

    key: str  # of the configuration, which may name it
    given: str  # its value; "": none
    what: str  # for messages
    usual: Sequence[str]  # names that it usually has


def _feature(wanted: _Wanted, found: list[str]) -> str:
    """Returns which of the features that were found is wanted.

    Raises UserError where that is not clear.
    """
    if wanted.given:
        if wanted.given not in found:
            what = f"{wanted.key} is {wanted.given!r}, which is no {wanted.what}"
            raise UserError(what, f"choose one of {', '.join(found) or 'none'}")
        return wanted.given
    if len(found) == 1:
        return found[0]
    for name in wanted.usual:
        if name in found:
            return name
    if not found:
        hint = "choose another task.tfds: it must have texts and class labels"
        raise UserError(f"no feature is a {wanted.what}", hint)
    hint = f"choose --config.{wanted.key}={'|'.join(found)}"
    raise UserError(f"{len(found)} features may be the {wanted.what}", hint)


def _prepare(builder: tfds.core.DatasetBuilder, name: str, folder: Path) -> None:
    """Downloads and writes a data set; UserError or DiskError where that fails."""
    elsewhere = f"run it where there is a network, and copy {folder} here"
    another = "choose another --config.task.cache_dir"

    # one pinned download of each server
    url_of_host = {urlsplit(url).hostname: url for url in builder.url_infos or ()}
    live, reasons = download.answering(list(url_of_host.values()), ANSWER_S)
    if url_of_host and not live:
        why = "; ".join(f"{urlsplit(url).hostname}: {reason}" for url, reason in reasons.items())
        raise UserError(f"cannot download {name} ({why})", elsewhere)

    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with quiet(), _local_files():
            builder.download_and_prepare(download_config=config)
    except OSError as e:
        if e.errno in DISK_ERRNOS:
            raise DiskError(f"cannot write {folder} ({e.strerror})", another) from e
        if isinstance(e, PermissionError | NotADirectoryError | FileExistsError):
            raise UserError(f"cannot use {folder} ({e.strerror})", another) from e
        raise UserError(f"cannot download {name} ({_first_line(e)})", elsewhere) from e
    # each builder has its own: a missing package, files to be fetched by hand, a wrong checksum
    except Exception as e:
        what = f"tensorflow-datasets cannot prepare {name} ({_first_line(e)})"
        raise UserError(what, "choose another task.tfds") from e


@contextlib.contextmanager
def _local_files() -> Iterator[None]:
    """Lets Python open the archives that tfds has downloaded.

    tfds does it through TensorFlow (its issue 11058).
    """
    files = SimpleNamespace(
        io=SimpleNamespace(gfile=SimpleNamespace(GFile=open)),
        compat=SimpleNamespace(as_text=os.fsdecode),
    )
    before = extractor.tf
    extractor.tf = files
    try:
        yield
    finally:
        extractor.tf = before


def _first_line(e: Exception) -> str:
    """Returns the first line of a message of the library, without the arguments it repeats."""
    lines = str(e).rpartition('}": ')[2].strip().splitlines()
    return lines[0][:200] if lines else type(e).__name__


def _rows(
    builder: tfds.core.DatasetBuilder, split: str, text: str, label: str
) -> list[tuple[str, str]]:
    """Returns the (text, label) pairs of a split that have a label."""
    source = builder.as_data_source(split=split)
    classes = builder.info.features[label]
    rows = []
    for i in range(len(source)):
        example = source[i]
        if example[label] != UNLABELLED:
            rows.append((example[text].decode(), classes.int2str(example[label])))
    return rows
