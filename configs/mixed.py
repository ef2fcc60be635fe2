"""One network for three tasks: a text, texts with labels, and ListOps, through the trunk of CHIAR.

python -m cerebra_jax.main --config=configs/mixed.py[:PART[-PART…]]

    model   chiar (default) | dense
    task    the MetaRouter has a gate for each task; without it, for each prefix
    smoke   made-up utterances and small expressions; ends in seconds

The text is WikiText-2, or your own in task.data_dir. The labelled texts are IMDB reviews
(--config.task.tfds=imdb_reviews, the default), or a file of your own in task.path. The expressions
are made. All are cut at task.seq_len. Gates by task stand in metrics.jsonl under gates,
meta_gate_of_task, in the order text, labels, ListOps. This was not measured: it ran as smoke only.
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
    c.task.name = "mixed"
    c.task.tokenizer = "bytes"
    c.task.tfds = "imdb_reviews"
    c.task.seq_len = 256
    c.task.shortest = 30
    c.task.rows = 20_000
    c.net.name = "transformer" if "dense" in parts else "chiar"
    c.net.route.meta = "task" if "task" in parts else "prefix"
    c.train.batch_size = 24
    c.train.duration = "3000 steps"
    if "smoke" in parts:
        c.task.tfds = ""
        c.task.seq_len = 48
        c.task.shortest = 8
        c.task.rows = 300
        c.net.depth = 3
        c.net.width = 32
        c.net.heads = 2
        c.net.ffn_width = 64
        c.train.duration = "20 steps"
        c.train.batch_size = 6
        c.train.eval_every = "20 steps"
        c.train.checkpoint_every = "10 steps"
    return c
