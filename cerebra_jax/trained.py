"""A finished run from Python: `cerebra_jax.load("runs/x")` predicts, generates, or gives its model and weights.

run = cerebra_jax.load("runs/intent-s0")
run.predict(["when does the shop open"])        # {"prediction": ["hours"], "probability": [0.98]}
out, aux = run.model.apply(run.variables, batch, cerebra_jax.models.model.neutral_knobs())
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax import config
from cerebra_jax.checks import need
from cerebra_jax.errors import UserError
from cerebra_jax.models import model as models
from cerebra_jax.models import sampling as sample
from cerebra_jax.tasks.registry import build
from cerebra_jax.tasks.table import Table, read
from cerebra_jax.training import certificate
from cerebra_jax.training import experiment as session
from cerebra_jax.types import Batch

Rows = (
    str | Path | Table | Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | Sequence[str]
)


class Written(NamedTuple):
    """What `Trained.generate` wrote, one continuation a prompt."""

    texts: list[str]
    kept: float  # share of the routed tokens that took the heavy path
    rate: float  # tokens a second, prompts read included, compiling not


class Trained:
    """The best checkpoint of a run: its configuration, task, model and variables; nothing in it is changed."""

    def __init__(self, workdir: str | Path, cfg: config.RunCfg | None = None, task: Any = None):
        workdir = Path(workdir)
        if cfg is None:
            file = workdir / "config.json"
            need(
                file.is_file(),
                f"{workdir} holds no run",
                "give the folder of one: it has a config.json",
            )
            cfg = config.parse(file.read_text(encoding="utf-8"))
        self.cfg, self.task = cfg, task or build(cfg)
        s = session.Session(cfg, self.task)
        state, self.score = certificate.scored(cfg, self.task, workdir, print)
        self.step = int(state.step)
        s.adopt_of(state)
        self.model = s.model
        self.variables = {"params": state.params, "routing": state.routing}

        def logits(variables, batch: Batch):
            out, _ = self.model.apply(variables, batch, models.neutral_knobs())
            return jnp.einsum(
                "bld,vd->blv", out.h.astype(jnp.float32), out.head_VxD.astype(jnp.float32)
            )

        self._logits = jax.jit(logits)

    def predict(self, rows: Rows, batch_size: int = 64) -> dict[str, list]:
        """Answers for rows like those of the training table: {"prediction": [...]}, of classes "probability" too.

        rows: a CSV file, columns by name, a list of dicts, or (texts) a list of strings. UserError names a column that
        is missing, and a task that has no rows.
        """
        what = f"the run's task is {self.cfg.task.name}"
        need(hasattr(self.task, "inputs"), what, "predict answers for tables and intents")
        table = _table(rows)
        given = self.task.given(self.task.inputs(table))
        found = []
        for batch in given.eval_batches("given", batch_size):
            found.append(np.asarray(self._logits(self.variables, batch))[:, 0])
        return self.task.answers(np.concatenate(found)[: table.rows])

    def generate(self, prompts: Sequence[str], max_tokens: int = 64, temperature: float = 1.0, top_p: float = 1.0,
                 seed: int = 0) -> Written:  # fmt: skip
        """Continuations of prompts by a language model, in one batch with a cache; temperature=0: the likeliest."""
        task = self.task
        need(self.cfg.task.name == "text", f"the run's task is {self.cfg.task.name}",
             "generate continues text: task.name=text")  # fmt: skip
        rows = [[task.bos, *task.encode(prompt)] for prompt in prompts]
        length_B, L = np.array([len(row) for row in rows], np.int32), task.shape.seq_len
        what = f"a prompt of {max(length_B) - 1:,} tokens, the mark before it and {max_tokens:,} more exceed {L:,}"
        need(
            max(length_B) + max_tokens <= L,
            what,
            "shorten the prompt, or give a smaller --max_tokens",
        )
        prompt_BxP = np.stack([np.pad(row, (0, max(length_B) - len(row))) for row in rows]).astype(
            np.int32
        )
        args = (self.variables, jax.random.key(seed), prompt_BxP, length_B)
        write = jax.jit(
            lambda *args: sample.generate(self.model, *args, max_tokens, temperature, top_p)
        )
        write = write.lower(*args).compile()
        start = time.perf_counter()
        token_BxT, cache = jax.block_until_ready(write(*args))
        rate = token_BxT.size / (time.perf_counter() - start)
        kept = [
            np.asarray(cache.kept_RxBxL)[:, b, n : n + max_tokens].ravel()
            for b, n in enumerate(length_B)
        ]
        texts = [task.decode(ids) for ids in np.asarray(token_BxT)]
        return Written(texts, float(np.mean(kept)) if kept[0].size else 0.0, rate)


def _table(rows: Rows) -> Table:
    """Rows in any of their forms as columns of text; UserError where there are none, or they do not fit together."""
    if isinstance(rows, Table):
        return rows
    if isinstance(rows, str | Path):
        return read(str(rows))
    if not isinstance(rows, Mapping):
        rows = list(rows)
        if all(isinstance(row, str) for row in rows):
            rows = {"text": rows}
        else:
            names = dict.fromkeys(name for row in rows for name in row)
            rows = {name: [row.get(name) for row in rows] for name in names}
    columns = {name: ["" if x is None else str(x) for x in column] for name, column in rows.items()}
    sizes = {len(column) for column in columns.values()}
    if len(sizes) != 1 or sizes == {0}:
        raise UserError(
            f"the columns have {', '.join(map(str, sorted(sizes))) or 'no'} rows",
            "give as many to each",
        )
    return Table("the rows", columns)
