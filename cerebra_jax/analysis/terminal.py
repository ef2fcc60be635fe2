"""The heat map on a terminal: the text with what is kept in bold, and a row of marks for each layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.text import Text

from cerebra_jax.analysis.heatmap import START, bands, summary
from cerebra_jax.analysis.pieces import Piece, invisible, pieces, visible

KEPT, MIXED, LEFT, SAME, WIDE = "█", "▒", "·", "┄", "□"


def lines(found: dict[str, Any], width: int) -> Iterator[Text]:
    """What fits `width` columns. No character of the text reaches the terminal that could steer it."""
    kept_RxT = np.asarray(found["kept"], bool)
    cut = pieces(found["text"], found["spans"])
    for line in summary(found):
        yield Text(visible(line).replace("␣", " "))
    yield Text("")
    yield from _text(kept_RxT, cut)
    yield Text("")
    side = max(len(f"layer {i} ") for i in found["layers"])
    for band in bands([p for p in cut if p.tokens], max(8, width - side)):
        yield Text(" " * side + "".join(map(_heading, band)))
        numbers = [t for piece in band for t in piece.tokens]
        for i, kept_T, mixed_T in zip(found["layers"], kept_RxT, found["mixed"], strict=True):
            marks = (KEPT if kept_T[t] else MIXED if mixed_T[t] else LEFT for t in numbers)
            yield Text(f"layer {i} ".ljust(side) + "".join(marks))


def _text(kept_RxT: np.ndarray, cut: list[Piece]) -> Iterator[Text]:
    """Bold and underlined what at least half of the layers keep, dim what none does."""
    line = Text()
    for text, tokens in cut:
        share = kept_RxT[:, list(tokens)].mean() if tokens else 0.0
        style = "bold underline dark_orange" if share >= 0.5 else "" if share > 0 else "dim"
        for i, part in enumerate(text.split("\n")):
            if i:
                yield line
                line = Text()
            line.append("".join(visible(c) if invisible(c) else c for c in part), style)
    yield line


def _heading(piece: Piece) -> str:
    """One column a token: the first character of the piece that is no space, or a box where it is wide."""
    text = piece.text.strip(" ") or piece.text or START
    sign = visible(text[0])[0]
    return (sign if cell_len(sign) == 1 else WIDE) + SAME * (len(piece.tokens) - 1)
