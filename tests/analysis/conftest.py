"""Facts of a heat map with made-up decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cerebra_jax.tasks.text import reading, tokenizer

TEXT = "The cat sat on the mat; it is 12 years old. Der Hügel, naïve 😀 — <unk> and don't!\n"


class Coarse:
    """Seven bytes a token, whatever they are: whole tags, and characters cut in two."""

    bos = -1

    def encode_each(self, texts: list[str]) -> list[np.ndarray]:
        self.data = texts[0].encode()
        return [np.arange(-(-len(self.data) // 7))]

    def pieces(self, ids: list[int]) -> list[bytes]:
        return [b"" if i == self.bos else self.data[7 * i : 7 * i + 7] for i in ids]


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Any]:
    """Bytes, long pieces, and a small BPE that splits most characters outside of ASCII."""
    return {
        "coarse": Coarse(),
        "bytes": tokenizer.Bytes(),
        "bpe": tokenizer.Bpe(tokenizer.train_bpe([TEXT.encode() * 20], 300), "bpe"),
    }


@pytest.fixture(scope="session")
def facts() -> Callable[..., dict[str, Any]]:
    """facts(text, tokenizer, layers=…): what the command knows of a text; half of it is kept."""

    def make(text: str, tok: Any, layers: int = 3, seed: int = 0) -> dict[str, Any]:
        ids = [tok.bos, *map(int, tok.encode_each([text])[0])]
        rng = np.random.RandomState(seed)
        score_RxT = rng.standard_normal((layers, len(ids)))
        kept_RxT = rng.randint(0, 2, (layers, len(ids)))
        return {
            "run": "runs/x",
            "steps": 40,
            "model": "chiar",
            "route": "threshold",
            "paths": ["attention", "filter", "RBF mixer"],
            "text": text,
            "L": 64,
            "layers": list(range(1, layers + 1)),
            "ids": ids,
            "spans": reading.spans_of(text, tok.pieces(ids)),
            "kept": kept_RxT.tolist(),
            "mixed": (rng.randint(0, 2, (layers, len(ids))) * (1 - kept_RxT)).tolist(),
            "scores": [[float(f"{s:.4g}") for s in row] for row in score_RxT],
            "flops": [123_456] * len(ids),
            "dense_flops": 200_000 * len(ids),
            "program_flops": 10**9,
            "program_dense_flops": 2 * 10**9,
            "unseen": 0,
            "notes": [],
        }

    return make
