"""A text as blocks of whole lines: what it holds, and where it is no text.

A line ends at "\\n" and nowhere else.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from cerebra_jax.errors import UserError
from cerebra_jax.tasks.task import SPLITS

if TYPE_CHECKING:
    from cerebra_jax.tasks.text.corpus import Source

BLOCK = 1 << 16  # bytes of a record


class Count(NamedTuple):
    """What a split holds. A word is what stands between white space.

    Every line also counts one <eos>.
    """

    bytes: int
    lines: int
    words: int
    blocks: int
    sha256: str
    sha1: str


def blocks(stream: BinaryIO, size: int = BLOCK) -> Iterator[bytes]:
    """Yields whole lines, at most `size` bytes together.

    A longer line is cut between words where it has any.
    """
    rest = b""
    while data := stream.read(size - len(rest)):
        rest += data
        if len(rest) == size:
            cut = rest.rfind(b"\n") + 1 or _cut_in_line(rest)
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _cut_in_line(data: bytes) -> int:
    """Returns where to cut a line: before a space where no word is cut, else near the end.

    The space is the last single one between two printable ASCII characters.

    A tokenizer that splits at white space finds the same words on both sides of such a space as in
    the whole line. Near the end means: before the last character.
    """
    if spaces := re.findall(rb"(?s)^.*[!-~](?= [!-~])", data):
        return len(spaces[0])
    cut = len(data) - 1
    while cut > 0 and data[cut] & 0xC0 == 0x80:  # inside a UTF-8 character
        cut -= 1
    return cut or len(data)


def scan(source: Source) -> dict[str, Count]:
    """Returns the counts of all splits of a text, which is read once.

    UserError names file, line and column of what is not text, and a file that is empty or damaged.
    """
    return {split: _scan(source, split) for split in SPLITS}


def _scan(source: Source, split: str) -> Count:
    name = source.files[split]
    counter = _Counter(name)
    try:
        with source.open(split) as stream:
            for block in blocks(stream):
                counter.add(block)
    except (gzip.BadGzipFile, EOFError, zlib.error, zipfile.BadZipFile, KeyError) as err:
        hint = "it is damaged or not compressed: copy it again"
        raise UserError(f"{name} cannot be unpacked ({err})", hint) from None
    except OSError as err:
        what = f"{name} cannot be read: {err.strerror or err}"
        raise UserError(what, "check the file and its permissions") from None
    if not counter.words:
        wrong = "holds no words" if counter.size else "is empty"
        raise UserError(f"{name}:1 {wrong}", f"give text for {split}")
    return counter.count()


class _Counter:
    """Counts a text block by block, and knows the line and the column at which it stands."""

    def __init__(self, name: str):
        self._name = name  # of the file, for messages
        self.size = 0
        self.words = 0
        self._lines = 0
        self._blocks = 0
        self._sha256 = hashlib.sha256()
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._last = "\n"  # the last character of the block before
        self._column = 0  # bytes of the current line that the blocks before hold

    def add(self, block: bytes) -> None:
        """Counts the next block; raises UserError where it is not UTF-8 or holds a NUL byte."""
        text = self._decoded(block)

        # a word that a block border cuts was counted with the block before
        is_cut = not self._last.isspace() and not text[0].isspace()
        self.words += len(text.split()) - is_cut
        self._last = text[-1]

        # where the next block begins
        self._lines += block.count(b"\n")
        end_of_line = block.rfind(b"\n")
        column = 0 if end_of_line >= 0 else self._column
        self._column = column + len(block) - end_of_line - 1

        self.size += len(block)
        self._blocks += 1
        self._sha256.update(block)
        self._sha1.update(block)

    def count(self) -> Count:
        """Returns what was counted; a last line without an end is a line too."""
        lines = self._lines + (self._last != "\n")
        hashes = (self._sha256.hexdigest(), self._sha1.hexdigest())
        return Count(self.size, lines, self.words, self._blocks, *hashes)

    def _decoded(self, block: bytes) -> str:
        try:
            text = block.decode()
        except UnicodeDecodeError as err:
            where = self._place(block, err.start)
            hint = "convert it: iconv -f LATIN1 -t UTF-8 (or UTF-16, if it is)"
            what = f"{where} is not UTF-8 (byte 0x{block[err.start]:02x})"
            raise UserError(what, hint) from None
        nul = block.find(b"\0")
        if nul >= 0:
            hint = "it is no plain text file: give another, or remove the byte"
            raise UserError(f"{self._place(block, nul)} holds a NUL byte", hint)
        return text

    def _place(self, block: bytes, byte: int) -> str:
        """Returns FILE:LINE:COLUMN of a byte of the next block, both counted from 1."""
        line = self._lines + block.count(b"\n", 0, byte) + 1
        line_start = block.rfind(b"\n", 0, byte) + 1
        column = byte - line_start + 1
        if line_start == 0:
            column += self._column
        return f"{self._name}:{line}:{column}"
