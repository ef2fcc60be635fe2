"""A tensorflow-datasets builder for any text in three splits; needs no TensorFlow.

Records are blocks of whole lines, in the order of the text, in ArrayRecord files. Joined, they are
the text. This module imports tensorflow_datasets (a second): import it only where a text must be
prepared.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from cerebra_jax.tasks.task import SPLITS
from cerebra_jax.tasks.text.corpus import Source
from cerebra_jax.tasks.text.scan import blocks

# blocks, 64 MiB: tfds keeps the records of a split in memory before it writes them, so a large
# split has parts
PART = 1024


class Wikitext(tfds.core.GeneratorBasedBuilder):
    """WikiText-2, WikiText-103 or another text, from a `corpus.Source`; splits train, valid, test.

    A split of more than 64 MiB is stored as train_000, train_001, ...
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, source: Source, parts: dict[str, int], **kwargs):
        self._source, self._parts = source, parts
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        out = {}
        for split in SPLITS:
            # shared: each part goes on where the one before stopped
            numbered = enumerate(self._read(split))
            for name in part_names(split, self._parts[split]):
                out[name] = self._generate_examples(numbered)
        return out

    def _generate_examples(
        self, numbered: Iterator[tuple[int, str]]
    ) -> Iterator[tuple[int, dict[str, str]]]:
        for i, text in itertools.islice(numbered, PART):
            yield i, {"text": text}

    def _read(self, split: str) -> Iterator[str]:
        with self._source.open(split) as stream:
            for block in blocks(stream):
                yield block.decode()


def part_names(split: str, parts: int) -> list[str]:
    """Returns the tfds splits that hold one split of the text."""
    return [split] if parts == 1 else [f"{split}_{i:03d}" for i in range(parts)]


def write(source: Source, n_blocks: dict[str, int], folder: Path) -> Path:
    """Writes the records of a text below `folder`.

    Returns the folder of the tfds data set (for `read`).
    """
    parts = {split: -(-n // PART) for split, n in n_blocks.items()}
    with quiet():
        builder = Wikitext(source, parts, data_dir=folder)
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=config, download_dir=folder / "unused")
    return Path(builder.data_dir)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress bars, log lines and prints of tfds from the screen.

    tfds tells where it writes, several times.
    """
    tfds.disable_progress_bar()
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.setLevel(level)


def read(folder: Path, split: str) -> Iterator[bytes]:
    """Yields the records of a split, in the order of the text."""
    builder = tfds.builder_from_directory(os.fspath(folder))
    names = [name for name in builder.info.splits if re.fullmatch(rf"{split}(_\d+)?", name)]
    for name in sorted(names):
        source = builder.as_data_source(split=name)
        for i in range(len(source)):
            yield source[i]["text"]
