"""Which token took which path in which layer, as one page: no script, no network, every character escaped.

The text has a view for each layer and one for all, chosen by radio buttons (arrow keys turn them as a slider), in CSS
alone; below it stands the matrix of layers and tokens. What colour says a letter or a line says too, and the colours
fall in lightness, so that the page reads in grey. The spans of the text, joined, are the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from cerebra_jax.analysis.pieces import JOINER, Piece, invisible, pieces, visible
from cerebra_jax.report import page

BAND = 48  # tokens side by side in the matrix
WORD = 12  # characters of a token above its column
START = "⟨start⟩"
MIXED = "R"  # of CHIAR's RBF mixer, the third path of some runs
# background and ink, lighter to darker: not kept with the lowest to the highest scores; kept; kept in few to all layers
LIGHT = (
    ("#f7fbff", "#222"),
    ("#e6eff8", "#222"),
    ("#d2e3f3", "#222"),
    ("#bcd5ec", "#222"),
    ("#a3c5e4", "#222"),
)
HEAVY = (
    ("#fdc98f", "#222"),
    ("#f6ae63", "#222"),
    ("#de7e22", "#111"),
    ("#b85a0b", "#fff"),
    ("#8f4000", "#fff"),
)
SHARE = (
    ("#fff", "#222"),
    ("#e6eff8", "#222"),
    ("#fdc98f", "#222"),
    ("#de7e22", "#111"),
    ("#8f4000", "#fff"),
)

_STYLE = """.t { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; font-size: 17px;
 line-height: 1.9; border: 1px solid #ddd; padding: .6em .8em; margin: .6em 0 1.5em; }
.t span::before { content: attr(data-v); color: #666; font-size: 75%; }
.t .w { border-left: 3px double #444; }
.t .n { color: #777; text-decoration: line-through; }
.b table { margin: 0 0 1em; table-layout: fixed; }
.b td, .b th { padding: 0; width: 1.35em; min-width: 1.35em; height: 1.35em; text-align: center;
 border: 1px solid #fff; }
.b th:first-child { width: 5.5em; min-width: 5.5em; text-align: left; font-weight: normal; }
.b .h th { vertical-align: bottom; font-weight: normal; border-bottom: 1px solid #999; }
.b .u { writing-mode: vertical-rl; white-space: pre; padding-top: .3em; }
.key span { padding: 0 .5em; }
"""


def html(found: dict[str, Any]) -> str:
    """The page of `facts`."""
    layers, kept_RxT = found["layers"], np.asarray(found["kept"], bool)
    cut = pieces(found["text"], found["spans"])
    title = (
        f"{found['model']}: which of {kept_RxT.shape[1]:,} tokens took the {found['paths'][0]} path"
    )
    parts = [
        page.head(title, _STYLE + "".join(_rules(layers))),
        "<ul>\n" + "".join(f"<li>{escape(line)}</li>\n" for line in summary(found)) + "</ul>\n",
        _key(found),
        *_views(layers),
        '<div class="t">',
        *_text(found, kept_RxT, cut),
        '</div>\n<div class="b wide">\n',
        *_matrix(found, kept_RxT, cut),
        "</div>\n</body>\n</html>\n",
    ]
    return "".join(parts)


def summary(found: dict[str, Any]) -> Iterator[str]:
    """What these decisions cost, and what the reader must know, line by line."""
    n, spent, dense = len(found["ids"]), sum(found["flops"]), found["dense_flops"]
    yield f"{found['run']}, {found['steps']:,} steps: {n:,} tokens in windows of {found['L']:,}"
    yield (
        f"decisions: {spent / n:,.0f} FLOPs a token, {spent / dense:.3f} of the dense Transformer's {dense / n:,.0f}, "
        "for these tokens, as they were decided"
    )
    program, whole = found["program_flops"], found["program_dense_flops"]
    yield (
        f"program: {program:,} FLOPs ran, counted with padding and capacities, {program / whole:.3f} of the dense "
        f"Transformer's {whole:,}"
    )
    shares = ", ".join(
        f"{i}: {np.mean(row):.2f}" for i, row in zip(found["layers"], found["kept"], strict=True)
    )
    yield f"share of the tokens that took the {found['paths'][0]} path, by layer: {shares}"
    yield from found["notes"]


def levels(score_RxT: np.ndarray) -> np.ndarray:
    """0 to 4, (R, T): in which fifth of its layer's scores each one stands; equal scores stand together."""
    R, T = score_RxT.shape
    below = [np.searchsorted(np.sort(row), row) for row in score_RxT]
    return (np.stack(below) * 5 // T).reshape(R, T)


def _rules(layers: Sequence[int]) -> Iterator[str]:
    for names, colours in (("abcde", LIGHT), ("ABCDE", HEAVY)):
        for name, (paper, ink) in zip(names, colours, strict=True):
            yield f".b .{name}, .key .{name} {{ background: {paper}; color: {ink}; }}\n"
    for i, (paper, ink) in enumerate(SHARE):
        line = " text-decoration: underline;" if i >= 3 else ""
        yield f"#m:checked ~ .t .m{i}, .key .m{i} {{ background: {paper}; color: {ink};{line} }}\n"
    for i in layers:
        yield f"#v{i}:checked ~ .t .l{i} {{ background: #f6ae63; text-decoration: underline; }}\n"
        yield f"#v{i}:checked ~ .t .s{i} {{ background: #fde3c6; text-decoration: underline dotted; }}\n"
        yield f"#v{i}:checked ~ .b .r{i} th {{ font-weight: bold; text-decoration: underline; }}\n"


def _key(found: dict[str, Any]) -> str:
    paths = found["paths"]
    shares = "".join(f'<span class="m{i}">{word}</span>' for i, word in
                     enumerate(("no layer", "few", "some", "most", "every layer")))  # fmt: skip
    heavy = "".join(f'<span class="{c}">{_letter(paths)}</span>' for c in "ABCDE")
    light = "".join(f'<span class="{c}">·</span>' for c in "abcde")
    mixed = f"{MIXED} {escape(paths[2])}, " if len(paths) > 2 else ""
    return (
        f'<p class="key">Text: {shares} took the {escape(paths[0])} path, or underlined: this layer did. Matrix: '
        f"{heavy} {escape(paths[0])}, {mixed}{light} {escape(paths[1])}; the darker, the higher the score in its "
        "layer.</p>\n"
    )


def _views(layers: Sequence[int]) -> Iterator[str]:
    yield '<input type="radio" name="v" id="m" checked><label for="m">all layers</label>\n'
    for i in layers:
        yield f'<input type="radio" name="v" id="v{i}"><label for="v{i}">layer {i}</label>\n'


def _letter(paths: Sequence[str]) -> str:
    return escape(paths[0][0].upper())


def _text(found: dict[str, Any], kept_RxT: np.ndarray, cut: list[Piece]) -> Iterator[str]:
    L, layers = found["L"], found["layers"]
    last = max(i for i, piece in enumerate(cut) if piece.tokens)
    for i, (text, tokens) in enumerate(cut):
        if not tokens:
            unseen = ' class="n"' if i > last and found["unseen"] else ""
            yield f"<span{unseen}>{_exact(text)}</span>"
            continue
        kept_RxN = kept_RxT[:, list(tokens)]
        share = kept_RxN.mean()
        names = [f"m{0 if share == 0 else min(4, 1 + int(3 * share))}"]
        rows = list(zip(layers, kept_RxN, strict=True))
        names += [f"l{layer}" for layer, row in rows if row.all()]
        names += [f"s{layer}" for layer, row in rows if row.any() and not row.all()]
        names += ["w"] if any(t and t % L == 0 for t in tokens) else []
        mark = START if not text else _mark(text)
        shown = f' data-v="{escape(mark)}"' if mark else ""
        told = escape("\n".join(_told(found, t) for t in tokens))
        yield f'<span class="{" ".join(names)}"{shown} title="{told}">{_exact(text)}</span>'


def _told(found: dict[str, Any], t: int) -> str:
    """A token in words: its number and id, its FLOPs, path and score in each layer."""
    heavy, light = found["paths"][0][0].upper(), found["paths"][1][0]
    rows = zip(found["layers"], found["kept"], found["mixed"], found["scores"], strict=True)
    lines = [
        f"{i} {heavy if kept[t] else MIXED if mixed[t] else light} {score[t]:.3g}"
        for i, kept, mixed, score in rows
    ]
    return f"token {t} · id {found['ids'][t]} · {found['flops'][t]:,.0f} FLOPs\n" + "\n".join(lines)


def _exact(text: str) -> str:
    """Escaped so that an HTML parser gives back the very characters: a bare CR would become a line feed."""
    return escape(text).replace("\r", "&#13;")


def _mark(text: str) -> str:
    """What stands for the characters of a piece that cannot be seen; "" where all can, or only join others."""
    unseen = [c for c in text if invisible(c)]
    alone = len(unseen) == len(text)
    return visible(
        "".join(c for c in unseen if c != "\t" and (alone or c < " " or "\x7f" <= c <= "\x9f"))
    )


def _matrix(found: dict[str, Any], kept_RxT: np.ndarray, cut: list[Piece]) -> Iterator[str]:
    names = np.array([*"abcdeABCDE"])[levels(np.asarray(found["scores"])) + 5 * kept_RxT]
    letters = np.where(
        kept_RxT, _letter(found["paths"]), np.where(np.asarray(found["mixed"], bool), MIXED, "")
    )
    for band in bands([p for p in cut if p.tokens], BAND):
        yield '<table>\n<tr class="h"><th>layer</th>'
        for text, tokens in band:
            across = f' colspan="{len(tokens)}"' if len(tokens) > 1 else ""
            word = visible(text, JOINER if len(text) > 1 else "") if text else START
            down = ' class="u"' if len(word) > 1 + len(tokens) else ""
            yield f"<th{across}><bdi{down}>{escape(_short(word))}</bdi></th>"
        yield "</tr>\n"
        numbers = [t for piece in band for t in piece.tokens]
        for r, i in enumerate(found["layers"]):
            cells = (f'<td class="{names[r, t]}">{letters[r, t]}</td>' for t in numbers)
            yield f'<tr class="r{i}"><th>layer {i}</th>{"".join(cells)}</tr>\n'
        yield "</table>\n"


def bands(cut: Sequence[Piece], width: int) -> Iterator[list[Piece]]:
    """The pieces in rows of at most `width` tokens; one with more is a row of its own."""
    band, n = [], 0
    for piece in cut:
        if band and n + len(piece.tokens) > width:
            yield band
            band, n = [], 0
        band.append(piece)
        n += len(piece.tokens)
    if band:
        yield band


def _short(text: str) -> str:
    return text if len(text) <= WORD else f"{text[: WORD - 1]}…"
