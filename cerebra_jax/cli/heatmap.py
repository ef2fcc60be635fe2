"""heatmap: which tokens of a text the best checkpoint of a run sends where, layer by layer, and what that costs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from cerebra_jax.analysis import heatmap
from cerebra_jax.checks import ROUTED, need
from cerebra_jax.cli.flags import Request
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.config import RunCfg
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import workdir as folder

PATHS = {
    "chiar": ("attention", "filter"),
    "cerebra": ("heavy", "compressed"),
    "mod": ("block", "skip"),
}
TASKS = ("text", "intent")  # whose inputs are texts
MOST = 8192  # tokens; a page has about a kilobyte for each
PLAIN = 100  # columns where there is no terminal


def run(request: Request) -> None:
    """Writes the page and its figures as JSON beside it, and prints the same."""
    cfg, to = request.cfg, Path(request.options.get("to") or request.workdir / "heatmap.html")
    need(to.suffix in (".html", ".htm"), f"--to is {to}", "give an HTML file: --to=FILE.html")
    routed(cfg, "heatmap")
    need(
        cfg.task.name in TASKS,
        f"the run's task is {cfg.task.name}",
        f"heatmap reads texts: {' or '.join(TASKS)}",
    )
    text = _text(request.options.get("text", ""))
    with folder.quiet(request.workdir / "log.txt", request.verbose):
        found = _facts(request, cfg, text)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(heatmap.html(found), encoding="utf-8")
    data = to.with_suffix(".json")
    data.write_text(json.dumps(found, allow_nan=False), encoding="utf-8")
    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    for line in heatmap.lines(found, console.width if console.is_terminal else PLAIN):
        console.print(line)
    print(f"written: {to} and {data}")


def routed(cfg: RunCfg, command: str) -> None:
    """UserError for a run that routes nothing."""
    net = cfg.net
    dense = (
        "a dense model"
        if net.name == "transformer" or cfg.twin in ("dense", "equal_flops")
        else net.name
    )
    mend = f"{command} needs a run of {', '.join(ROUTED)}"
    need(
        net.name in ROUTED and dense == net.name,
        f"the run is of {dense}, which routes nothing",
        mend,
    )
    fixed = net.route.mode.startswith("always")
    need(
        not fixed,
        f"net.route.mode is {net.route.mode}: nothing is decided",
        f"{command} needs another router",
    )


def _text(given: str) -> str:
    need(bool(given), "--text is missing", "write --text='Some words', or --text=@FILE")
    if not given.startswith("@"):
        return given
    path = Path(given[1:])
    need(path.is_file(), f"there is no {path}", "--text=@FILE takes a text file")
    return path.read_bytes().decode(
        "utf-8", errors="surrogateescape"
    )  # the task refuses what is no text


def _facts(request: Request, cfg: RunCfg, text: str) -> dict[str, Any]:
    """All that the page shows, as JSON holds it."""
    task = build(cfg)
    read = task.read(text)
    need(
        len(read.ids) <= MOST,
        f"the text has {len(read.ids):,} tokens",
        f"give a shorter one, of {MOST:,} at most",
    )
    compile_cache(cfg.task.cache_dir)
    from cerebra_jax.analysis import routing_trace as decisions
    from cerebra_jax.models import registry
    from cerebra_jax.training import finished

    s = finished.load(cfg, task, request.workdir, print)
    state = s.state
    variables = {"params": state.params, "routing": state.routing}
    found = decisions.trace(s.model, variables, read.batch, len(read.ids))
    net, L = s.model.net, task.shape.seq_len
    paths = PATHS[net.name] + (("RBF mixer",) if net.route.rbf else ())
    layers = registry.routed_layers(net)
    unseen = len(text[read.spans[-1][1] :].strip())
    notes = (
        [f"of the layers 0 to {net.depth - 1}, those not shown decide nothing"]
        if len(layers) < net.depth
        else []
    )
    notes += (
        [f"a window holds {L:,} tokens: the last {unseen:,} characters are not seen"]
        if unseen
        else []
    )
    notes += (
        ["net.route.mode=soft: every token takes all paths"] if net.route.mode == "soft" else []
    )
    notes += [s.notice] if s.notice else []
    return {
        "run": str(request.workdir),
        "steps": int(state.step),
        "model": net.name,
        "route": net.route.mode,
        "paths": paths,
        "text": text,
        "L": L,
        "layers": layers,
        "ids": [int(i) for i in read.ids],
        "spans": read.spans,
        "kept": found.kept_RxT.astype(int).tolist(),
        "mixed": found.mixed_RxT.astype(int).tolist(),
        "scores": [[float(f"{score:.4g}") for score in row] for row in found.score_RxT],
        "flops": [round(float(x)) for x in found.flops_T],
        "dense_flops": found.dense_flops,
        "program_flops": found.program_flops,
        "program_dense_flops": found.program_dense_flops,
        "unseen": unseen,
        "notes": notes,
    }
