"""CHIAR and what could explain its results without its idea: chance, other entropies, all light,
all heavy, FLOPs.

python -m cerebra_jax.main sweep --config=configs/sweeps/chiar_controls.py:smoke --jobs=2
python -m cerebra_jax.main sweep --config=configs/sweeps/chiar_controls.py --dry

    smoke, cpu (default), 17m, 400m    text at that size of configs/wikitext.py

24 runs: 8 rows of 3 seeds. chiar, random, permuted and no-dct send the same share of tokens to
attention and run the same attention; permuted pays for a DCT of its own. all-light and all-heavy
have CHIAR's blocks without a router.
"""

from cerebra_jax.errors import UserError

ROWS = {
    "chiar": {},
    "random": {"twin": "random"},
    "permuted": {"net.route.score": "permuted"},
    "no-dct": {"net.route.score": "raw"},
    "all-light": {"net.route.mode": "always_compressed"},
    "all-heavy": {"net.route.mode": "always_full"},
    "dense": {"twin": "dense"},
    "equal-flops": {"twin": "equal_flops"},
}
SIZES = ("smoke", "cpu", "17m", "400m")


def get_sweep(size: str = "cpu"):
    """Every row with seeds 0, 1 and 2."""
    if size not in SIZES:
        raise UserError(
            f"configs/sweeps/chiar_controls.py has no part {size!r}", f"use {', '.join(SIZES)}"
        )
    # On a GPU or TPU auto would fold the filters that no router sees, and the controls would be
    # cheaper than what they control.
    base = {"config": f"configs/wikitext.py:chiar-{size}", "net.route.dct": "fft"}
    for name, keys in ROWS.items():
        for seed in range(3):
            yield base | {"name": name, **keys, "seed": seed}
