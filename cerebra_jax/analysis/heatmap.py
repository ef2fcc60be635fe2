"""Shows which token took which path in which layer, as one page and on a terminal.

The page has no script, needs no network, and escapes every character. Its text has a view for each
layer and one for all, chosen by radio buttons (arrow keys turn them as a slider), in CSS alone;
below it stands the matrix of layers and tokens. What colour says a letter or a line says too, and
the colours fall in lightness, so that the page reads in grey. The spans of the text, joined, are
the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple, TypedDict

import numpy as np
from rich.cells import cell_len
from rich.text import Text

from cerebra_jax.analysis.pieces import JOINER, Piece, invisible, pieces, visible
from cerebra_jax.report import page


class Facts(TypedDict):
    """What is shown, as JSON holds it; R routed layers and T tokens."""

    run: str
    steps: int
    model: str
    route: str  # net.route.mode
    paths: Sequence[str]  # of the heavy path, the light one, and CHIAR's third where there is one
    text: str
    L: int  # tokens of a window
    layers: list[int]  # the routed ones
    ids: list[int]
    spans: Sequence[Sequence[int]]  # [start, end) of each token in the text
    kept: list[list[int]]  # (R, T), 1: took the heavy path
    mixed: list[list[int]]  # (R, T), 1: took the third one
    scores: list[list[float]]  # (R, T)
    flops: list[int]  # of each token, by the decisions taken
    dense_flops: int  # of the dense Transformer, for all tokens
    program_flops: int  # what the program ran
    program_dense_flops: int
    unseen: int  # characters at the end that no window holds
    notes: list[str]


class Colour(NamedTuple):
    paper: str
    ink: str


BAND = 48  # tokens side by side in the matrix
WORD = 12  # characters of a token above its column
START = "⟨start⟩"
MIXED = "R"  # of CHIAR's RBF mixer, the third path of some runs

# colours of the matrix from the lowest to the highest scores, of tokens on the light and heavy path
LIGHT = (
    Colour("#f7fbff", "#222"),
    Colour("#e6eff8", "#222"),
    Colour("#d2e3f3", "#222"),
    Colour("#bcd5ec", "#222"),
    Colour("#a3c5e4", "#222"),
)
HEAVY = (
    Colour("#fdc98f", "#222"),
    Colour("#f6ae63", "#222"),
    Colour("#de7e22", "#111"),
    Colour("#b85a0b", "#fff"),
    Colour("#8f4000", "#fff"),
)
# colours of the text: in no layer, few, some, most, or all of them on the heavy path
SHARE = (
    Colour("#fff", "#222"),
    Colour("#e6eff8", "#222"),
    Colour("#fdc98f", "#222"),
    Colour("#de7e22", "#111"),
    Colour("#8f4000", "#fff"),
)
SHARE_WORDS = ("no layer", "few", "some", "most", "every layer")
LIGHT_NAMES = "abcde"  # CSS classes of LIGHT and HEAVY
HEAVY_NAMES = "ABCDE"

_STYLE = """\
.t { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; font-size: 17px;
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

# signs on a terminal
KEPT = "█"  # took the heavy path
THIRD = "▒"  # took the third one
LEFT = "·"  # took the light one
SAME = "┄"  # a later token of the same character
WIDE = "□"  # a character that is more than a column wide


def html(found: Facts) -> str:
    """Writes the page."""
    layers = found["layers"]
    kept_RxT = np.asarray(found["kept"], bool)
    cut = pieces(found["text"], found["spans"])
    heavy = found["paths"][0]
    title = f"{found['model']}: which of {kept_RxT.shape[1]:,} tokens took the {heavy} path"
    lines = "".join(f"<li>{escape(line)}</li>\n" for line in summary(found))
    parts = [
        page.head(title, _STYLE + "".join(_rules(layers))),
        f"<ul>\n{lines}</ul>\n",
        _key(found["paths"]),
        *_views(layers),
        '<div class="t">',
        *_text(found, kept_RxT, cut),
        '</div>\n<div class="b wide">\n',
        *_matrix(found, kept_RxT, cut),
        "</div>\n</body>\n</html>\n",
    ]
    return "".join(parts)


def lines(found: Facts, width: int) -> Iterator[Text]:
    """Writes for a terminal of `width` columns: the summary, the text, and a row of marks a layer.

    No character of the text reaches the terminal that could steer it.
    """
    kept_RxT = np.asarray(found["kept"], bool)
    cut = pieces(found["text"], found["spans"])
    for line in summary(found):
        yield Text(visible(line).replace("␣", " "))
    yield Text("")
    yield from _styled_text(kept_RxT, cut)
    yield Text("")
    side = max(len(f"layer {i} ") for i in found["layers"])
    for band in bands(_with_tokens(cut), max(8, width - side)):
        yield Text(" " * side + "".join(map(_heading, band)))
        tokens = [t for piece in band for t in piece.tokens]
        for i, kept_T, mixed_T in zip(found["layers"], kept_RxT, found["mixed"], strict=True):
            marks = (_choose(kept_T[t], mixed_T[t], (KEPT, THIRD, LEFT)) for t in tokens)
            yield Text(f"layer {i} ".ljust(side) + "".join(marks))


def summary(found: Facts) -> Iterator[str]:
    """Says what these decisions cost, and what the reader must know, line by line."""
    n = len(found["ids"])
    spent = sum(found["flops"])
    dense = found["dense_flops"]
    heavy = found["paths"][0]
    yield f"{found['run']}, {found['steps']:,} steps: {n:,} tokens in windows of {found['L']:,}"
    yield (
        f"decisions: {spent / n:,.0f} FLOPs a token, {spent / dense:.3f} of the dense "
        f"Transformer's {dense / n:,.0f}, for these tokens, as they were decided"
    )
    ran = found["program_flops"]
    dense_ran = found["program_dense_flops"]
    yield (
        f"program: {ran:,} FLOPs ran, counted with padding and capacities, {ran / dense_ran:.3f} "
        f"of the dense Transformer's {dense_ran:,}"
    )
    by_layer = zip(found["layers"], found["kept"], strict=True)
    shares = ", ".join(f"{i}: {np.mean(row):.2f}" for i, row in by_layer)
    yield f"share of the tokens that took the {heavy} path, by layer: {shares}"
    yield from found["notes"]


def levels(score_RxT: np.ndarray) -> np.ndarray:
    """Returns in which fifth of its layer's scores each one stands, 0 to 4, (R, T).

    Equal scores stand together.
    """
    R, T = score_RxT.shape
    below = [np.searchsorted(np.sort(score_T), score_T) for score_T in score_RxT]
    return (np.stack(below) * 5 // T).reshape(R, T)


def bands(cut: Sequence[Piece], width: int) -> Iterator[list[Piece]]:
    """Yields the pieces in rows of at most `width` tokens; one with more is a row of its own."""
    band: list[Piece] = []
    n = 0
    for piece in cut:
        if band and n + len(piece.tokens) > width:
            yield band
            band = []
            n = 0
        band.append(piece)
        n += len(piece.tokens)
    if band:
        yield band


def _with_tokens(cut: Sequence[Piece]) -> list[Piece]:
    return [piece for piece in cut if piece.tokens]


def _choose(kept: Any, mixed: Any, signs: Sequence[str]) -> str:
    """Returns the sign of the heavy path, of the third, or of the light one."""
    if kept:
        return signs[0]
    return signs[1] if mixed else signs[2]


def _rules(layers: Sequence[int]) -> Iterator[str]:
    """Writes the CSS of the colours, and what each view shows."""
    for names, colours in ((LIGHT_NAMES, LIGHT), (HEAVY_NAMES, HEAVY)):
        for name, (paper, ink) in zip(names, colours, strict=True):
            yield f".b .{name}, .key .{name} {{ background: {paper}; color: {ink}; }}\n"
    for i, (paper, ink) in enumerate(SHARE):
        line = " text-decoration: underline;" if i >= 3 else ""
        shown = f"background: {paper}; color: {ink};{line}"
        yield f"#m:checked ~ .t .m{i}, .key .m{i} {{ {shown} }}\n"
    underline = "text-decoration: underline"
    for i in layers:
        view = f"#v{i}:checked ~"
        yield f"{view} .t .l{i} {{ background: #f6ae63; {underline}; }}\n"
        yield f"{view} .t .s{i} {{ background: #fde3c6; {underline} dotted; }}\n"
        yield f"{view} .b .r{i} th {{ font-weight: bold; {underline}; }}\n"


def _key(paths: Sequence[str]) -> str:
    """Writes what the colours and letters mean."""
    words = enumerate(SHARE_WORDS)
    shares = "".join(f'<span class="m{i}">{word}</span>' for i, word in words)
    heavy = "".join(f'<span class="{name}">{_letter(paths)}</span>' for name in HEAVY_NAMES)
    light = "".join(f'<span class="{name}">·</span>' for name in LIGHT_NAMES)
    mixed = f"{MIXED} {escape(paths[2])}, " if len(paths) > 2 else ""
    return (
        f'<p class="key">Text: {shares} took the {escape(paths[0])} path, or underlined: this '
        f"layer did. Matrix: {heavy} {escape(paths[0])}, {mixed}{light} {escape(paths[1])}; "
        "the darker, the higher the score in its layer.</p>\n"
    )


def _views(layers: Sequence[int]) -> Iterator[str]:
    button = '<input type="radio" name="v" id='
    yield f'{button}"m" checked><label for="m">all layers</label>\n'
    for i in layers:
        yield f'{button}"v{i}"><label for="v{i}">layer {i}</label>\n'


def _letter(paths: Sequence[str]) -> str:
    return escape(paths[0][0].upper())


def _text(found: Facts, kept_RxT: np.ndarray, cut: list[Piece]) -> Iterator[str]:
    """Writes the text, a span a piece; its classes say which layers kept it."""
    last = max(i for i, piece in enumerate(cut) if piece.tokens)
    for i, (text, tokens) in enumerate(cut):
        if not tokens:
            unseen = ' class="n"' if i > last and found["unseen"] else ""
            yield f"<span{unseen}>{_exact(text)}</span>"
            continue
        names = " ".join(_span_classes(found, kept_RxT[:, list(tokens)], tokens))
        mark = _mark(text) if text else START
        shown = f' data-v="{escape(mark)}"' if mark else ""
        told = escape("\n".join(_told(found, t) for t in tokens))
        yield f'<span class="{names}"{shown} title="{told}">{_exact(text)}</span>'


def _span_classes(found: Facts, kept_RxN: np.ndarray, tokens: Sequence[int]) -> Iterator[str]:
    """Yields the CSS classes of a piece of N tokens.

    m0 to m4: in how many layers it was kept. l3: layer 3 kept it. s3: it kept some of the tokens.
    w: a window begins.
    """
    share = kept_RxN.mean()
    yield f"m{0 if share == 0 else min(4, 1 + int(3 * share))}"
    rows = list(zip(found["layers"], kept_RxN, strict=True))
    yield from (f"l{layer}" for layer, kept_N in rows if kept_N.all())
    yield from (f"s{layer}" for layer, kept_N in rows if kept_N.any() and not kept_N.all())
    if any(t and t % found["L"] == 0 for t in tokens):
        yield "w"


def _told(found: Facts, t: int) -> str:
    """Describes a token: its number and id, its FLOPs, its path and score in each layer."""
    signs = (found["paths"][0][0].upper(), MIXED, found["paths"][1][0])
    rows = zip(found["layers"], found["kept"], found["mixed"], found["scores"], strict=True)
    lines = [
        f"{i} {_choose(kept[t], mixed[t], signs)} {score[t]:.3g}" for i, kept, mixed, score in rows
    ]
    head = f"token {t} · id {found['ids'][t]} · {found['flops'][t]:,.0f} FLOPs"
    return "\n".join([head, *lines])


def _exact(text: str) -> str:
    """Escapes so that an HTML parser gives back the very characters, a bare CR among them."""
    return escape(text).replace("\r", "&#13;")


def _mark(text: str) -> str:
    """Returns what stands for the characters of a piece that cannot be seen.

    It is "" where all can be seen, or where the unseen ones only join others.
    """
    unseen = [c for c in text if invisible(c)]
    alone = len(unseen) == len(text)
    controls = [c for c in unseen if c < " " or "\x7f" <= c <= "\x9f"]
    marked = unseen if alone else controls
    return visible("".join(c for c in marked if c != "\t"))


def _matrix(found: Facts, kept_RxT: np.ndarray, cut: list[Piece]) -> Iterator[str]:
    """Writes the tables of layers and tokens, one below the other."""
    # the CSS class and the letter of each cell
    level_RxT = levels(np.asarray(found["scores"]))
    names = np.array([*LIGHT_NAMES, *HEAVY_NAMES])[level_RxT + 5 * kept_RxT]
    light_letters = np.where(np.asarray(found["mixed"], bool), MIXED, "")
    letters = np.where(kept_RxT, _letter(found["paths"]), light_letters)

    for band in bands(_with_tokens(cut), BAND):
        yield '<table>\n<tr class="h"><th>layer</th>'
        for text, tokens in band:
            across = f' colspan="{len(tokens)}"' if len(tokens) > 1 else ""
            word = _word(text)
            down = ' class="u"' if len(word) > 1 + len(tokens) else ""
            yield f"<th{across}><bdi{down}>{escape(_short(word))}</bdi></th>"
        yield "</tr>\n"
        numbers = [t for piece in band for t in piece.tokens]
        for r, i in enumerate(found["layers"]):
            cells = (f'<td class="{names[r, t]}">{letters[r, t]}</td>' for t in numbers)
            yield f'<tr class="r{i}"><th>layer {i}</th>{"".join(cells)}</tr>\n'
        yield "</table>\n"


def _word(text: str) -> str:
    """Returns a piece on one line; a joiner between characters stays, so that they stay joined."""
    if not text:
        return START
    return visible(text, JOINER if len(text) > 1 else "")


def _short(text: str) -> str:
    return text if len(text) <= WORD else f"{text[: WORD - 1]}…"


def _styled_text(kept_RxT: np.ndarray, cut: list[Piece]) -> Iterator[Text]:
    """Yields the text: bold and underlined where half of the layers keep it, dim where none do."""
    line = Text()
    for text, tokens in cut:
        share = kept_RxT[:, list(tokens)].mean() if tokens else 0.0
        style = "dim"
        if share >= 0.5:
            style = "bold underline dark_orange"
        elif share > 0:
            style = ""
        for i, part in enumerate(text.split("\n")):
            if i:
                yield line
                line = Text()
            line.append("".join(visible(c) if invisible(c) else c for c in part), style)
    yield line


def _heading(piece: Piece) -> str:
    """Returns one column a token: the first character that is no space, or a box if it is wide."""
    text = piece.text.strip(" ") or piece.text or START
    sign = visible(text[0])[0]
    if cell_len(sign) != 1:
        sign = WIDE
    return sign + SAME * (len(piece.tokens) - 1)
