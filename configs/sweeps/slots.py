"""Where the slots of two layers stand: even, divided by hand, or moved by the run to where they
are wanted. Beside them the dense Transformer and Mixture-of-Depths.

python -m cerebra_jax.main sweep --config=configs/sweeps/slots.py --jobs=2
python -m cerebra_jax.main sweep --config=configs/sweeps/slots.py:selective-1024 --dry

    mqar-L, selective-L   sequences of L tokens; mqar has L/16 pairs and at least 2 L symbols;
                          default: mqar-512
    smoke                 mqar in seconds

15 runs: 5 rows of 3 seeds, as long as configs/longseq.py trains (--config.train.duration=... for
another). Cerebra ends at half of the dense FLOPs. Mixture-of-Depths routes the second layer only
and cannot: it ends at 0.6.
"""

from cerebra_jax.errors import UserError

# {row: (model of configs/longseq.py, keys)}
ROWS = {
    "dense": ("dense", {}),
    "mod": ("mod", {"objective.budget": 0.6}),
    "cerebra-even": ("cerebra", {}),
    "cerebra-by-hand": ("cerebra", {"net.route.by_layer": "0.1,1.9"}),
    "cerebra-by-demand": ("cerebra", {"net.route.by_demand": True}),
}
TASKS = ("mqar", "selective")


def get_sweep(arg: str = "mqar-512"):
    """Every row with seeds 0, 1 and 2."""
    task, _, length = ("mqar", "", "64") if arg == "smoke" else arg.partition("-")
    if task not in TASKS or not length.isdigit():
        raise UserError(
            f"configs/sweeps/slots.py has no part {arg!r}", "use smoke, mqar-512 or selective-1024"
        )
    L = int(length)  # noqa: N806
    keys = {"task.seq_len": L}
    if task == "mqar":
        keys |= {"task.pairs": max(1, L // 16), "task.vocab_size": max(256, 2 * L)}
    for name, (model, own) in ROWS.items():
        if arg == "smoke" and model != "dense":  # what 64 tokens can reach in every row
            own = {**own, "objective.budget": 0.6}
        for seed in range(3):
            config = f"configs/longseq.py:{task}-{model}" + "-smoke" * (arg == "smoke")
            yield {"config": config, "name": name, **keys, **own, "seed": seed}
