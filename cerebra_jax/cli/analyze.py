"""analyze: tells what the routing decisions of a run on text go with, and where gradients are
larger.

Decisions go with the frequency, the kind and the loss of tokens; gradients may be larger for routed
tokens.
"""

from __future__ import annotations

import math
import sys
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from cerebra_jax.analysis import routing_shares as routing
from cerebra_jax.analysis import token_classes as words
from cerebra_jax.checks import require
from cerebra_jax.cli import arguments
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.heatmap import PATHS, need_routed
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.report import tables
from cerebra_jax.tasks.text.task import TextTask
from cerebra_jax.training import preprocessing
from cerebra_jax.training import workdir as folder

WINDOWS = 64  # read where --windows does not say otherwise
MOST_WINDOWS = 1_000_000
BATCH = 4  # windows in one pass


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    arguments.add_run(parser)
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        type=arguments.choice("valid", "test"),
        default="valid",
        help="what is read: valid or test (default valid)",
    )
    parser.add_argument(
        "--windows",
        metavar="N",
        type=arguments.whole(2, MOST_WINDOWS),
        default=WINDOWS,
        help=f"windows that are read, from all over the split (default {WINDOWS})",
    )
    arguments.add_verbose(parser)


check = arguments.of_run


def run(request: Request) -> None:
    """Prints the tables; writes WORKDIR/analysis-SPLIT.json and .md."""
    cfg = request.cfg
    need_routed(cfg, "analyze")
    require(
        cfg.task.name == "text",
        f"the run's task is {cfg.task.name}",
        "analyze reads language models: task.name=text",
    )
    require(
        not cfg.quant.stored,
        "there are no gradients of int8 weights",
        "analyze the run that they were made from",
    )
    with folder.quiet(request.workdir / "log.txt", request.verbose):
        found = _facts(request)
    path = request.workdir / f"analysis-{found['split']}.json"
    folder.write_json(path, found)
    told = list(routing.tables(found))
    under = list(routing.notes(found))
    # on the screen
    console = Console(file=sys.stdout, highlight=False, markup=False)
    for title, (head, *rows) in told:
        table = Table(
            *head, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold"
        )
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    for line in under:
        print(line)
    # in a file
    parts = [f"## {title}\n\n{tables.markdown(rows, [])}\n" for title, rows in told]
    heading = f"# What the routing of {found['run']} goes with\n\n"
    page = "\n".join([*parts, "\n\n".join(under)])
    path.with_suffix(".md").write_text(f"{heading}{page}\n", encoding="utf-8")
    print(f"written: {path} and {path.with_suffix('.md')}")


def _facts(request: Request) -> dict[str, Any]:
    """Returns all that is told, as JSON holds it."""
    cfg, split = request.cfg, request.split
    task = cast(TextTask, preprocessing.build(cfg, request.workdir, print))  # `run` has seen to it
    compile_cache(cfg.task)
    from cerebra_jax.analysis import saliency as gradients
    from cerebra_jax.models import registry
    from cerebra_jax.training import finished

    # the decisions, losses and gradients of the trained model
    s = finished.load(cfg, task, request.workdir, print)
    state = s.state
    net, probe = s.model.net, gradients.probe(s.model)
    variables = {"params": state.params, "routing": state.routing}
    seen = []
    batches = list(_spread(task, split, request.windows))
    for batch in batches:
        seen.append([np.asarray(x) for x in probe(variables, batch)])
    norm, nats_WxL, score, kept = (np.concatenate(x, axis=-2) for x in zip(*seen, strict=True))

    # the tokens that count: their own loss is told by the token before them
    ids_WxL, w_WxL = (np.concatenate([b[key] for b in batches]) for key in ("inputs_BxL", "w_BxL"))
    real_WxL = (w_WxL > 0) & (ids_WxL != task.bos)
    real_WxL[:, 1:] &= w_WxL[:, :-1] > 0
    real_WxL[:, 0] = False
    kinds_N, words_N = _kinds(task, ids_WxL, real_WxL)
    real = {
        "frequency in the training text": task.counts("train")[ids_WxL][real_WxL],
        **{name: kinds_N == name for name in words.CLASSES},
        "closed-class word": np.isin(words_N, words.CLOSED_CLASSES),
        "its own loss": np.roll(nats_WxL, 1, axis=1)[real_WxL],
        "loss of the next token": nats_WxL[real_WxL],
        "position in the window": np.nonzero(real_WxL)[1],
        "gradient norm at the layer": norm[:, real_WxL],
    }
    window_N = np.nonzero(real_WxL)[0]
    decided = {"kept": kept[:, real_WxL].astype(float), "score": score[:, real_WxL]}
    return _plain(
        {
            "run": str(request.workdir),
            "steps": int(state.step),
            "model": net.name,
            "route": net.route.mode,
            "paths": PATHS[net.name],
            "dataset": task.dataset,
            "split": split,
            "L": task.shape.seq_len,
            "tokens": len(window_N),
            "windows": len(np.unique(window_N)),
            "layers": registry.routed_layers(net),
            "kept": decided["kept"].mean(1).tolist(),
            "correlations": routing.correlations(decided, real, window_N),
            "characters": routing.by_class(decided["kept"], kinds_N, words.CLASSES, window_N),
            "words": routing.by_class(decided["kept"], words_N, words.WORD_KINDS, window_N),
            "gradients": routing.gradients(norm, kept, real_WxL),
            "notes": [s.notice] if s.notice else [],
        }
    )


def _spread(task: TextTask, split: str, windows: int) -> list[dict[str, Any]]:
    """Returns batches from all over the split, of about so many windows together."""
    every = max(1, task.windows(split) // windows)
    batches = enumerate(task.eval_batches(split, BATCH))
    return [batch for i, batch in batches if i % every == 0]


def _kinds(
    task: TextTask, ids_WxL: np.ndarray, real_WxL: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (class of its first character, kind of its word) of each of the N real tokens."""
    pieces = task.pieces(range(task.shape.vocab_size))
    rows = [[pieces[i] for i in row] for row in ids_WxL]
    classes_WxL = np.array([words.classes(row) for row in rows])
    kinds_WxL = np.array([words.word_kinds(row) for row in rows])
    return classes_WxL[real_WxL], kinds_WxL[real_WxL]


def _plain(value: Any) -> Any:
    """Returns the value as JSON holds it: NaN becomes null."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
