"""Text by dense, CHIAR, Cerebra and four controls of Cerebra: for 8 epochs, or for 1,000 steps.

python -m cerebra_jax.main sweep --config=configs/sweeps/text.py:smoke --jobs=2
python -m cerebra_jax.main sweep --config=configs/sweeps/text.py --dry
python -m cerebra_jax.main sweep --config=configs/sweeps/text.py:long,dense,cerebra,s0 --dry

    long (default)   WikiText-2 for 8 epochs with dropout 0.1, validated after each epoch and tested
                     at the best; `cpu` size of configs/wikitext.py
    long-17m         the same at the 17m size
    short            WikiText-2 for 1,000 steps (1.4 epochs) without dropout
    smoke            the offline corpus, seconds a run

Words after the part choose among its rows and seeds, for sessions or machines that share the work;
give them one --workdir. All rows have one seed before the next, so that a sweep that is stopped
leaves something to compare.

21 runs: 7 rows of 3 seeds, with the learning rate of configs/wikitext.py. dense-local is dense with
the short convolution that Cerebra's layers have (net.local). equal-flops is the same, but so narrow
that it executes as many FLOPs as Cerebra. In the other two controls chance takes the router's place
in Cerebra's program, with a gate that is learned (cerebra-random) or 1 (cerebra-random-gate1).
CHIAR's filter is the FFT, whatever the device.

The text is that of --config.task.data_dir=DIR, or WikiText-2 is downloaded; there is no other text.
"""

from cerebra_jax.cli.sweep_points import chosen
from cerebra_jax.errors import UserError

# {row: (model of configs/wikitext.py, keys)}
ROWS = {
    "dense": ("dense", {}),
    "cerebra": ("cerebra", {}),
    "chiar": ("chiar", {"net.route.dct": "fft"}),
    "cerebra-random": ("cerebra", {"twin": "random", "net.route.gate": "learned"}),
    "dense-local": ("cerebra", {"twin": "dense"}),
    "equal-flops": ("cerebra", {"twin": "equal_flops"}),
    "cerebra-random-gate1": ("cerebra", {"twin": "random"}),
}
WIKITEXT = {"task.offline_fallback": False}  # nothing but WikiText-2
SHORT = WIKITEXT | {"train.duration": "1000 steps"}
LONG = WIKITEXT | {
    "net.dropout": 0.1,
    "train.duration": "8 epochs",
    "train.eval_every": "0.125 frac",
    "train.checkpoint_every": "0.125 frac",
}
SMOKE = {"task.dataset": "offline", "net.dropout": 0.1}
# {part: (size of configs/wikitext.py, keys)}
PARTS = {
    "long": ("cpu", LONG),
    "long-17m": ("17m", LONG),
    "short": ("cpu", SHORT),
    "smoke": ("smoke", SMOKE),
}
SEEDS = {"s0": 0, "s1": 1, "s2": 2}


def get_sweep(arg: str = "long"):
    """Every row with seeds 0, 1 and 2, or those rows and seeds that `arg` names."""
    part, *words = arg.split(",")
    if part not in PARTS:
        hint = f"begin with {', '.join(PARTS)}"
        raise UserError(f"configs/sweeps/text.py has no part {part!r}", hint)
    size, keys = PARTS[part]
    rows, seeds = chosen("configs/sweeps/text.py", part, words, ROWS, SEEDS)
    for seed in seeds:
        for row in rows:
            model, own = ROWS[row]
            config = f"configs/wikitext.py:{model}-{size}"
            yield {"config": config, "name": row} | keys | own | {"seed": SEEDS[seed]}
