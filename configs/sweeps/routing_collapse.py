"""Routing collapse: which of three operators CHIAR's tokens take while it trains, with and without
a reward for all.

python -m cerebra_jax.main sweep --config=configs/sweeps/routing_collapse.py:smoke --jobs=2
python -m cerebra_jax.main sweep --config=configs/sweeps/routing_collapse.py --dry

    smoke, cpu (default), 17m, 400m    text at that size of configs/wikitext.py

18 runs: threshold, hard and soft, each without the reward and with it, of 3 seeds. `report RUNS
--uses=FILE.svg` draws the shares of the operators in each layer over training. The threshold is the
paper's: calibrated at the start and after a tenth of the steps, it stays where it is while the
features move on. Its decisions have no gradient: there the reward teaches the features. A third of
the tokens for each operator at the start; slots for twice as many, as far as a learned choice may
grow before tokens fall back to the filter.
"""

from cerebra_jax.errors import UserError

MODES = {
    "threshold": {"net.route.mode": "threshold", "net.route.tau": "calibrated"},
    "hard": {"net.route.mode": "hard"},
    "soft": {"net.route.mode": "soft"},
}
REWARD = 0.1  # in nats a token, where the use of the operators is even in every layer
SIZES = ("smoke", "cpu", "17m", "400m")


def get_sweep(size: str = "cpu"):
    """Mode x reward x seed."""
    if size not in SIZES:
        raise UserError(
            f"configs/sweeps/routing_collapse.py has no part {size!r}", f"use {', '.join(SIZES)}"
        )
    common = {
        "net.route.rbf": 0.33,
        "net.route.rate": 0.33,
        "net.route.capacity": 2.0,
        "net.route.kv": "routed",
    }
    for name, keys in MODES.items():
        for reward in (0.0, REWARD):
            for seed in range(3):
                point = common | keys | {"net.route.collapse": reward, "seed": seed}
                config = f"configs/wikitext.py:chiar-{size}"
                yield {"config": config, "name": f"{name}{'+reward' if reward else ''}", **point}
