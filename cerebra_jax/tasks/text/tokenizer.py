"""Tokenizers: bytes, byte-level BPE trained on the text, GPT-2's from its files. All give any text back exactly.

A line is tokenised on its own, its "\\n" included: a block of whole lines gives the same tokens alone and in the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cerebra_jax.config import TaskCfg
from cerebra_jax.errors import UserError

UNK = " <unk>"  # WikiText's mark for a rare word: one token, with its space as every word has in a byte-level BPE
BPE_BYTES = 64 << 20  # a BPE is trained on blocks spread evenly over the text, this much at most
BPE_BYTES_OFFLINE = 3 << 20  # the offline corpus must be ready in seconds


class Bytes:
    """One token per UTF-8 byte; 256 stands before the first."""

    name, vocab_size, bos, sha256, json = "bytes", 257, 256, "", ""

    def encode_blocks(self, blocks: Sequence[bytes]) -> np.ndarray:
        """The tokens of consecutive blocks of whole lines, joined."""
        return np.frombuffer(b"".join(blocks), np.uint8)

    def encode_each(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text."""
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes that each token stands for; none for bos."""
        return [b"" if i == self.bos else bytes([i]) for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i != self.bos).decode(errors="replace")


class Bpe:
    """A byte-level BPE in the JSON of the `tokenizers` library; loaded when it is first used."""

    def __init__(self, text: str, name: str):
        self.name, self.sha256, self.json, self._tok = (
            name,
            hashlib.sha256(text.encode()).hexdigest(),
            text,
            None,
        )
        vocab = json.loads(text)["model"]["vocab"]
        # <|endoftext|> is GPT-2's own; a BPE of ours gets one more token, which no text can contain
        self.bos = vocab.get("<|endoftext|>", len(vocab)) if name == "gpt2" else len(vocab)
        self.vocab_size = max(len(vocab), self.bos + 1)

    @property
    def _lib(self):
        if self._tok is None:
            from tokenizers import Tokenizer

            self._tok = Tokenizer.from_str(self.json)
        return self._tok

    def encode_blocks(self, blocks: Sequence[bytes]) -> np.ndarray:
        """The tokens of consecutive blocks of whole lines, joined."""
        return np.concatenate(self.encode_each([b.decode() for b in blocks]))

    def encode_each(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text."""
        found = self._lib.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, np.int64) for e in found]

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes that each token stands for; none for bos."""
        words = ["" if i == self.bos else self._lib.id_to_token(int(i)) for i in ids]
        return [
            UNK.encode() if word == UNK else bytes(map(_BYTE.__getitem__, word)) for word in words
        ]

    def decode(self, ids: Iterable[int]) -> str:
        return self._lib.decode([int(i) for i in ids if i != self.bos], skip_special_tokens=False)


def _bytes_by_sign() -> dict[str, int]:
    """The sign of a byte-level vocabulary -> its byte: itself where it can be printed, else from 256 on (GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = (b for b in range(256) if b not in plain)
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


_BYTE = _bytes_by_sign()


def _by_line():
    """Splits before every line, then as GPT-2 does (contractions, words, numbers, signs, white space)."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "merged_with_previous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def train_bpe(blocks: Iterable[bytes], vocab_size: int) -> str:
    """JSON of a byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909) of at most vocab_size tokens, bos included."""
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
    # the trainer does not know its own special token: without this it would learn merges inside <unk>
    tok.train_from_iterator((b.decode().replace(UNK, "") for b in blocks), trainer)
    return tok.to_str()


def gpt2(folder: Path) -> str:
    """JSON of GPT-2's tokenizer from vocab.json and merges.txt. Lines are split as above, unlike in OpenAI's code."""
    from tokenizers import Tokenizer, decoders, models

    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    for path in (vocab, merges):
        if not path.is_file():
            raise UserError(
                f"{path} does not exist", "put GPT-2's vocab.json and merges.txt into task.gpt2_dir"
            )
    try:
        ids = json.loads(vocab.read_text(encoding="utf-8"))
        tok = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as err:  # the library raises plain Exception
        raise UserError(
            f"{folder} holds no GPT-2 tokenizer ({err})", "copy vocab.json and merges.txt again"
        ) from None
    missing = (_alphabet() | {"<|endoftext|>"}) - set(ids)
    if missing:
        raise UserError(
            f"{vocab}:1 lacks {len(missing)} tokens such as {min(missing)!r}",
            "it is not GPT-2's file",
        )
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"{vocab}:1 does not number its tokens from 0", "it is not GPT-2's file")
    tok.pre_tokenizer = _by_line()
    tok.decoder = decoders.ByteLevel()
    return tok.to_str()


def _alphabet() -> set[str]:
    from tokenizers import pre_tokenizers

    return set(pre_tokenizers.ByteLevel.alphabet())


def settings(cfg: TaskCfg, offline: bool) -> dict:
    """What decides the tokens of a given text; part of the name under which they are kept."""
    if cfg.tokenizer == "bytes":
        return {"name": "bytes"}
    if cfg.tokenizer == "bpe":
        return {
            "name": "bpe",
            "vocab_size": cfg.vocab_size,
            "bytes": BPE_BYTES_OFFLINE if offline else BPE_BYTES,
        }
    folder, digest = Path(cfg.gpt2_dir).expanduser(), hashlib.sha256()
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} does not exist", "put GPT-2's two files into task.gpt2_dir"
            )
        digest.update((folder / name).read_bytes())
    return {"name": "gpt2", "sha256": digest.hexdigest()}


def load(folder: Path, name: str) -> Bytes | Bpe:
    """The tokenizer that belongs to the prepared tokens of a folder."""
    return (
        Bytes()
        if name == "bytes"
        else Bpe((folder / "tokenizer.json").read_text(encoding="utf-8"), name)
    )
