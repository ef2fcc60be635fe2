"""ListOps with the rules of the Long Range Arena: what is the result of a nested list of digits?

python -m cerebra_jax.main --config=configs/listops.py[:PART[-PART…]]

    model   cerebra (default) | dense
    size    short (default): 30 to 256 tokens
            lra: 500 to 2,000 tokens and 100,000 expressions, for a GPU
    smoke   ends in seconds

At the Arena's lengths the outermost operator alone gives 36 %. What it gives in a run stands in its
result.json.

Measured on one core of a 2-core AMD EPYC (Zen 5), 2026-11-22, seed 0 only: test accuracy of 400
expressions after 3,000 steps, which took 10 and 15 minutes beside other work. Cerebra has 0.298 at
0.315 of the dense FLOPs, dense 0.353, and the outermost operator alone 0.340. So little is learnt
in that time. lra trains longer, for a GPU, and was not run.
"""

from cerebra_jax import config
from cerebra_jax.errors import UserError

MODELS = ("cerebra", "dense")
PARTS = (*MODELS, "short", "lra", "smoke")


def get_config(arg: str = ""):
    """The configuration of `arg`, parts joined by hyphens.

    UserError on a part that does not exist.
    """
    parts = [p for p in arg.split("-") if p]
    if wrong := [p for p in parts if p not in PARTS]:
        raise UserError(f"configs/listops.py has no part {wrong[0]!r}", f"use {', '.join(PARTS)}")
    if {"cerebra", "dense"} <= set(parts) or {"short", "lra"} <= set(parts):
        raise UserError("configs/listops.py got two models or two sizes", "name one of each")
    c = config.defaults()
    c.task.name = "listops"
    c.task.seq_len = 256
    c.task.shortest = 30
    c.task.rows = 20_000
    c.net.name = "transformer" if "dense" in parts else "cerebra"
    c.net.causal = False
    c.net.depth = 4
    c.net.width = 64
    c.net.heads = 4
    c.net.ffn_width = 256
    c.net.dropout = 0.1
    c.net.route.mode = "topk"
    c.net.route.part = "block"
    c.net.route.kv = "routed"
    c.net.compress.s = 0.25
    c.train.duration = "3000 steps"
    c.train.batch_size = 32
    c.train.lr = 1e-3
    c.train.warmup = "0.05 frac"
    c.train.weight_decay = 0.01
    if "lra" in parts:
        c.task.seq_len = 2000
        c.task.shortest = 500
        c.task.rows = 100_000
        c.net.width = 512
        c.net.heads = 8
        c.net.ffn_width = 1024
        c.net.dtype = "bfloat16"
        c.train.duration = "5000 steps"
        c.train.batch_size = 32
    if "smoke" in parts:
        c.task.seq_len = 64
        c.task.shortest = 10
        c.task.rows = 500
        c.net.depth = 2
        c.net.width = 32
        c.net.ffn_width = 64
        c.train.duration = "40 steps"
        c.train.batch_size = 16
        c.train.eval_every = "40 steps"
        c.train.checkpoint_every = "20 steps"
    return c
