"""heatmap: shows which tokens of a text the best checkpoint of a run sends where, layer by layer,
and what that costs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast

from rich.console import Console

from cerebra_jax.analysis import heatmap
from cerebra_jax.checks import ROUTED, require
from cerebra_jax.cli import arguments
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.config import NetCfg, RunCfg
from cerebra_jax.tasks.task import Reader
from cerebra_jax.training import preprocessing
from cerebra_jax.training import workdir as folder

PATHS = {
    "chiar": ("attention", "filter"),
    "cerebra": ("heavy", "compressed"),
    "mod": ("block", "skip"),
}
TASKS = ("text", "intent")  # whose inputs are texts
MOST = 8192  # tokens; a page has about a kilobyte for each
PLAIN = 100  # columns where there is no terminal


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    arguments.add_run(parser)
    parser.add_argument(
        "--text", metavar="TEXT", default="", help="the text; @FILE: what is in the file"
    )
    parser.add_argument(
        "--to",
        metavar="FILE.html",
        type=arguments.file,
        help="the page that is written (default WORKDIR/heatmap.html)",
    )
    arguments.add_verbose(parser)


check = arguments.of_run


def run(request: Request) -> None:
    """Writes the page, its figures as JSON beside it, and prints the same."""
    cfg, to = request.cfg, request.to or request.workdir / "heatmap.html"
    require(to.suffix in (".html", ".htm"), f"--to is {to}", "give an HTML file: --to=FILE.html")
    need_routed(cfg, "heatmap")
    require(
        cfg.task.name in TASKS,
        f"the run's task is {cfg.task.name}",
        f"heatmap reads texts: {' or '.join(TASKS)}",
    )
    text = _text(request.text)
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


def need_routed(cfg: RunCfg, command: str) -> None:
    """Raises UserError for a run that routes nothing."""
    net = cfg.net
    is_dense = net.name == "transformer" or cfg.twin in ("dense", "equal_flops")
    require(
        net.name in ROUTED and not is_dense,
        f"the run is of {'a dense model' if is_dense else net.name}, which routes nothing",
        f"{command} needs a run of {', '.join(ROUTED)}",
    )
    require(
        not net.route.mode.startswith("always"),
        f"net.route.mode is {net.route.mode}: nothing is decided",
        f"{command} needs another router",
    )
    require(
        net.name != "chiar" or net.depth > 2,
        "net.depth is 2: the first and the last layer of chiar are not routed",
        f"{command} needs a run of 3 layers or more",
    )


def _text(given: str) -> str:
    """Returns the text that --text gives."""
    require(bool(given), "--text is missing", "write --text='Some words', or --text=@FILE")
    if not given.startswith("@"):
        return given
    return arguments.text_of(Path(given[1:]), "--text=@FILE takes a text file, in UTF-8")


def _facts(request: Request, cfg: RunCfg, text: str) -> heatmap.Facts:
    """Returns all that the page shows, as JSON holds it."""
    task = cast(
        Reader, preprocessing.restore(cfg, request.workdir, print)
    )  # one of TASKS, which all are
    read = task.read(text)
    require(
        len(read.ids) <= MOST,
        f"the text has {len(read.ids):,} tokens",
        f"give a shorter one, of {MOST:,} at most",
    )
    compile_cache(cfg.task)
    from cerebra_jax.analysis import routing_trace as decisions
    from cerebra_jax.models import registry
    from cerebra_jax.training import finished

    # the decisions of the trained model
    s = finished.load(cfg, task, request.workdir, print)
    state = s.state
    variables = {"params": state.params, "routing": state.routing}
    found = decisions.trace(s.model, variables, read.batch, len(read.ids))

    # what is told of them
    net, L = s.model.net, task.shape.seq_len
    layers = registry.routed_layers(net)
    unseen = len(text[read.spans[-1][1] :].strip())
    notes = _notes(net, layers, L, unseen)
    if s.notice:
        notes.append(s.notice)
    return {
        "run": str(request.workdir),
        "steps": int(state.step),
        "model": net.name,
        "route": net.route.mode,
        "paths": PATHS[net.name] + (("RBF mixer",) if net.route.rbf else ()),
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


def _notes(net: NetCfg, layers: list[int], L: int, unseen: int) -> list[str]:
    """Returns what a reader of the page must know."""
    notes = []
    if len(layers) < net.depth:
        notes.append(f"of the layers 0 to {net.depth - 1}, those not shown decide nothing")
    if unseen:
        notes.append(f"a window holds {L:,} tokens: the last {unseen:,} characters are not seen")
    if net.route.mode == "soft":
        notes.append("net.route.mode=soft: every token takes all paths")
    return notes
