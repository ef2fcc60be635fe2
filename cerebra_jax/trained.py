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
from cerebra_jax.config import RunCfg, reads
from cerebra_jax.errors import UserError
from cerebra_jax.models import model as models
from cerebra_jax.models import sampling
from cerebra_jax.tasks import judged
from cerebra_jax.tasks.table import FOUND_OUT, Format, Table, of_arrow, plain, read
from cerebra_jax.tasks.task import no_data
from cerebra_jax.training import finished, preprocessing, trainer
from cerebra_jax.training import workdir as folder
from cerebra_jax.types import Batch

# what `predict` takes: a table, the path of a file, a DataFrame or whatever speaks Arrow, columns
# by name, an array (N, columns of the run), rows as dicts, one dict, or texts
TableLike = Any


class Written(NamedTuple):
    """What `Trained.generate` wrote, one continuation a prompt."""

    texts: list[str]
    kept: float  # fraction of the routed tokens that took the heavy path
    rate: float  # tokens a second, prompts read included, compiling not
    turns: int = 1  # more than one: the text is longer than the context
    cut: int = 0  # prompts that are, of which the last half of a context was read


class _Turn(NamedTuple):
    """What was written at once: tokens, which decisions kept them, and the time it took."""

    token_BxT: np.ndarray
    kept: np.ndarray
    seconds: float


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
        self.task: Any = task or preprocessing.restore(self.cfg, workdir, print)
        best = finished.load(self.cfg, self.task, workdir, print)
        self.step, self.score = best.step, best.score
        self.model, self.variables = best.model, best.variables
        self._logits = jax.jit(self._forward)
        self._writers: dict[tuple, Any] = {}  # compiled programs that write, by their shapes

    def predict(self, rows: TableLike, batch_size: int = 64) -> dict[str, list]:
        """Returns the answers for rows like those of the training table: {"prediction": [...]}.

        Of classes, "probability" stands beside it, and "probability of CLASS" of each. rows: a
        file, a DataFrame, columns by name, a list of dicts, one dict, an array with the run's
        columns in order (`task.columns`), or (for texts) a list of strings. Raises UserError for a
        column that is missing, and for a task that has no rows.
        """
        if not hasattr(self.task, "inputs"):
            raise UserError(
                f"the run's task is {self.cfg.task.name}", "predict answers for tables and intents"
            )
        form = Format(self.cfg.task.delimiter, self.cfg.task.encoding)
        table = _table(rows, getattr(self.task, "columns", ()), form)
        given = self.task.given(self.task.inputs(table))
        found = self._outputs(given, table.rows, batch_size)
        for i in np.flatnonzero(~np.isfinite(found).all(axis=1))[:1]:
            hint = "look for a number far from those of the training rows"
            raise UserError(f"{table.place(int(i))}: the answer is not a finite number", hint)
        return self.task.answers(found)

    def judge(self, split: str = "test", batch_size: int = 64) -> dict[str, Any]:
        """Returns figures of each class on a split, as `tasks.judged.judge` has them.

        Raises UserError for a run that tells no classes apart, and where its data are not at hand.
        """
        if not getattr(self.task, "classes", None):
            raise UserError("the run tells no classes apart", "eval has its figures")
        if self.task.kept_info:
            no_data()
        given, label_N = self.task.asked(split)
        logits_NxC = self._outputs(given, len(label_N), batch_size)
        return judged.judge(logits_NxC, label_N, self.task.classes)

    def _outputs(self, given: Any, rows: int, batch_size: int) -> np.ndarray:
        """Returns the outputs of a pooled head for so many given rows, (N, V) float32."""
        found = []
        for batch in given.eval_batches("given", batch_size):
            logits_Bx1xV = self._logits(self.variables, batch)
            chex.assert_shape(logits_Bx1xV, (len(batch["ex_B"]), 1, None))
            found.append(np.asarray(logits_Bx1xV)[:, 0])
        return np.concatenate(found)[:rows]

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str = "",
    ) -> Written:
        """Continues prompts by a language model, in one batch with a cache.

        temperature: 0 writes the likeliest tokens. top_p: draws from the fewest tokens that hold
        this probability. stop: a mark before which a text ends. A prompt may be empty. What does
        not fit into the context of L tokens is written in turns, each of which sees the last L / 2
        tokens of the one before. Raises UserError for another task.
        """
        if self.cfg.task.name != "text":
            raise UserError(
                f"the run's task is {self.cfg.task.name}", "generate continues text: task.name=text"
            )
        # prompts as tokens, each behind the mark that begins a text
        L = self.task.shape.seq_len
        rows = [[self.task.bos, *self.task.encode(prompt)] for prompt in prompts]
        cut = sum(len(row) >= L for row in rows)
        rows = [row if len(row) < L else row[-(L // 2) :] for row in rows]
        drawing = sampling.Drawing(temperature, top_p)
        key = jax.random.key(seed)

        # turns, until all is written or every text has its mark
        new: list[list[int]] = [[] for _ in rows]
        kept: list[np.ndarray] = []
        turns, seconds, count = 0, 0.0, 0
        while count < max_tokens and not all(stop and stop in self.task.decode(x) for x in new):
            room = L - max(map(len, rows))
            n = min(room, max_tokens - count)
            own_key = jax.random.fold_in(key, turns) if turns else key
            turn = self._turn(rows, n, drawing, own_key)
            written = turn.token_BxT.tolist()
            for own, tokens in zip(new, written, strict=True):
                own += tokens
            kept.append(turn.kept)
            seconds += turn.seconds
            rows = [(row + own)[-(L // 2) :] for row, own in zip(rows, written, strict=True)]
            turns, count = turns + 1, count + n
        texts = [_until(stop, self.task.decode(own)) for own in new]
        decided = np.concatenate(kept)
        kept_fraction = float(decided.mean()) if decided.size else 0.0
        return Written(texts, kept_fraction, count * len(rows) / seconds, turns, cut)

    def _turn(
        self, rows: list[list[int]], n: int, drawing: sampling.Drawing, key: jax.Array
    ) -> _Turn:
        """Writes n tokens behind each row; their sum fits into the context."""
        length_B = np.array([len(row) for row in rows], np.int32)
        longest = int(length_B.max())
        prompt_BxP = np.array([np.pad(row, (0, longest - len(row))) for row in rows], np.int32)
        chex.assert_shape(prompt_BxP, (len(rows), longest))

        def write(variables, key, prompt_BxP, length_B):
            prompts = sampling.Prompts(prompt_BxP, length_B)
            return sampling.generate(self.model, variables, key, prompts, n, drawing)

        # compiling is outside of the time
        inputs = (self.variables, key, prompt_BxP, length_B)
        shapes = (prompt_BxP.shape, n, drawing)
        if shapes not in self._writers:
            self._writers[shapes] = jax.jit(write).lower(*inputs).compile()
        start = time.perf_counter()
        token_BxT, cache = jax.block_until_ready(self._writers[shapes](*inputs))
        seconds = time.perf_counter() - start
        chex.assert_shape(token_BxT, (len(rows), n))

        # which of the written tokens were kept
        kept_RxBxL = np.asarray(cache.kept_RxBxL)
        kept = [kept_RxBxL[:, b, at : at + n].ravel() for b, at in enumerate(length_B)]
        return _Turn(np.asarray(token_BxT), np.concatenate(kept), seconds)

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
    workdir, cfg = Path(workdir), reads.watched(cfg)
    folder.prepare(workdir, False, say)
    with folder.locked(workdir, say):
        folder.claim(workdir, cfg, say)
        task = preprocessing.build(cfg, workdir, say)
        if folder.result(workdir) is None:
            result = trainer.run(cfg, task, workdir, _Lines(say))
            folder.write_json(workdir / "result.json", result)
    return Trained(workdir, cfg, task)


def _configuration(workdir: Path) -> RunCfg:
    file = workdir / "config.json"
    if not file.is_file():
        raise UserError(f"{workdir} holds no run", "give the folder of one: it has a config.json")
    return config.read_data(file)


def _until(mark: str, text: str) -> str:
    return text.partition(mark)[0] if mark else text


def _table(rows: Any, names: Sequence[str] = (), form: Format = FOUND_OUT) -> Table:
    """Returns rows in any of their forms as columns of text.

    `names` are those of an array, `form` is how a file is written.
    Raises UserError where there are none, or where they do not fit together.
    """
    if isinstance(rows, Table):
        return rows
    if isinstance(rows, str | Path):
        return read(str(rows), form)
    if hasattr(rows, "__arrow_c_stream__"):  # a DataFrame, an Arrow table
        import pyarrow

        return of_arrow(pyarrow.table(rows), "the rows")
    columns = {name: [plain(x) for x in column] for name, column in _columns(rows, names).items()}
    sizes = sorted({len(column) for column in columns.values()})
    if len(sizes) != 1 or sizes == [0]:
        shown = ", ".join(map(str, sizes)) or "no"
        raise UserError(f"the columns have {shown} rows", "give as many to each")
    return Table("the rows", columns)


def _columns(rows: Any, names: Sequence[str]) -> Mapping[str, Sequence[Any]]:
    """Returns columns by name of columns, of texts, of dicts, of one dict, or of an array.

    A dict may lack some names. The columns of an array are in the order of the run's.
    """
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # an older DataFrame
        return {str(name): rows[name].tolist() for name in rows.columns}
    if isinstance(rows, Mapping):
        one = not any(isinstance(x, list | tuple | np.ndarray) for x in rows.values())
        return {name: [x] for name, x in rows.items()} if one else rows
    if isinstance(rows, np.ndarray) and rows.ndim == 2 and names:
        if rows.shape[1] != len(names):
            what = f"the array has {rows.shape[1]} columns, the run has {len(names)}"
            raise UserError(what, f"give them in this order: {', '.join(names)}")
        return {name: rows[:, i].tolist() for i, name in enumerate(names)}
    rows = list(rows.tolist() if isinstance(rows, np.ndarray) else rows)
    if all(isinstance(row, str) for row in rows):
        return {"text": rows}
    if not all(isinstance(row, Mapping) for row in rows):
        what = f"rows are a list of {type(rows[0]).__name__}"
        raise UserError(what, "give dicts, texts, columns by name, a DataFrame or a CSV file")
    found = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in found}
