"""calibrate: sets the thresholds of a run of chiar by a text, and what the old ones do there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cerebra_jax.checks import require
from cerebra_jax.cli import arguments
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.config import RunCfg
from cerebra_jax.training import preprocessing
from cerebra_jax.training import workdir as folder

BATCHES = 32  # at most, of the size of a micro-batch of training
COLUMNS = (
    "layer",
    "τ of the run",
    "τ now",
    "change, in spreads",
    "above τ, run",
    "now",
    "kept, run",
    "now",
)
OFF = 0.05  # of the tokens: what a threshold may keep more or less than it was trained for


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    arguments.add_run(parser)
    parser.add_argument(
        "--data", metavar="FILE", default="", help="a text (default: the run's validation split)"
    )
    parser.add_argument(
        "--share",
        metavar="SHARE",
        type=_share,
        help="share of the tokens to send to attention; "
        "default: midway between the 33rd and 67th percentiles",
    )
    parser.add_argument(
        "--embeddings",
        action="store_true",
        help="look at token embeddings, one threshold for all layers, as the paper's code does",
    )
    arguments.add_verbose(parser)


check = arguments.of_run


def run(request: Request) -> None:
    """Prints how thresholds and routed shares differ, and writes WORKDIR/thresholds.json."""
    screen, cfg, workdir = Screen(), request.cfg, request.workdir
    route, share = cfg.net.route, request.share
    _need_thresholds(cfg)
    with folder.quiet(workdir / "log.txt", request.verbose):
        # the text
        task = preprocessing.build(cfg, request.workdir, screen.say)
        size = cfg.train.batch_size // cfg.train.accum
        batches = list(itertools.islice(_batches(task, request.data, size), BATCHES))
        compile_cache(cfg.task)
        from cerebra_jax.training import finished, frozen

        # where the thresholds should stand
        best = finished.load(cfg, task, workdir, screen.say, as_trained=True)
        model, state = best.model, best.state
        low, high = 1 / 3, 2 / 3
        if share is not None:
            low, high = 1 - share - route.rbf, 1 - share
        sought = frozen.Quantiles(low, high, request.embeddings)
        found = frozen.measure(model, state, batches, sought)
        data = request.data or f"{task.dataset}, valid"
        written = {
            "step": int(state.step),
            "data": data,
            "of": "embeddings" if request.embeddings else "inputs",
            "low": low,
            "high": high,
        }
        folder.write_json(workdir / frozen.FILE, written | found)
    of = "token embeddings" if request.embeddings else "the inputs of each layer"
    screen.say(
        f"thresholds of {of} on {data}, {found['tokens']:,} tokens; "
        f"checkpoint of step {written['step']:,}"
    )
    for line in _report(found["layers"], route.rate, route.rate * route.capacity):
        screen.say(line)
    screen.say(f"written: {workdir / frozen.FILE}; eval, generate and certify take them from there")


def _need_thresholds(cfg: RunCfg) -> None:
    """Raises UserError for a run that has no threshold to set."""
    route = cfg.net.route
    require(
        cfg.net.name == "chiar" and route.mode == "threshold",
        f"the run is net.name={cfg.net.name} with net.route.mode={route.mode}",
        "calibrate sets the entropy thresholds of chiar: net.route.mode=threshold",
    )
    require(
        cfg.task.name != "mixed",
        "the run is of several tasks",
        "calibrate looks at one: task.name=text, say",
    )
    require(
        not cfg.twin,
        f"the run is the {cfg.twin} twin of chiar",
        "calibrate the run of the model itself",
    )
    require(
        cfg.net.depth > 2, "net.depth is 2: no layer is routed", "there is nothing to calibrate"
    )


def _share(text: str) -> float:
    share = arguments.as_float(text)
    if not 0.0 < share < 1.0:
        arguments.refuse(text, "give the share of tokens to route: --share=0.25")
    return share


def _batches(task: Any, path: str, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of the validation split, or of a file of text.

    Those of a file are windows of its tokens; the last ones are filled up.
    """
    if not path:
        yield from task.eval_batches("valid", size)
        return
    require(
        hasattr(task, "encode"), f"--data={path}, but the run's task is no text", "leave out --data"
    )
    text = arguments.text_of(Path(path), "--data=FILE takes a file of text, in UTF-8")
    ids = np.array([task.bos, *task.encode(text)], np.int32)
    L = task.shape.seq_len
    require(len(ids) > 1, f"{path} is empty", "--data=FILE takes a file of text, in UTF-8")
    for first in range(0, len(ids), size * L):
        part = ids[first : first + size * L]
        weights = (np.arange(size * L) < len(part)).astype(np.float32)
        padded = np.pad(part, (0, size * L - len(part))).reshape(size, L)
        ex_B = np.arange(size, dtype=np.int32)
        yield {
            "inputs_BxL": padded,
            "labels_BxL": padded,
            "w_BxL": weights.reshape(size, L),
            "ex_B": ex_B,
        }


def _report(layers: list[dict[str, Any]], rate: float, slots: float) -> Iterator[str]:
    """Yields a table of the layers, and a warning where a threshold or the slots do not suit the
    text.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in layers:
        table.add_row(
            str(row["layer"]),
            f"{row['tau_run']:.4f}",
            f"{row['tau_now']:.4f}",
            f"{row['drift']:+.2f}",
            *(f"{row[key]:.3f}" for key in ("above_run", "above_now", "kept_run", "kept_now")),
        )
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    yield captured.get().rstrip("\n")

    # what does not suit
    off = [row for row in layers if abs(row["above_run"] - rate) > OFF]
    if off:
        shares = ", ".join(f"{row['above_run']:.2f} in layer {row['layer']}" for row in off)
        yield (
            f"warning: the run's own thresholds route {shares} on this text; "
            f"net.route.rate is {rate:g}"
        )
    full = [row for row in layers if row["above_now"] - row["kept_now"] > OFF]
    if full:
        shares = ", ".join(
            f"{row['above_now'] - row['kept_now']:.2f} in layer {row['layer']}" for row in full
        )
        yield (
            f"warning: the program has slots for {min(1.0, slots):.2f} of the tokens; "
            f"these find none: {shares}"
        )
