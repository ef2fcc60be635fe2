"""certify: counts and times a model against its dense twin; exit status 1 where it saves nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from cerebra_jax.cli.cost import si
from cerebra_jax.cli.flags import Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.cost.units import LABELS
from cerebra_jax.errors import NotCertified
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import workdir as folder


def run(request: Request) -> None:
    """Prints the certificate and writes it as JSON; NotCertified where it is none."""
    screen, workdir = Screen(), request.workdir
    folder.prepare(workdir, False, screen.say)
    with folder.quiet(workdir / "log.txt", request.verbose):
        cfg = request.cfg  # one program is certified, that of the longest examples
        task = build(
            dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, buckets=0)), screen.say
        )
        compile_cache(cfg.task.cache_dir)
        from cerebra_jax.training import certificate, finished

        state = None
        if request.finished:
            state = finished.load(cfg, task, workdir, screen.say).state
        found = certificate.certify(cfg, task, state, screen.say) | {
            "dataset": task.dataset,
            "notice": task.notice,
        }
        path = request.out or workdir / (
            "certificate.json" if request.finished else "certificate-untrained.json"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.write_json(path, found)
        for line in show(found):
            screen.say(line)
        screen.say(f"written: {path}")
    if found["problems"]:
        raise NotCertified(
            f"not certified: {' and '.join(found['problems'])}",
            "cost --config=... shows every part",
        )


def show(found: dict[str, Any]) -> Iterator[str]:
    """The certificate for a person."""
    trained = (
        "untrained" if found["trained_steps"] is None else f"after {found['trained_steps']:,} steps"
    )
    machine = found["machine"]
    yield (f"{found['model']} {trained}, batches of {found['batch']} x {found['tokens']} tokens on "
           f"{found['device']['device']}, {machine['cores']} cores, load {machine['load'][0]:.1f}")  # fmt: skip
    rows, L, dense = found["rows"], found["tokens"], found["rows"]["dense"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("per token, forward", no_wrap=True)
    for name in rows:
        table.add_column(name, justify="right", no_wrap=True)

    def add(label: str, text: Any) -> None:
        table.add_row(label, *(text(row) for row in rows.values()))

    def flops(key: str) -> Any:
        return lambda row: (
            "-" if row[key] is None else f"{si(row[key] / L)}  {row[key] / dense[key]:.4f}"
        )

    counts = found["config"]["objective"]["unit"]
    unit = "" if counts == "flops" else f", {LABELS[counts]}"
    add(f"expected cost{unit}", lambda row: f"{row['expected']:.4f}")
    add(f"hard cost{unit}", lambda row: f"{row['hard']:.4f}")
    add("executed, analytic", flops("executed_flops"))
    add("executed, counted in the jaxpr", flops("counted_flops"))
    if any(row["counted_int8"] for row in rows.values()):
        whole = dense["counted_flops"]
        add(
            "  and int8 operations",
            lambda row: f"{si(row['counted_int8'] / L)}  {row['counted_int8'] / whole:.4f}",
        )
    if rows["model"]["masked_flops"]:
        masked = rows["model"]["masked_flops"] / dense["counted_flops"]
        table.add_row(
            "  without dispatch (masked)", f"{si(rows['model']['masked_flops'] / L)}  {masked:.4f}"
        )
    if dense["xla_flops"]:
        add("XLA's count, unrolled", flops("xla_flops"))
    add("training step, counted", flops("counted_train_flops"))
    if any(row["counted_train_int8"] for row in rows.values()):
        add("  and int8 operations", lambda row: f"{si((row['counted_train_int8'] or 0) / L)}")
    for kind in rows["model"]["time"]:
        add(f"{kind}: bytes moved, a batch", lambda row, kind=kind: si(row["bytes"][kind], "B"))
        if all(row["memory"][kind] for row in rows.values()):
            add(
                f"{kind}: temporaries",
                lambda row, kind=kind: si(row["memory"][kind]["temporary"], "B"),
            )
            add(
                f"{kind}: alive in all",
                lambda row, kind=kind: si(row["memory"][kind]["whole"], "B"),
            )
        add(f"{kind}: ms a batch [q1, q3]", lambda row, kind=kind: _ms(row["time"][kind]))
        add(
            f"{kind}: time against dense", lambda row, kind=kind: _ratio(row["time"][kind]["ratio"])
        )
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    yield captured.get().rstrip("\n")
    for name, row in rows.items():
        if row["xla_note"]:
            yield f"XLA, {name}: {row['xla_note']}"
    yield found["conventions"]
    yield f"certified: {'yes' if found['certified'] else 'NO'}, by the counted FLOPs; the clock is shown, not judged"


def _ms(t: dict[str, Any]) -> str:
    return f"{1e3 * t['median']:.4g} [{1e3 * t['q1']:.4g}, {1e3 * t['q3']:.4g}]"


def _ratio(r: dict[str, Any]) -> str:
    return f"{r['median']:.3f} [{r['q1']:.3f}, {r['q3']:.3f}]{' noisy' if r['noisy'] else ''}"
