"""A run from Python: trains it, loads its best checkpoint, and lets it answer.

run = cerebra_jax.load("runs/intent-s0")
run.predict(["when does the shop open"])        # {"prediction": ["hours"], "probability": [0.98]}
run.model, run.variables                        # the model and its weights, to apply to batches
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax import config
from cerebra_jax.config import RunCfg
from cerebra_jax.errors import UserError
from cerebra_jax.models import model as models
from cerebra_jax.models import sampling
from cerebra_jax.tasks.registry import build
from cerebra_jax.tasks.table import Table, read
from cerebra_jax.training import finished, trainer
from cerebra_jax.training import workdir as folder
from cerebra_jax.types import Batch

# what `predict` takes: a table, the path of a CSV file, columns by name, rows as dicts, or texts
TableLike = (
    str | Path | Table | Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | Sequence[str]
)


class Written(NamedTuple):
    """What `Trained.generate` wrote, one continuation a prompt."""

    texts: list[str]
    kept: float  # fraction of the routed tokens that took the heavy path
    rate: float  # tokens a second, prompts read included, compiling not


class _Lines:
    """Passes what a run says to a function, line by line; a `trainer.Screen`."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say

    def begin(self, total: int, done: int) -> None:
        """Does nothing: there is no progress bar."""

    def step(self, done: int, text: str, due: bool) -> None:
        if due:
            self.say(text)

    def end(self) -> None:
        """Does nothing: there is no progress bar."""


class Trained:
    """The best checkpoint of a run: its cfg, task, model, variables, step and validation score.

    Nothing in it is changed. score: less is better.
    """

    def __init__(self, workdir: str | Path, cfg: RunCfg | None = None, task: Any = None):
        """Reads the run in a folder; cfg and task are its own unless they are given.

        Raises UserError where the folder holds no run, or no checkpoint that was validated.
        """
        workdir = Path(workdir)
        self.cfg = cfg or _configuration(workdir)
        self.task = task or build(self.cfg)
        best = finished.load(self.cfg, self.task, workdir, print)
        self.step, self.score = best.step, best.score
        self.model, self.variables = best.model, best.variables
        self._logits = jax.jit(self._forward)

    def predict(self, rows: TableLike, batch_size: int = 64) -> dict[str, list]:
        """Returns the answers for rows like those of the training table: {"prediction": [...]}.

        Of classes, "probability" stands beside it. rows: a CSV file, columns by name, a list of
        dicts, or (for texts) a list of strings. Raises UserError for a column that is missing, and
        for a task that has no rows.
        """
        if not hasattr(self.task, "inputs"):
            raise UserError(
                f"the run's task is {self.cfg.task.name}", "predict answers for tables and intents"
            )
        table = _table(rows)
        given = self.task.given(self.task.inputs(table))
        found = []
        for batch in given.eval_batches("given", batch_size):
            logits_Bx1xV = self._logits(self.variables, batch)
            chex.assert_shape(logits_Bx1xV, (len(batch["ex_B"]), 1, None))
            found.append(np.asarray(logits_Bx1xV)[:, 0])
        logits_NxV = np.concatenate(found)[: table.rows]
        return self.task.answers(logits_NxV)

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Written:
        """Continues prompts by a language model, in one batch with a cache.

        temperature: 0 writes the likeliest tokens. top_p: draws from the fewest tokens that hold
        this probability. Raises UserError for another task, and for prompts that do not fit.
        """
        # prompts as tokens, each behind the mark that begins a text
        if self.cfg.task.name != "text":
            raise UserError(
                f"the run's task is {self.cfg.task.name}", "generate continues text: task.name=text"
            )
        rows = [[self.task.bos, *self.task.encode(prompt)] for prompt in prompts]
        length_B = np.array([len(row) for row in rows], np.int32)
        longest = int(length_B.max())
        L = self.task.shape.seq_len
        if longest + max_tokens > L:
            raise UserError(
                f"a prompt of {longest - 1:,} tokens, the mark before it and {max_tokens:,} more "
                f"exceed {L:,}",
                "shorten the prompt, or give a smaller --max_tokens",
            )
        prompt_BxP = np.array([np.pad(row, (0, longest - len(row))) for row in rows], np.int32)
        chex.assert_shape(prompt_BxP, (len(prompts), longest))

        # write, with compiling outside of the time
        def write(variables, key, prompt_BxP, length_B):
            prompts = sampling.Prompts(prompt_BxP, length_B)
            drawing = sampling.Drawing(temperature, top_p)
            return sampling.generate(self.model, variables, key, prompts, max_tokens, drawing)

        inputs = (self.variables, jax.random.key(seed), prompt_BxP, length_B)
        compiled = jax.jit(write).lower(*inputs).compile()
        start = time.perf_counter()
        token_BxT, cache = jax.block_until_ready(compiled(*inputs))
        seconds = time.perf_counter() - start
        chex.assert_shape(token_BxT, (len(prompts), max_tokens))

        # the fraction of the written tokens that were kept
        kept_RxBxL = np.asarray(cache.kept_RxBxL)
        kept = [kept_RxBxL[:, b, n : n + max_tokens].ravel() for b, n in enumerate(length_B)]
        texts = [self.task.decode(token_T) for token_T in np.asarray(token_BxT)]
        kept_fraction = float(np.mean(kept)) if kept_RxBxL.size else 0.0
        return Written(texts, kept_fraction, token_BxT.size / seconds)

    def _forward(self, variables: Any, batch: Batch) -> jax.Array:
        """Returns the logits of a batch in float32, (B, L, V), or (B, 1, V) with a pooled head."""
        out, _ = self.model.apply(variables, batch, models.neutral_knobs())
        h_BxLxD = out.h.astype(jnp.float32)
        return jnp.einsum("bld,vd->blv", h_BxLxD, out.head_VxD.astype(jnp.float32))


def load(workdir: str | Path) -> Trained:
    """Returns the best checkpoint of a run, to predict or generate with.

    Raises UserError where the folder holds none.
    """
    return Trained(workdir)


def train(cfg: RunCfg, workdir: str | Path, say: Callable[[str], None] = print) -> Trained:
    """Trains a run to its end in a folder, and returns its best checkpoint.

    The same call resumes a run that was interrupted, and returns one that has ended at once. The
    folder holds what the command line leaves there: config.json, metrics.jsonl, result.json and
    checkpoints. say: takes what the run says, line by line. Raises UserError where the folder holds
    another run, and Diverged where the loss stayed non-finite.
    """
    workdir = Path(workdir)
    folder.prepare(workdir, False, say)
    with folder.locked(workdir, say):
        folder.claim(workdir, cfg)
        task = build(cfg, say)
        if folder.read_json(workdir / "result.json") is None:
            result = trainer.run(cfg, task, workdir, _Lines(say))
            folder.write_json(workdir / "result.json", result)
    return Trained(workdir, cfg, task)


def _configuration(workdir: Path) -> RunCfg:
    file = workdir / "config.json"
    if not file.is_file():
        raise UserError(f"{workdir} holds no run", "give the folder of one: it has a config.json")
    return config.parse(file.read_text(encoding="utf-8"))


def _table(rows: TableLike) -> Table:
    """Returns rows in any of their forms as columns of text.

    Raises UserError where there are none, or where they do not fit together.
    """
    if isinstance(rows, Table):
        return rows
    if isinstance(rows, str | Path):
        return read(str(rows))
    columns = {name: [_text(x) for x in column] for name, column in _columns(rows).items()}
    sizes = sorted({len(column) for column in columns.values()})
    if len(sizes) != 1 or sizes == [0]:
        shown = ", ".join(map(str, sizes)) or "no"
        raise UserError(f"the columns have {shown} rows", "give as many to each")
    return Table("the rows", columns)


def _columns(rows: Any) -> Mapping[str, Sequence[Any]]:
    """Returns columns by name of columns, of texts, or of dicts; a dict may lack some names."""
    if isinstance(rows, Mapping):
        return rows
    rows = list(rows)
    if all(isinstance(row, str) for row in rows):
        return {"text": rows}
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _text(value: Any) -> str:
    return "" if value is None else str(value)
