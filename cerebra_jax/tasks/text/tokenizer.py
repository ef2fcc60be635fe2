"""Tokenizers: bytes, byte-level BPE trained on the text, GPT-2's from its files.

All give any text back exactly.

A line is tokenised on its own, its "\\n" included: a block of whole lines gives the same tokens
alone and in the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cerebra_jax import documents
from cerebra_jax.config import TaskCfg
from cerebra_jax.documents import FLAG, TEXT
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.task import PREPROCESSING

# WikiText's mark for a rare word: one token, with its space as every word has in a byte-level BPE
UNK = " <unk>"
BPE_BYTES = 64 << 20  # a BPE is trained on blocks spread evenly over the text, this much at most
BPE_BYTES_OFFLINE = 3 << 20  # the offline corpus must be ready in seconds

_GPT2_FILES = ("vocab.json", "merges.txt")


class Bytes:
    """One token per UTF-8 byte; 256 stands before the first."""

    name = "bytes"
    vocab_size = 257
    bos = 256
    sha256 = ""
    json = ""

    def encode_blocks(self, blocks: Sequence[bytes]) -> np.ndarray:
        """Returns the tokens of consecutive blocks of whole lines, joined."""
        return np.frombuffer(b"".join(blocks), np.uint8)

    def encode_each(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the tokens of each text."""
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """Returns the bytes that each token stands for; none for bos."""
        return [b"" if i == self.bos else bytes([i]) for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of tokens; what is no UTF-8 becomes U+FFFD."""
        return bytes(i for i in ids if i != self.bos).decode(errors="replace")


class Bpe:
    """A byte-level BPE in the JSON of the `tokenizers` library; loaded when it is first used."""

    def __init__(self, text: str, name: str):
        self.name = name
        self.json = text
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self._tok = None
        vocab = json.loads(text)["model"]["vocab"]
        # <|endoftext|> is GPT-2's own; a BPE of ours gets one more token, which no text can contain
        self.bos = vocab.get("<|endoftext|>", len(vocab)) if name == "gpt2" else len(vocab)
        self.vocab_size = max(len(vocab), self.bos + 1)

    @property
    def _lib(self) -> Any:
        if self._tok is None:
            from tokenizers import Tokenizer

            self._tok = Tokenizer.from_str(self.json)
        return self._tok

    def encode_blocks(self, blocks: Sequence[bytes]) -> np.ndarray:
        """Returns the tokens of consecutive blocks of whole lines, joined."""
        return np.concatenate(self.encode_each([block.decode() for block in blocks]))

    def encode_each(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the tokens of each text."""
        found = self._lib.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int64) for encoding in found]

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """Returns the bytes that each token stands for; none for bos."""
        return [self._piece(int(i)) for i in ids]

    def _piece(self, i: int) -> bytes:
        if i == self.bos:
            return b""
        word = self._lib.id_to_token(i)
        return UNK.encode() if word == UNK else bytes(_BYTE[sign] for sign in word)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of tokens; bos gives nothing."""
        return self._lib.decode([int(i) for i in ids if i != self.bos], skip_special_tokens=False)


def _bytes_by_sign() -> dict[str, int]:
    """Returns the byte of each sign of a byte-level vocabulary.

    A byte that can be printed is its own sign; the others have the signs from 256 on.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


_BYTE = _bytes_by_sign()


def _by_line() -> Any:
    """Returns what splits a text at its lines, then as GPT-2 does.

    That is into contractions, words, numbers, signs and white space.
    """
    from tokenizers import pre_tokenizers

    lines = pre_tokenizers.Split("\n", "merged_with_previous")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence([lines, words])


def train_bpe(blocks: Iterable[bytes], vocab_size: int) -> str:
    """Returns the JSON of a byte-level BPE of at most vocab_size tokens, bos included.

    Sennrich et al. 2016, arXiv:1508.07909.
    """
    from tokenizers import Tokenizer, decoders, models, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = _by_line()
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # and bos
        special_tokens=[UNK],
        initial_alphabet=sorted(_alphabet()),  # all 256 bytes, so that no text is unknown
        show_progress=False,
    )
    # the trainer does not know its own special token: without this it would learn merges inside
    # <unk>
    texts = (block.decode().replace(UNK, "") for block in blocks)
    tok.train_from_iterator(texts, trainer)
    return tok.to_str()


def gpt2(folder: Path) -> str:
    """Returns the JSON of GPT-2's tokenizer from its two files.

    Raises UserError where they are not GPT-2's.

    Lines are split as in a BPE of ours, unlike in OpenAI's code.
    """
    from tokenizers import Tokenizer, decoders, models

    # the files
    vocab, merges = (folder / name for name in _GPT2_FILES)
    for path in (vocab, merges):
        if not path.is_file():
            hint = "put GPT-2's vocab.json and merges.txt into task.gpt2_dir"
            raise UserError(f"{path} does not exist", hint)
    try:
        ids = json.loads(vocab.read_text(encoding="utf-8"))
        tok = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as err:  # the library raises plain Exception
        hint = "copy vocab.json and merges.txt again"
        raise UserError(f"{folder} holds no GPT-2 tokenizer ({err})", hint) from None

    # their content
    hint = "it is not GPT-2's file"
    missing = (_alphabet() | {"<|endoftext|>"}) - set(ids)
    if missing:
        raise UserError(f"{vocab}:1 lacks {len(missing)} tokens such as {min(missing)!r}", hint)
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"{vocab}:1 does not number its tokens from 0", hint)

    tok.pre_tokenizer = _by_line()
    tok.decoder = decoders.ByteLevel()
    return tok.to_str()


def _alphabet() -> set[str]:
    from tokenizers import pre_tokenizers

    return set(pre_tokenizers.ByteLevel.alphabet())


def settings(cfg: TaskCfg, offline: bool) -> dict[str, Any]:
    """Returns what decides the tokens of a given text.

    It is part of the name under which they are kept.
    """
    if cfg.tokenizer == "bytes":
        return {"name": "bytes"}
    if cfg.tokenizer_from:
        text = of_run(cfg)["json"]
        return {"name": cfg.tokenizer, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    if cfg.tokenizer == "bpe":
        size = BPE_BYTES_OFFLINE if offline else BPE_BYTES
        return {"name": "bpe", "vocab_size": cfg.vocab_size, "bytes": size}

    folder = Path(cfg.gpt2_dir).expanduser()
    digest = hashlib.sha256()
    for name in _GPT2_FILES:
        if not (folder / name).is_file():
            hint = "put GPT-2's two files into task.gpt2_dir"
            raise UserError(f"{folder / name} does not exist", hint)
        digest.update((folder / name).read_bytes())
    return {"name": "gpt2", "sha256": digest.hexdigest()}


def of_run(cfg: TaskCfg) -> dict[str, Any]:
    """Returns the tokenizer that the run in cfg.tokenizer_from learnt: its name and its JSON.

    UserError where there is none, or one of another kind than cfg.tokenizer.
    """
    path = Path(cfg.tokenizer_from).expanduser() / PREPROCESSING
    shape = {"learnt": {"tokenizer": {"name": TEXT, "json": TEXT}, "before?": FLAG}}
    try:
        found = documents.read(path, shape)["learnt"]
    except UserError as error:
        what = f"task.tokenizer_from: {path} holds no tokenizer ({error.what})"
        raise UserError(what, "name the folder of a run of task.name=text or intent") from None
    name = found["tokenizer"]["name"]
    if name != cfg.tokenizer:
        what = f"task.tokenizer is {cfg.tokenizer}, that of {cfg.tokenizer_from} is {name}"
        raise UserError(what, f"use --config.task.tokenizer={name}")
    return found["tokenizer"] | {"before": found.get("before", False)}


def load(folder: Path, name: str) -> Bytes | Bpe:
    """Returns the tokenizer that belongs to the prepared tokens of a folder."""
    has_none = name == "bytes"
    return named(name, "" if has_none else (folder / "tokenizer.json").read_text(encoding="utf-8"))


def named(name: str, text: str) -> Bytes | Bpe:
    """Returns the tokenizer of this name and JSON."""
    return Bytes() if name == "bytes" else Bpe(text, name)
