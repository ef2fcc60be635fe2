"""Long texts with labels, read as bytes: IMDB reviews, as in the Long Range Arena.

python -m cerebra_jax.main --config=configs/imdb.py[:PART[-PART…]]
python -m cerebra_jax.main --config=configs/imdb.py:dense-long

    model   cerebra (default) | dense | ssm
    long    4,000 bytes, the length of the Long Range Arena; without it 1,000
    smoke   made-up utterances, no file and no network; ends in seconds

There are 25,000 reviews each for training and test. A tenth of the former is the validation split,
rows by numpy's RandomState(42). The first run downloads 80 MiB (with tensorflow-datasets, without
TensorFlow) and keeps them in the cache. Any other data set: --config.task.tfds=NAME, and
--config.task.tokenizer=bpe or words. What does not fit in task.seq_len is cut, and a line says so.

This was not run here: there was no network, and 2 CPU cores are too few. The Transformer of the
Long Range Arena (arXiv:2011.04006, table 1) reports an accuracy of 64.27 % at 4,000 bytes, where
50 % is chance.
"""

from cerebra_jax import config
from cerebra_jax.errors import UserError

MODELS = {"cerebra": "cerebra", "dense": "transformer", "ssm": "ssm"}
PARTS = (*MODELS, "long", "smoke")


def get_config(arg: str = ""):
    """The configuration of `arg`, parts joined by hyphens.

    UserError on a part that does not exist.
    """
    parts = [p for p in arg.split("-") if p]
    if wrong := [p for p in parts if p not in PARTS]:
        raise UserError(f"configs/imdb.py has no part {wrong[0]!r}", f"use {', '.join(PARTS)}")
    if len(chosen := [p for p in parts if p in MODELS]) > 1:
        raise UserError(f"configs/imdb.py got two models, {' and '.join(chosen)}", "name one")
    c = config.defaults()
    c.task.name = "intent"
    c.task.tfds = "imdb_reviews"
    c.task.tokenizer = "bytes"
    c.task.seq_len = 4000 if "long" in parts else 1000
    c.net.name = MODELS[chosen[0] if chosen else "cerebra"]
    c.net.causal = False
    c.net.depth = 4
    c.net.width = 256
    c.net.heads = 4
    c.net.ffn_width = 1024
    c.net.dropout = 0.1
    if c.net.name == "cerebra":  # a quarter of the bytes heavy
        c.net.route.mode = "topk"
        c.net.route.part = "block"
        c.net.route.kv = "routed"
        c.net.compress.s = 0.25
    c.train.duration = "20 epochs"
    c.train.batch_size = 32
    c.train.lr = 5e-4
    c.train.warmup = "0.1 frac"
    c.train.eval_every = "0.05 frac"
    c.train.checkpoint_every = "0.05 frac"
    if "smoke" in parts:
        c.task.tfds = ""
        c.task.seq_len = 48
        c.net.depth = 2
        c.net.width = 32
        c.net.heads = 2
        c.net.ffn_width = 64
        c.train.duration = "40 steps"
        c.train.batch_size = 32
        c.train.eval_every = "20 steps"
        c.train.checkpoint_every = "20 steps"
    return c
