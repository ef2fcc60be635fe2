"""Where the slots of two layers stand: even, divided by hand, or moved by the run to where they
are wanted. Beside them the dense Transformer and Mixture-of-Depths.

python -m cerebra_jax.main sweep --config=configs/sweeps/slots.py --jobs=2
python -m cerebra_jax.main sweep --config=configs/sweeps/slots.py:selective-1024 --dry

    mqar-L, selective-L   sequences of L tokens; mqar has L/16 pairs and at least 2 L symbols;
                          default: mqar-512
    smoke                 mqar in seconds

Words after the part choose among its rows and seeds: `:mqar-128,cerebra-by-hand,random-by-hand`.

18 runs: 6 rows of 3 seeds, as long as configs/longseq.py trains (--config.train.duration=... for
another). In random-by-hand chance takes the router's place, with the slots of cerebra-by-hand.
Cerebra ends at half of the dense FLOPs. Mixture-of-Depths routes the second layer only and cannot
reach half: it ends at 0.6.

Measured: the two rows by hand of mqar-128 (benchmarks/results/README.md). The others, by demand
among them, have no table yet.
"""

from cerebra_jax.cli.sweep_points import chosen
from cerebra_jax.errors import UserError

BY_HAND = {"net.route.by_layer": "0.1,1.9"}
# {row: (model of configs/longseq.py, keys)}
ROWS = {
    "dense": ("dense", {}),
    "mod": ("mod", {"objective.budget": 0.6}),
    "cerebra-even": ("cerebra", {}),
    "cerebra-by-hand": ("cerebra", BY_HAND),
    "random-by-hand": ("random", BY_HAND),
    "cerebra-by-demand": ("cerebra", {"net.route.by_demand": True}),
}
TASKS = ("mqar", "selective")
SEEDS = {"s0": 0, "s1": 1, "s2": 2}


def get_sweep(arg: str = "mqar-512"):
    """Every row with seeds 0, 1 and 2, or those rows and seeds that `arg` names."""
    part, *words = arg.split(",")
    task, _, length = ("mqar", "", "64") if part == "smoke" else part.partition("-")
    if task not in TASKS or not length.isdigit():
        hint = "use smoke, mqar-512 or selective-1024"
        raise UserError(f"configs/sweeps/slots.py has no part {part!r}", hint)
    L = int(length)  # noqa: N806
    keys = {"task.seq_len": L}
    if task == "mqar":
        keys |= {"task.pairs": max(1, L // 16), "task.vocab_size": max(256, 2 * L)}
    rows, seeds = chosen("configs/sweeps/slots.py", part, words, ROWS, SEEDS)
    for seed in seeds:
        for name in rows:
            model, own = ROWS[name]
            if part == "smoke" and model != "dense":  # what 64 tokens can reach in every row
                own = {**own, "objective.budget": 0.6}
            config = f"configs/longseq.py:{task}-{model}" + "-smoke" * (part == "smoke")
            yield {"config": config, "name": name, **keys, **own, "seed": SEEDS[seed]}
