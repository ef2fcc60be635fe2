"""One HTML page that needs nothing else: no script, no network, figures inside, every word of a run escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from cerebra_jax.report import operator_use as uses
from cerebra_jax.report import plots
from cerebra_jax.report.runs import Groups
from cerebra_jax.report.tables import run_rows

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }}
th, td {{ padding: .25em .6em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
tr:hover td {{ background: #f3f6fa; }}
img {{ max-width: 100%; background: white; }}
li {{ margin: .3em 0; }}
{style}</style>
</head>
<body>
"""


def head(title: str, style: str = "") -> str:
    """A page up to its first words; `style`: CSS beside what every page has."""
    return _HEAD.format(title=escape(title), style=style) + f"<h1>{escape(title)}</h1>\n"


def html(groups: Groups, rows: Sequence[Sequence[str]], under: Sequence[str]) -> str:
    """The report as a page: table, notes, figures, and every run with its folder (extra `plots`: matplotlib)."""
    title = (
        f"{next(iter(groups.values()))[0].result['dataset']}: {sum(map(len, groups.values()))} runs"
    )
    runs = run_rows(groups)
    parts = [
        head(title),
        table(rows),
        "<ul>\n" + "".join(f"<li>{escape(note)}</li>\n" for note in under) + "</ul>\n",
        *(_figure(name, draw, groups) for name, draw in _figures(groups).items()),
        *([table(uses.rows(groups))] if uses.used(groups) else []),
        "<h2>Runs</h2>\n",
        table([list(runs[0]), *([_short(value) for value in row.values()] for row in runs)]),
        "</body>\n</html>\n",
    ]
    return "".join(parts)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the headings first."""
    head, *body = [[escape(word) for word in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th>{word}</th>" for word in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{word}</td>" for word in row) + "</tr>" for row in body]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>\n"


def _figures(groups: Groups) -> Mapping[str, object]:
    found = {"Quality against cost": plots.front, "Loss against training compute": plots.curves}
    found |= {"Budgets": plots.budgets} if plots.budgeted(groups) else {}
    return found | ({"Operators over training": uses.draw} if uses.used(groups) else {})


def _figure(name: str, draw, groups: Groups) -> str:
    out = io.BytesIO()
    draw(groups, out)
    data = base64.b64encode(out.getvalue()).decode("ascii")
    return f'<h2>{escape(name)}</h2>\n<img alt="{escape(name)}" src="data:image/svg+xml;base64,{data}">\n'


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)
