"""Writes one HTML page that needs nothing else: no script, no network, every word escaped."""

from __future__ import annotations

import base64
import html as markup
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from cerebra_jax.display import printable
from cerebra_jax.report import operator_use, plots
from cerebra_jax.report.runs import Groups, first
from cerebra_jax.report.tables import run_rows

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """\
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; \
color: #222; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25em .6em; text-align: right; border-bottom: 1px solid #ddd; \
white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr:hover td { background: #f3f6fa; }
img { max-width: 100%; background: white; }
li { margin: .3em 0; }
"""


def escape(text: str) -> str:
    """Returns a text as a page shows it, also inside of quotes."""
    return markup.escape(printable(text))


Draw = Callable[[Groups, io.BytesIO], None]


def head(title: str, style: str = "") -> str:
    """Writes a page up to its first words; `style` is CSS beside what every page has."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>
{_STYLE}{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
"""


def html(groups: Groups, rows: Sequence[Sequence[str]], under: Sequence[str]) -> str:
    """Writes the report as a page: the table, its notes, figures, and every run with its folder.

    Figures need the extra `plots` (matplotlib).
    """
    runs = run_rows(groups)
    parts = [
        head(f"{first(groups).dataset}: {len(runs)} runs"),
        table(rows),
        notes(under),
    ]
    parts += [figure(name, partial(draw, groups)) for name, draw in _figures(groups).items()]
    if operator_use.used(groups):
        parts.append(table(operator_use.rows(groups)))
    parts.append("<h2>Runs</h2>\n")
    parts.append(table(rows_of(runs)))
    parts.append("</body>\n</html>\n")
    return "".join(parts)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Writes rows of text as a table, the headings first."""
    head, *body = [[escape(word) for word in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th>{word}</th>" for word in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{word}</td>" for word in row) + "</tr>" for row in body]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>\n"


def rows_of(dicts: Sequence[Mapping[str, object]]) -> list[list[str]]:
    """Returns dicts of one set of keys as rows of text, the headings first."""
    return [list(dicts[0]), *([_short(value) for value in row.values()] for row in dicts)]


def notes(under: Sequence[str]) -> str:
    """Writes notes as a list."""
    return "<ul>\n" + "".join(f"<li>{escape(note)}</li>\n" for note in under) + "</ul>\n"


def _figures(groups: Groups) -> Mapping[str, Draw]:
    """Returns the figures that these runs have something to show in."""
    figures: dict[str, Draw] = {
        "Quality against cost": plots.front,
        "Loss against training compute": plots.curves,
    }
    if plots.budgeted(groups):
        figures["Budgets"] = plots.budgets
    if operator_use.used(groups):
        figures["Operators over training"] = operator_use.draw
    return figures


def figure(name: str, draw: Callable[[io.BytesIO], None]) -> str:
    """Writes a figure, which `draw` writes as SVG into a stream, under its name."""
    out = io.BytesIO()
    draw(out)
    data = base64.b64encode(out.getvalue()).decode("ascii")
    source = f"data:image/svg+xml;base64,{data}"
    return f'<h2>{escape(name)}</h2>\n<img alt="{escape(name)}" src="{source}">\n'


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)
