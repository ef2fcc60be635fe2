"""One network for three tasks: a text, texts with labels, and ListOps, through the whole trunk of
CHIAR.

python -m cerebra_jax.main --config=configs/mixed.py[:PART[-PART…]]

    model   chiar (default) | dense          gate    task: a gate of the MetaRouter for each task, not for each prefix
    smoke   made-up utterances, small expressions; ends in seconds

The text is WikiText-2 (task.data_dir: your own), the labelled texts IMDB reviews
(--config.task.tfds=imdb_reviews, the default; task.path: a file of your own), the expressions are
made. All are cut at task.seq_len. Gates by task stand in metrics.jsonl under gates,
meta_gate_of_task, in the order text, labels, ListOps. Not measured: it ran as smoke only.
"""

from cerebra_jax import config
from cerebra_jax.errors import UserError

PARTS = ("chiar", "dense", "task", "smoke")


def get_config(arg: str = ""):
    """The configuration of `arg`, parts joined by hyphens.

    UserError on a part that does not exist.
    """
    parts = [p for p in arg.split("-") if p]
    if wrong := [p for p in parts if p not in PARTS]:
        raise UserError(f"configs/mixed.py has no part {wrong[0]!r}", f"use {', '.join(PARTS)}")
    if {"chiar", "dense"} <= set(parts):
        raise UserError("configs/mixed.py got two models, chiar and dense", "name one")
    c = config.defaults()
    c.task.name, c.task.tokenizer, c.task.tfds = "mixed", "bytes", "imdb_reviews"
    c.task.seq_len, c.task.shortest, c.task.rows = 256, 30, 20_000
    c.net.name = "transformer" if "dense" in parts else "chiar"
    c.net.route.meta = "task" if "task" in parts else "prefix"
    c.train.batch_size, c.train.duration = 24, "3000 steps"
    if "smoke" in parts:
        c.task.tfds, c.task.seq_len, c.task.shortest, c.task.rows = "", 48, 8, 300
        c.net.depth, c.net.width, c.net.heads, c.net.ffn_width = 3, 32, 2, 64
        c.train.duration, c.train.batch_size = "20 steps", 6
        c.train.eval_every, c.train.checkpoint_every = "20 steps", "10 steps"
    return c
