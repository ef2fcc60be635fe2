"""Long-range recall: what stood far back? The data are synthetic and made on the fly.

python -m cerebra_jax.main --config=configs/longseq.py[:PART[-PART…]]

    task    mqar (default) | selective | copy | masked | induction
    model   cerebra (default) | oracle | random | dense | mod | window | ssm | lstm
    encoder the model reads the whole input, with top-k; masked does so always
    smoke   ends in seconds

--config.task.seq_len=L sets the length, --config.task.pairs=K what is to be remembered.

oracle and random are cerebra with its slots. The oracle fills them by what the task says its
answers need, which is the best a router could do; random fills them by chance. A causal cerebra
ends at half of the dense FLOPs (objective.budget), an encoder keeps a quarter of the tokens
(net.route.rate). The answers need 3 task.pairs tokens of mqar, and 2 task.pairs of selective and
masked; `overflow` in metrics.jsonl says what found no slot. copy needs every token, so it has no
oracle.

Measured on one core of a shared 2-core AMD EPYC (Zen 5), 3 seeds: test accuracy. Cerebra, random
and oracle end at half of dense's FLOPs.
    mqar, 4,000 steps, 5 minutes, dense 8 with pauses
        dense 1.000, cerebra 0.678 ± 0.099, random 0.598 ± 0.101, oracle 0.127 ± 0.002;
        oracle with every token a key (--config.net.route.kv=all) 1.000;
        with slots in layer 2 (--config.net.route.by_layer=0.1,1.9): cerebra 0.889 ± 0.096,
        random 0.400 ± 0.021 (Zen 4)
    selective, 2,000 steps, 3 minutes
        dense 0.981 ± 0.011, cerebra 0.848 ± 0.031, random 0.601 ± 0.008, oracle 0.845 ± 0.010;
        oracle with every token a key 0.658 ± 0.005
Dense with L = 256, 16 pairs and 512 symbols has 0.9925 (validation) after 1,250 steps, 7 minutes of
CPU time. All figures: configs/sweeps/recall.py and benchmarks/results/README.md. copy and induction
were not measured.
"""

from cerebra_jax import config
from cerebra_jax.errors import UserError

TASKS = ("mqar", "selective", "copy", "masked", "induction")
ROUTERS = ("oracle", "random")
MODELS = {
    "cerebra": "cerebra", "dense": "transformer", "mod": "mod", "window": "window", "ssm": "ssm",
    "lstm": "lstm",
    **dict.fromkeys(ROUTERS, "cerebra"),
}  # fmt: skip
PARTS = (*TASKS, *MODELS, "encoder", "smoke")


def get_config(arg: str = ""):
    """The configuration of `arg`, parts joined by hyphens.

    UserError on a part that does not exist.
    """
    parts = [p for p in arg.split("-") if p]
    if wrong := [p for p in parts if p not in PARTS]:
        raise UserError(f"configs/longseq.py has no part {wrong[0]!r}", f"use {', '.join(PARTS)}")
    for kind, choices in (("tasks", TASKS), ("models", MODELS)):
        if len(chosen := [p for p in parts if p in choices]) > 1:
            raise UserError(
                f"configs/longseq.py got two {kind}, {' and '.join(chosen)}", "name one"
            )
    c = config.defaults()
    c.task.name = "long_sequence"
    c.task.kind = next((p for p in parts if p in TASKS), "mqar")
    c.task.seq_len = 128
    c.task.pairs = 8
    c.task.vocab_size = 256
    if c.task.kind in ("selective", "induction"):
        c.task.vocab_size = 16
        c.task.pairs = 16
    c.net.name = MODELS[next((p for p in parts if p in MODELS), "cerebra")]
    c.net.causal = not ("encoder" in parts or c.task.kind == "masked")
    c.net.depth = 2
    c.net.width = 64
    c.net.heads = 2
    c.net.ffn_width = 256
    c.net.init_std = 0.125  # width^-0.5: with 0.02 the dense one still guessed after 1,500 steps
    if c.net.name in ("cerebra", "transformer"):
        # what follows a key belongs to it; every model gets its neighbours (Arora et al. 2024)
        c.net.local = 4
    c.net.route.part = "block"
    c.net.route.kv = "routed"
    c.net.compress.s = 0.25
    if c.net.name == "cerebra":
        c.net.route.mode = next(
            (p for p in parts if p in ROUTERS), "threshold" if c.net.causal else "topk"
        )
    if c.net.route.mode == "oracle" and c.task.kind == "copy":
        raise UserError(
            "copy needs every token, so an oracle keeps all", "use oracle with another task"
        )
    if c.net.name == "cerebra" and c.net.causal:
        # All tokens are heavy until the answers are learnt, then ever fewer. A router that begins
        # at its rate learns nothing.
        c.objective.budget = 0.5
        c.objective.warm = "0.35 frac"
        c.objective.ramp = "0.4 frac"
        c.objective.buckets = 5
        c.net.route.tau = "learned"
    c.train.duration = "4000 steps"
    c.train.batch_size = 64
    c.train.lr = 2e-3
    c.train.warmup = "0.05 frac"
    c.train.weight_decay = 0.01
    c.train.eval_every = "0.25 frac"
    c.train.checkpoint_every = "0.25 frac"
    c.train.log_every = "0.05 frac"
    if "smoke" in parts:
        c.task.seq_len = 64
        c.task.pairs = 4
        c.net.width = 32
        c.net.ffn_width = 64
        c.objective.budget = 0.75 if c.objective.budget else 0.0  # what 64 tokens can reach
        c.objective.buckets = 2
        c.train.duration = "40 steps"
        c.train.batch_size = 8
        c.train.eval_every = "40 steps"
        c.train.checkpoint_every = "20 steps"
    return c
