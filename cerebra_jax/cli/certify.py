"""certify: counts and times a model against its dense twin.

Exit status 1 where it saves no FLOPs, or no time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cerebra_jax.checks import require
from cerebra_jax.cli import arguments
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.cost import si
from cerebra_jax.cli.screen import Screen
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.cost.units import LABELS
from cerebra_jax.errors import NotCertified
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import preprocessing
from cerebra_jax.training import workdir as folder

Row = Mapping[str, Any]  # the figures of one model


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    arguments.add_config(parser)
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        type=arguments.folder,
        help="the folder of a run, instead of --config",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=arguments.file,
        help="the file that is written (default WORKDIR/certificate.json)",
    )
    arguments.add_device(parser)
    arguments.add_verbose(parser)


def check(request: Request) -> None:
    """Adds the configuration of the run in --workdir, or of --config, which is not trained."""
    request.trained = not request.config
    require(
        request.trained or request.workdir is None,
        "certify takes --workdir or --config, not both",
        "a run's configuration is in its workdir",
    )
    require(
        not request.trained or request.workdir is not None,
        "certify needs --workdir or --config",
        "give the folder of a run: --workdir=runs/NAME, or --config=FILE.py",
    )
    if request.trained:
        arguments.of_run(request)
    else:
        arguments.configured(request)
    arguments.aimed(request)


def run(request: Request) -> None:
    """Prints the certificate and writes it as JSON; raises NotCertified where it is none."""
    screen, workdir, cfg = Screen(), request.workdir, request.cfg
    folder.prepare(workdir, False, screen.say)
    with folder.quiet(workdir / "log.txt", request.verbose):
        # one program is certified, that of the longest examples
        one_program = dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, buckets=0))
        if request.trained:
            task = preprocessing.build(one_program, workdir, screen.say)
        else:
            task = build(one_program, screen.say)
        compile_cache(cfg.task)
        from cerebra_jax.training import certificate, finished

        state = None
        if request.trained:
            state = finished.load(cfg, task, workdir, screen.say).state
        found = certificate.certify(cfg, task, state, screen.say)
        found |= {"dataset": task.dataset, "notice": task.notice}
        path = request.out or _default_path(request)
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.write_json(path, found)
        for line in show(found):
            screen.say(line)
        screen.say(f"written: {path}")
    if found["problems"]:
        what = f"not certified: {' and '.join(found['problems'])}"
        raise NotCertified(what, "cost --config=... shows every part")


def _default_path(request: Request) -> Path:
    name = "certificate.json" if request.trained else "certificate-untrained.json"
    return request.workdir / name


def show(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of a certificate for a person."""
    steps = found["trained_steps"]
    trained = "untrained" if steps is None else f"after {steps:,} steps"
    machine = found["machine"]
    yield (
        f"{found['model']} {trained}, batches of {found['batch']} x {found['tokens']} tokens on "
        f"{found['device']['device']}, {machine['cores']} cores, load {machine['load'][0]:.1f}"
    )
    console = Console(width=160)
    with console.capture() as captured:
        console.print(_table(found))
    yield captured.get().rstrip("\n")
    for name, row in found["rows"].items():
        if row["xla_note"]:
            yield f"XLA, {name}: {row['xla_note']}"
    yield found["conventions"]
    verdict = "yes" if found["certified"] else "NO"
    yield f"certified: {verdict}, by the counted FLOPs{_judged(found)}"


def _judged(found: Mapping[str, Any]) -> str:
    """Says which time was judged; certificates of before judge none."""
    if "target" not in found:
        return "; the clock is shown, not judged"
    target = found["target"]
    if target["here"]:
        return " and by the clock"
    return f" and by the time modelled for {target['device']}, which is not here"


def _table(found: Mapping[str, Any]) -> Table:
    """Returns the figures, a column for each model."""
    rows, L, dense = found["rows"], found["tokens"], found["rows"]["dense"]
    model = rows["model"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("per token, forward", no_wrap=True)
    for name in rows:
        table.add_column(name, justify="right", no_wrap=True)

    def add(label: str, text: Callable[[Row], str]) -> None:
        table.add_row(label, *(text(row) for row in rows.values()))

    def flops(label: str, key: str) -> None:
        def text(row: Row) -> str:
            if row[key] is None:
                return "-"
            return f"{si(row[key] / L)}  {row[key] / dense[key]:.4f}"

        add(label, text)

    # what it should cost, and what the program counts
    counts = found["config"]["objective"]["unit"]
    unit = "" if counts == "flops" else f", {LABELS[counts]}"
    add(f"expected cost{unit}", lambda row: f"{row['expected']:.4f}")
    add(f"hard cost{unit}", lambda row: f"{row['hard']:.4f}")
    flops("executed, analytic", "executed_flops")
    flops("executed, counted in the jaxpr", "counted_flops")
    unrouted = dense["counted_flops"]
    if any(row["counted_int8"] for row in rows.values()):
        add(
            "  and int8 operations",
            lambda row: f"{si(row['counted_int8'] / L)}  {row['counted_int8'] / unrouted:.4f}",
        )
    if model["masked_flops"]:
        masked = f"{si(model['masked_flops'] / L)}  {model['masked_flops'] / unrouted:.4f}"
        table.add_row("  without dispatch (masked)", masked)
    if dense["xla_flops"]:
        flops("XLA's count, unrolled", "xla_flops")
    flops("training step, counted", "counted_train_flops")
    if any(row["counted_train_int8"] for row in rows.values()):
        add("  and int8 operations", lambda row: f"{si((row['counted_train_int8'] or 0) / L)}")
    # what was measured
    for kind in model["time"]:
        _add_measured(kind, rows, add)
    return table


def _add_measured(
    kind: str, rows: Mapping[str, Row], add: Callable[[str, Callable[[Row], str]], None]
) -> None:
    """Adds the bytes and times of one kind of program: forward or training."""
    add(f"{kind}: bytes moved, a batch", lambda row: si(row["bytes"][kind], "B"))
    if all(row["memory"][kind] for row in rows.values()):
        add(f"{kind}: temporaries", lambda row: si(row["memory"][kind]["temporary"], "B"))
        add(f"{kind}: alive in all", lambda row: si(row["memory"][kind]["whole"], "B"))
    if "seconds" in rows["model"]:
        dense = rows["dense"]["seconds"][kind]
        add(f"{kind}: ms, modelled", lambda row: _modelled(row["seconds"][kind], dense))
    add(f"{kind}: ms a batch [q1, q3]", lambda row: _ms(row["time"][kind]))
    add(f"{kind}: time against dense", lambda row: _ratio(row["time"][kind]["ratio"]))


def _ms(t: Row) -> str:
    return f"{1e3 * t['median']:.4g} [{1e3 * t['q1']:.4g}, {1e3 * t['q3']:.4g}]"


def _modelled(seconds: float, dense: float) -> str:
    return f"{1e3 * seconds:.4g}  {seconds / dense:.4f}"


def _ratio(r: Row) -> str:
    noisy = " noisy" if r["noisy"] else ""
    return f"{r['median']:.3f} [{r['q1']:.3f}, {r['q3']:.3f}]{noisy}"
