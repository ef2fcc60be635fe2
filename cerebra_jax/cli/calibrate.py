"""calibrate: where the thresholds of a run should stand on a text, and what the old ones do there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cerebra_jax.checks import need
from cerebra_jax.cli.flags import Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import workdir as folder

BATCHES = 32  # at most, of the size of a micro-batch of training
OFF = 0.05  # of the tokens: what a threshold may keep more or less than it was trained for


def run(request: Request) -> None:
    """Prints how thresholds and routed shares differ, and writes WORKDIR/thresholds.json."""
    screen, cfg, workdir = Screen(), request.cfg, request.workdir
    route, share = cfg.net.route, _share(request.options.get("share", ""))
    what = f"the run is net.name={cfg.net.name} with net.route.mode={route.mode}"
    need(cfg.net.name == "chiar" and route.mode == "threshold", what,
         "calibrate sets the entropy thresholds of chiar: net.route.mode=threshold")  # fmt: skip
    need(
        cfg.task.name != "mixed",
        "the run is of several tasks",
        "calibrate looks at one: task.name=text, say",
    )
    need(
        not cfg.twin,
        f"the run is the {cfg.twin} twin of chiar",
        "calibrate the run of the model itself",
    )
    need(cfg.net.depth > 2, "net.depth is 2: no layer is routed", "there is nothing to calibrate")
    with folder.quiet(workdir / "log.txt", request.verbose):
        task = build(cfg, screen.say)
        size = cfg.train.batch_size // cfg.train.accum
        batches = list(
            itertools.islice(_batches(task, request.options.get("data", ""), size), BATCHES)
        )
        compile_cache(cfg.task.cache_dir)
        from cerebra_jax.training import finished, frozen

        best = finished.load(cfg, task, workdir, screen.say, as_trained=True)
        model, state = best.experiment.model, best.state
        low, high = (1 / 3, 2 / 3) if share is None else (1 - share - route.rbf, 1 - share)
        static = "embeddings" in request.options
        found = frozen.measure(model, state, batches, frozen.Quantiles(low, high, static))
        head = {
            "step": int(state.step),
            "data": request.options.get("data") or f"{task.dataset}, valid",
        }
        of = "embeddings" if static else "inputs"
        folder.write_json(
            workdir / frozen.FILE, head | {"of": of, "low": low, "high": high} | found
        )
    screen.say(f"thresholds of {'token embeddings' if static else 'the inputs of each layer'} on {head['data']}, "
               f"{found['tokens']:,} tokens; checkpoint of step {head['step']:,}")  # fmt: skip
    for line in _report(found["layers"], route.rate, route.rate * route.capacity):
        screen.say(line)
    screen.say(f"written: {workdir / frozen.FILE}; eval, generate and certify take them from there")


def _share(text: str) -> float | None:
    if not text:
        return None
    try:
        share = float(text)
    except ValueError:
        share = float("nan")
    need(
        0.0 < share < 1.0, f"--share is {text!r}", "give the share of tokens to route: --share=0.25"
    )
    return share


def _batches(task: Any, path: str, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the validation split, or of a file of text: windows of its tokens, the last of them filled up."""
    if not path:
        yield from task.eval_batches("valid", size)
        return
    need(
        hasattr(task, "encode"), f"--data={path}, but the run's task is no text", "leave out --data"
    )
    need(
        Path(path).is_file(),
        f"there is no file {path}",
        "--data=FILE takes a file of text, in UTF-8",
    )
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        need(False, f"{path} is not text in UTF-8", "--data=FILE takes a file of text, in UTF-8")
    ids, L = np.array([task.bos, *task.encode(text)], np.int32), task.shape.seq_len
    need(len(ids) > 1, f"{path} is empty", "--data=FILE takes a file of text, in UTF-8")
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
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "layer",
        "τ of the run",
        "τ now",
        "change, in spreads",
        "above τ, run",
        "now",
        "kept, run",
        "now",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in layers:
        taus = f"{row['tau_run']:.4f}", f"{row['tau_now']:.4f}", f"{row['drift']:+.2f}"
        shares = (
            f"{row[f'{what}_{when}']:.3f}" for what in ("above", "kept") for when in ("run", "now")
        )
        table.add_row(str(row["layer"]), *taus, *shares)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    yield captured.get().rstrip("\n")
    if off := [row for row in layers if abs(row["above_run"] - rate) > OFF]:
        shares = ", ".join(f"{row['above_run']:.2f} in layer {row['layer']}" for row in off)
        yield f"warning: the run's own thresholds route {shares} on this text; net.route.rate is {rate:g}"
    if full := [row for row in layers if row["above_now"] - row["kept_now"] > OFF]:
        shares = ", ".join(
            f"{row['above_now'] - row['kept_now']:.2f} in layer {row['layer']}" for row in full
        )
        yield f"warning: the program has slots for {min(1.0, slots):.2f} of the tokens; these find none: {shares}"
