"""Long-range recall: what stood far back? Synthetic, made on the fly: no file, no network.

python -m cerebra_jax.main --config=configs/longseq.py[:PART[-PART…]] [--config.task.seq_len=L
--config.task.pairs=K]

    task    mqar (default) | selective | copy | masked | induction
    model   cerebra (default) | oracle | random | dense | window | ssm | lstm          smoke: ends in seconds

masked and `encoder` are read whole, by an encoder with top-k; the others are causal. oracle and
random are cerebra with its slots, filled by what the task says its answers need (the best a router
could do) or by chance. A causal cerebra ends at half of the dense FLOPs (objective.budget), an
encoder keeps a quarter of the tokens (net.route.rate). What the answers need is 3 task.pairs of
mqar, 2 of selective and masked; `overflow` in metrics.jsonl says what found no slot. copy needs
every token: no oracle there.

Measured on one core of a shared 2-core AMD EPYC (Zen 5), 3 seeds, test accuracy; cerebra, random and oracle at half of
dense's FLOPs:
    mqar, 4,000 steps, 3 to 7 minutes    dense 1.000, cerebra 0.678 ± 0.099, random 0.598 ± 0.101, oracle 0.127 ± 0.002,
                                         with every token a key (--config.net.route.kv=all) 1.000
                                         slots in layer 2 (--config.net.route.by_layer=0.1,1.9): cerebra 0.889 ± 0.096,
                                         random 0.400 ± 0.021 (Zen 4)
    selective, 2,000 steps, 1 to 3       dense 0.981 ± 0.011, cerebra 0.848 ± 0.031, random 0.601 ± 0.008,
                                         oracle 0.845 ± 0.010, with every token a key 0.658 ± 0.005
Dense, L = 256, 16 pairs and 512 symbols: 0.9925 (validation) after 1,250 steps, 7 minutes of CPU time. All of it:
configs/sweeps/recall.py and benchmarks/results/README.md. copy and induction: not measured.
"""

from cerebra_jax import config
from cerebra_jax.errors import UserError

TASKS = ("mqar", "selective", "copy", "masked", "induction")
ROUTERS = ("oracle", "random")
MODELS = {
    "cerebra": "cerebra", "dense": "transformer", "window": "window", "ssm": "ssm", "lstm": "lstm",
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
    c.task.name, c.task.kind = "longseq", next((p for p in parts if p in TASKS), "mqar")
    c.task.seq_len, c.task.pairs, c.task.vocab_size = 128, 8, 256
    if c.task.kind in ("selective", "induction"):
        c.task.vocab_size, c.task.pairs = 16, 16
    c.net.name = MODELS[next((p for p in parts if p in MODELS), "cerebra")]
    c.net.causal = not ("encoder" in parts or c.task.kind == "masked")
    c.net.depth, c.net.width, c.net.heads, c.net.ffn_width = 2, 64, 2, 256
    c.net.init_std = 0.125  # width^-0.5: with 0.02 the dense one still guessed after 1,500 steps
    if c.net.name in ("cerebra", "transformer"):
        c.net.local = 4  # what follows a key belongs to it; every model gets its neighbours (Arora et al. 2024)
    c.net.route.part, c.net.route.kv, c.net.compress.s = "block", "routed", 0.25
    if c.net.name == "cerebra":
        c.net.route.mode = next(
            (p for p in parts if p in ROUTERS), "threshold" if c.net.causal else "topk"
        )
    if c.net.route.mode == "oracle" and c.task.kind == "copy":
        raise UserError(
            "copy needs every token, so an oracle keeps all", "use oracle with another task"
        )
    if c.net.name == "cerebra" and c.net.causal:
        # all heavy until the answers are learnt, then ever fewer: from the start at its rate the router learns nothing
        c.objective.budget, c.objective.warm, c.objective.ramp, c.objective.buckets = (
            0.5,
            "0.35 frac",
            "0.4 frac",
            5,
        )
        c.net.route.tau = "learned"
    c.train.duration, c.train.batch_size, c.train.lr, c.train.warmup = (
        "4000 steps",
        64,
        2e-3,
        "0.05 frac",
    )
    c.train.weight_decay = 0.01
    c.train.eval_every, c.train.checkpoint_every, c.train.log_every = (
        "0.25 frac",
        "0.25 frac",
        "0.05 frac",
    )
    if "smoke" in parts:
        c.task.seq_len, c.task.pairs, c.net.width, c.net.ffn_width = 64, 4, 32, 64
        c.objective.budget = 0.75 if c.objective.budget else 0.0  # what 64 tokens can reach
        c.objective.buckets = 2
        c.train.duration, c.train.batch_size = "40 steps", 8
        c.train.eval_every, c.train.checkpoint_every = "40 steps", "20 steps"
    return c
