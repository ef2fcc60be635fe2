"""Regression or classification of any table (CSV): Cerebra encoder or dense Transformer, a token
per column.

python -m cerebra_jax.main --config=configs/tabular.py[:PART[-PART…]] python -m cerebra_jax.main
--config=configs/tabular.py --config.task.path=FILE.csv --config.task.target=NAME

    model   cerebra (default) | dense            smoke: ends in seconds
    full    the paper's whole recipe on cerebra: warm, ramp of λ on a learned threshold, pruning, 8 bits (extra quant),
            sampler, one after the other; metrics.jsonl names the phases. Then come `shrink` and `convert`
    data    made-up rents (default, from a seed: no file, no network) | salaries (ai-jobs.net; give --config.task.path)

Types of columns are inferred; --config.task.types=NAME:category,OTHER:number says otherwise,
--config.task.ignore=A,B leaves columns out. A target of numbers is a regression, one of anything
else a classification.

Measured on one core of a shared 2-core AMD EPYC (Zen 5), 10 epochs, half a minute each, 3 seeds, 2026-11-22; test RMSE:
    made-up rents   107.1 ± 0.8, dense 104.3 ± 0.8; floor 90.2, the noise of the data
    salaries        53,761 ± 174 USD, dense 53,719 ± 147; the best function of the columns has 51,759
                    on the whole table, R2 0.435: an R2 far above that is a leak
The ablation of both: configs/sweeps/ablation.py.
"""

from cerebra_jax import config
from cerebra_jax.errors import UserError

MODELS = ("cerebra", "dense")
PARTS = (*MODELS, "salaries", "full", "smoke")


def get_config(arg: str = ""):
    """The configuration of `arg`, parts joined by hyphens.

    UserError on a part that does not exist.
    """
    parts = [p for p in arg.split("-") if p]
    if wrong := [p for p in parts if p not in PARTS]:
        raise UserError(f"configs/tabular.py has no part {wrong[0]!r}", f"use {', '.join(PARTS)}")
    if len(chosen := [p for p in parts if p in MODELS]) > 1:
        raise UserError(f"configs/tabular.py got two models, {' and '.join(chosen)}", "name one")
    c = config.defaults()
    c.task.name, c.task.seq_len = "tabular", 0
    if "salaries" in parts:  # salary and its currency are the target in another unit
        c.task.path = "salaries.csv"
        c.task.target, c.task.ignore = "salary_in_usd", "salary,salary_currency"
        c.task.types = "*:category"
    c.net.name = "transformer" if "dense" in parts else "cerebra"
    c.net.causal, c.net.depth, c.net.width, c.net.heads, c.net.ffn_width = False, 3, 64, 4, 256
    c.net.dropout = 0.1
    if c.net.name == "cerebra":
        # 3 of 9 tokens heavy, 3 compressed tokens of width 16 for the others: 0.497 of the dense FLOPs are executed.
        # Pooling by attention, because neighbouring columns have nothing in common that a convolution could use.
        c.net.route.mode, c.net.route.part, c.net.route.kv = "topk", "block", "routed"
        c.net.compress.kind, c.net.compress.s = "attention", 0.25
    c.train.duration, c.train.batch_size, c.train.lr, c.train.warmup = (
        "10 epochs",
        128,
        1e-3,
        "0.05 frac",
    )
    c.train.weight_decay = 0.01
    c.train.eval_every, c.train.checkpoint_every = "1 epochs", "2 epochs"
    if "full" in parts:
        if c.net.name != "cerebra":
            raise UserError("configs/tabular.py: full is for cerebra", "leave out dense")
        c.net.route.mode, c.net.route.tau, c.objective.lam = "threshold", "learned", 1e-2
        c.prune.keep, c.prune.start, c.prune.end = 0.75, "0.5 frac", "0.7 frac"
        c.quant.bits, c.quant.start = 8, "0.75 frac"
        c.sampler.beta, c.sampler.gamma, c.sampler.start = 0.5, 2.0, "0.85 frac"
    if "smoke" in parts:
        c.net.depth, c.net.width, c.net.heads, c.net.ffn_width = 2, 32, 2, 64
        c.train.duration, c.train.batch_size = "40 steps", 64
        c.train.eval_every, c.train.checkpoint_every = "20 steps", "20 steps"
        c.prune.rounds = 3
    return c
