"""The grid of the Cerebra paper: penalty λ, compression ratio r, kept tokens k; three seeds each.

python -m cerebra_jax.main sweep --config=configs/sweeps/cerebra_grid.py:smoke --jobs=2
python -m cerebra_jax.main sweep --config=configs/sweeps/cerebra_grid.py:encoder --dry

    smoke, cpu (default), 17m, 400m    text at that size of configs/wikitext.py: 81 runs
    encoder, encoder-smoke             recall by an encoder (configs/longseq.py): 27 runs

The paper crosses λ with a fixed k. A fixed k costs the same whatever λ is (the gradient of its cost
is exactly 0, and such a run is refused), so the two are apart here. In text the threshold is
learned and λ moves it, from k of every 64 tokens on; which k tokens are the best of all, only an
encoder can know. Not measured yet: 81 runs at the cpu size are about ten hours of two cores.
"""

import itertools

from cerebra_jax.errors import UserError

LAM = (1e-4, 1e-3, 1e-2)
R = (0.25, 0.5, 0.75)
K = (8, 16, 32)
SEEDS = range(3)
ARGS = ("smoke", "cpu", "17m", "400m", "encoder", "encoder-smoke")


def get_sweep(arg: str = "cpu"):
    """λ x r x k x seed, or r x k x seed."""
    if arg not in ARGS:
        raise UserError(
            f"configs/sweeps/cerebra_grid.py has no part {arg!r}", f"use {', '.join(ARGS)}"
        )
    if arg.startswith("encoder"):
        for r, k, seed in itertools.product(R, K, SEEDS):
            keys = {"net.compress.r": r, "net.route.k": k, "seed": seed}
            yield {"config": f"configs/longseq.py:{arg}", "name": f"r={r:g},k={k}", **keys}
        return
    for lam, r, k, seed in itertools.product(LAM, R, K, SEEDS):
        keys = {
            "net.route.rate": k / 64,
            "net.route.tau": "learned",
            "net.compress.r": r,
            "objective.lam": lam,
        }
        name = f"lam={lam:g},r={r:g},k={k}"
        yield {"config": f"configs/wikitext.py:cerebra-{arg}", "name": name, **keys, "seed": seed}
