"""What was understood of a table, in lines for a person, before anything is learnt from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from cerebra_jax.tasks import fields
from cerebra_jax.tasks.fields import Form, Marks
from cerebra_jax.tasks.table import Table

WARNING = "warning: "
MOST = 40  # columns that have a line of their own
FEW_ROWS = 20  # below it nothing is said about ids and classes
AN_ID = 0.9  # distinct fields in so many rows are no categories
CLASSES = 50  # whole numbers with so few different values may be classes …
ROWS_A_CLASS = 10  # … where each has so many rows


def lines(
    table: Table, forms: Mapping[str, Form], target: str, given: Mapping[str, str], marks: Marks
) -> Iterator[str]:
    """Yields how the file was read, a line a column, and what may not be as a person meant it.

    given: the kinds that a person has named; of these columns nothing is doubted.
    """
    yield f"{table.file}: {table.rows:,} rows of {len(table.columns)} columns, {table.how}"
    width = max(len(name) for name in list(forms)[:MOST])
    features = [name for name in forms if name != target]
    counts = {name: fields.counted(table.columns[name], marks) for name in forms}
    for name in [*features[: MOST - 1], target]:
        yield _line(name, width, forms[name], counts[name], table.rows, name == target)
    if len(features) >= MOST:
        yield f"  and {len(features) - MOST + 1:,} columns more"
    unused = [name for name in table.columns if name not in forms]
    if unused:
        yield f"  not used: {', '.join(unused[:20])}"
    for name in [*features, target]:
        if name not in given and not (name != target and "*" in given):
            yield from _doubts(table, name, forms[name], counts[name], name == target)


def _line(
    name: str, width: int, form: Form, counts: Counter[str], rows: int, is_target: bool
) -> str:
    present = sum(counts.values())
    missing = rows - present
    what = {"number": "number  ", "date": "date    ", "category": "category"}[form.kind]
    said = [f"{len(counts):,} different"]
    if missing:
        said.append(f"{missing / rows:.1%} missing")
    if form.kind == "number" and form.decimal == ",":
        said.append("decimal commas")
    if form.kind == "date":
        said.append(f"as days, from {'ISO dates' if form.date == fields.ISO else form.date}")
    example = next(iter(counts), "")
    said.append(f"such as {_short(example)}")
    end = "  (the target)" if is_target else ""
    return f"  {name:<{width}}  {what}  {', '.join(said)}{end}"


def _doubts(
    table: Table, name: str, form: Form, counts: Counter[str], is_target: bool
) -> Iterator[str]:
    present, kinds = sum(counts.values()), len(counts)
    if form.doubt:
        yield f"{WARNING}{name}: {form.doubt}"
    if form.others:
        n = sum(counts[text] for text in form.others)
        first = next(i for i, text in enumerate(table.columns[name]) if text in form.others)
        words = ", ".join(_short(text) for text in form.others[:3])
        yield (
            f"{WARNING}{name}: {n:,} of {present:,} fields are no {form.kind} ({words}; the first "
            f"at {table.place(first)}): taken as missing; --config.task.types={name}:category "
            "keeps them"
        )
    if kinds == 1:
        yield f"{WARNING}{name}: every field is {_short(next(iter(counts)))}: it tells nothing"
    if present < FEW_ROWS:
        return
    if is_target:
        yield from _doubts_of_target(name, form, counts, present)
    elif form.kind == "category" and kinds >= AN_ID * present:
        yield (
            f"{WARNING}{name}: {kinds:,} different fields in {present:,} rows: an id? "
            f"--config.task.ignore={name}"
        )
    elif form.kind == "category" and _numbers(counts) > 0.5 * present:
        yield (
            f"{WARNING}{name}: {_numbers(counts) / present:.0%} of its fields are numbers, taken "
            f"as categories; --config.task.types={name}:number, and task.missing for the others"
        )


def _doubts_of_target(name: str, form: Form, counts: Counter[str], present: int) -> Iterator[str]:
    kinds = len(counts)
    if form.kind == "number":
        values = [fields.number(text, form.decimal) for text in counts]
        whole = all(value is not None and value == int(value) for value in values)
        if whole and kinds <= CLASSES and present >= ROWS_A_CLASS * kinds:
            yield (
                f"{WARNING}{name} has {kinds} values and is taken for a number; "
                f"classes: --config.task.types={name}:category, else {name}:number"
            )
    elif kinds > 0.5 * present:
        yield (
            f"{WARNING}{name} has {kinds:,} classes in {present:,} rows: is it a number? "
            f"--config.task.types={name}:number names the field that is none"
        )


def _numbers(counts: Counter[str]) -> int:
    return sum(n for text, n in counts.items() if fields.number(text) is not None)


def _short(text: str) -> str:
    shown = text if len(text) <= 24 else text[:23] + "…"
    return repr(shown)
