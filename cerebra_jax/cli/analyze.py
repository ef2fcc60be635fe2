"""analyze: what the routing decisions of a run on text go with, and whether routed tokens carry larger gradients."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cerebra_jax.analysis import routing_shares as routing
from cerebra_jax.analysis import token_classes as words
from cerebra_jax.checks import need
from cerebra_jax.cli.flags import Request
from cerebra_jax.cli.heatmap import PATHS, routed
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.report import tables
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import workdir as folder

WINDOWS = 64  # read where --windows does not say otherwise
BATCH = 4  # windows in one pass


def run(request: Request) -> None:
    """Prints the tables; writes WORKDIR/analysis-SPLIT.json and .md."""
    cfg, text = request.cfg, request.options.get("windows", str(WINDOWS))
    need(
        text.isdecimal() and int(text) >= 2,
        f"--windows is {text!r}",
        "give a number of windows, 2 at least",
    )
    routed(cfg, "analyze")
    need(
        cfg.task.name == "text",
        f"the run's task is {cfg.task.name}",
        "analyze reads language models: task.name=text",
    )
    need(
        not cfg.quant.stored,
        "there are no gradients of int8 weights",
        "analyze the run that they were made from",
    )
    with folder.quiet(request.workdir / "log.txt", request.verbose):
        found = _facts(request, int(text))
    path = request.workdir / f"analysis-{found['split']}.json"
    folder.write_json(path, found)
    told, under = list(routing.tables(found)), list(routing.notes(found))
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
    parts = [f"## {title}\n\n{tables.markdown(rows, [])}\n" for title, rows in told]
    page = (
        f"# What the routing of {found['run']} goes with\n\n"
        + "\n".join([*parts, "\n\n".join(under)])
        + "\n"
    )
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    print(f"written: {path} and {path.with_suffix('.md')}")


def _facts(request: Request, windows: int) -> dict[str, Any]:
    """All that is told, as JSON holds it."""
    cfg, split = request.cfg, request.options.get("split", "valid")
    task = build(cfg)
    compile_cache(cfg.task.cache_dir)
    from cerebra_jax.analysis import saliency as gradients
    from cerebra_jax.models import registry
    from cerebra_jax.training import finished

    s = finished.load(cfg, task, request.workdir, print)
    state = s.state
    net, probe = s.model.net, gradients.probe(s.model)
    variables = {"params": state.params, "routing": state.routing}
    seen, batches = [], list(_spread(task, split, windows))
    for batch in batches:
        seen.append([np.asarray(x) for x in probe(variables, batch)])
    norm, nats_WxL, score, kept = (np.concatenate(x, axis=-2) for x in zip(*seen, strict=True))
    ids_WxL, w_WxL = (np.concatenate([b[key] for b in batches]) for key in ("inputs_BxL", "w_BxL"))
    real_WxL = (w_WxL > 0) & (ids_WxL != task.bos)
    real_WxL[:, 1:] &= w_WxL[:, :-1] > 0  # the loss of a token itself is told by the one before it
    real_WxL[:, 0] = False
    kinds_N, words_N = _kinds(task, ids_WxL, real_WxL)
    features = _features(task, ids_WxL, nats_WxL, norm, real_WxL, kinds_N, words_N)
    window_N = np.nonzero(real_WxL)[0]
    decided = {"kept": kept[:, real_WxL].astype(float), "score": score[:, real_WxL]}
    return _plain({
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
        "correlations": routing.correlations(decided, features, window_N),
        "characters": routing.by_class(decided["kept"], kinds_N, words.CLASSES, window_N),
        "words": routing.by_class(decided["kept"], words_N, words.WORD_KINDS, window_N),
        "gradients": routing.gradients(norm, kept, real_WxL),
        "notes": [s.notice] if s.notice else [],
    })  # fmt: skip


def _spread(task: Any, split: str, windows: int) -> list[dict[str, Any]]:
    """Batches from all over the split, of about so many windows together."""
    every = max(1, task.windows(split) // windows)
    batches = enumerate(task.eval_batches(split, BATCH))
    return [batch for i, batch in batches if i % every == 0]


def _kinds(task: Any, ids_WxL: np.ndarray, real_WxL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(class of its first character, kind of its word) of each of the N real tokens."""
    pieces = task.pieces(range(task.shape.vocab_size))
    rows = [[pieces[i] for i in row] for row in ids_WxL]
    both = (words.classes, words.word_kinds)
    return tuple(np.array([of(row) for row in rows])[real_WxL] for of in both)


def _features(
    task: Any,
    ids_WxL: np.ndarray,
    nats_WxL: np.ndarray,
    norm_RxWxL: np.ndarray,
    real_WxL: np.ndarray,
    kinds_N: np.ndarray,
    words_N: np.ndarray,
) -> dict[str, np.ndarray]:
    """{feature: (N,) or (R, N)} of the N real tokens."""
    own_WxL = np.roll(nats_WxL, 1, axis=1)
    return {
        "frequency in the training text": task.counts("train")[ids_WxL][real_WxL],
        **{name: kinds_N == name for name in words.CLASSES},
        "closed-class word": np.isin(words_N, words.CLOSED_CLASSES),
        "its own loss": own_WxL[real_WxL],
        "loss of the next token": nats_WxL[real_WxL],
        "position in the window": np.nonzero(real_WxL)[1],
        "gradient norm at the layer": norm_RxWxL[:, real_WxL],
    }


def _plain(value: Any) -> Any:
    """The value as JSON holds it: NaN becomes null."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
