"""Long-range recall by every model: dense, window, SSM, LSTM, and Cerebra with its router, an
oracle and chance.

python -m cerebra_jax.main sweep --config=configs/sweeps/recall.py --jobs=2
python -m cerebra_jax.main sweep --config=configs/sweeps/recall.py:selective --dry

    mqar (default)        L = 128, 8 pairs, 256 symbols
    selective             L = 128, 16 data tokens
    mqar-L, selective-L   any other L; of mqar, L/16 pairs and at least 2 L symbols
    smoke                 mqar in seconds

24 runs: 8 rows of 3 seeds, as long as configs/longseq.py trains (--config.train.duration=... for
another). Cerebra, the oracles and chance end at half the dense FLOPs; in oracle-all every token is
a key, in the other three the kept ones are. Window: L/4.
"""

from cerebra_jax.errors import UserError

MODELS = ("dense", "window", "ssm", "lstm", "cerebra", "random", "oracle", "oracle-all")
TASKS = ("mqar", "selective")


def get_sweep(arg: str = "mqar"):
    """Every model with seeds 0, 1 and 2."""
    task, _, length = ("mqar", "", "") if arg == "smoke" else arg.partition("-")
    if task not in TASKS or not (length.isdigit() or length == "" and not arg.endswith("-")):
        raise UserError(
            f"configs/sweeps/recall.py has no part {arg!r}",
            f"use smoke, {', '.join(TASKS)}, or TASK-LENGTH",
        )
    L = int(length or (64 if arg == "smoke" else 128))  # noqa: N806
    keys = {"task.seq_len": L}
    if task == "mqar":
        keys |= {"task.pairs": max(1, L // 16), "task.vocab_size": max(256, 2 * L)}
    for model in MODELS:
        own = {"window": {"net.window": L // 4}, "oracle-all": {"net.route.kv": "all"}}.get(
            model, {}
        )
        for seed in range(3):
            config = f"configs/longseq.py:{task}-{model.removesuffix('-all')}" + "-smoke" * (
                arg == "smoke"
            )
            yield {"config": config, "name": model, **keys, **own, "seed": seed}
