"""ListOps with the rules of the Long Range Arena: what is the result of a nested list of digits?

python -m cerebra_jax.main --config=configs/listops.py[:PART[-PART…]]

    model   cerebra (default) | dense            smoke: ends in seconds
    size    short (default: 30 to 256 tokens) | lra (500 to 2,000 tokens, 100,000 expressions: for a GPU)

At the Arena's lengths the outermost operator alone gives 36 %; what it gives in this run stands in
result.json. Measured on one core of a 2-core AMD EPYC (Zen 5), 2026-11-22, seed 0 only, test
accuracy of 400 expressions after 3,000 steps, 10 and 15 minutes beside other work: cerebra 0.298 at
0.315 of the dense FLOPs, dense 0.353, the outermost operator alone 0.340. So little is learnt in
that time; lra trains longer, for a GPU, and was not run.
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
    c.task.name, c.task.seq_len, c.task.shortest, c.task.rows = "listops", 256, 30, 20_000
    c.net.name, c.net.causal = "transformer" if "dense" in parts else "cerebra", False
    c.net.depth, c.net.width, c.net.heads, c.net.ffn_width, c.net.dropout = 4, 64, 4, 256, 0.1
    c.net.route.mode, c.net.route.part, c.net.route.kv, c.net.compress.s = (
        "topk",
        "block",
        "routed",
        0.25,
    )
    c.train.duration, c.train.batch_size, c.train.lr, c.train.warmup = (
        "3000 steps",
        32,
        1e-3,
        "0.05 frac",
    )
    c.train.weight_decay = 0.01
    if "lra" in parts:
        c.task.seq_len, c.task.shortest, c.task.rows = 2000, 500, 100_000
        c.net.width, c.net.heads, c.net.ffn_width, c.net.dtype = 512, 8, 1024, "bfloat16"
        c.train.duration, c.train.batch_size = "5000 steps", 32
    if "smoke" in parts:
        c.task.seq_len, c.task.shortest, c.task.rows = 64, 10, 500
        c.net.depth, c.net.width, c.net.ffn_width = 2, 32, 64
        c.train.duration, c.train.batch_size = "40 steps", 16
        c.train.eval_every, c.train.checkpoint_every = "40 steps", "20 steps"
    return c
