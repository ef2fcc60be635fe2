"""A search with Optuna: learning rate and heavy share of Cerebra, for validation perplexity and
executed FLOPs at once.

python -m cerebra_jax.main sweep --config=configs/sweeps/search.py:smoke --jobs=2

It needs the extra `sweep`: pip install ".[sweep]" in the checkout.

    smoke, cpu (default), 17m, 400m    text at that size of configs/wikitext.py

The same command goes on with the study in the sweep's folder, on as many machines as see it. One
seed a trial: confirm what it finds with more of them. Not measured yet: 30 trials of 600 steps are
about four hours of two cores.
"""

from cerebra_jax.errors import UserError

SIZES = ("smoke", "cpu", "17m", "400m")


def get_search(size: str = "cpu"):
    """30 trials of one seed."""
    if size not in SIZES:
        raise UserError(f"configs/sweeps/search.py has no part {size!r}", f"use {', '.join(SIZES)}")
    return {
        "config": f"configs/wikitext.py:cerebra-{size}",
        "ranges": {
            "train.lr": {"low": 3e-4, "high": 1e-2, "log": True},
            "net.route.rate": {"low": 0.1, "high": 0.75},
        },
        "trials": 30,
        "objectives": ["quality", "executed"],
    }
