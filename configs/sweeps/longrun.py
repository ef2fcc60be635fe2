"""Long runs: 8 epochs of WikiText-2 by dense, CHIAR, Cerebra and four controls of Cerebra.

python -m cerebra_jax.main sweep --config=configs/sweeps/longrun.py:smoke --jobs=2
python -m cerebra_jax.main sweep --config=configs/sweeps/longrun.py --dry
python -m cerebra_jax.main sweep --config=configs/sweeps/longrun.py:cpu,dense,cerebra,s0 --dry

    smoke, cpu (default), 17m    WikiText-2 at that size of configs/wikitext.py; smoke: the offline
                                 corpus, seconds a run

Words after the part choose among its rows and seeds, for sessions or machines that share the work;
give them one --workdir. All rows have one seed before the next, so that a sweep that is stopped
leaves something to compare.

21 runs: 7 rows of 3 seeds, with dropout 0.1 and the learning rate of configs/wikitext.py. A run of
cpu or 17m is validated after each epoch, and tested at the best. dense-local is dense with the
short convolution that Cerebra's layers have (net.local). equal-flops is the same, but so narrow
that it executes as many FLOPs as Cerebra. In the other two controls chance takes the router's place
in Cerebra's program, with a gate that is learned (cerebra-random) or 1 (cerebra-random-gate1).
CHIAR's filter is the FFT, whatever the device.

The text is that of --config.task.data_dir=DIR, or WikiText-2 is downloaded; there is no other text.
"""

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
LONG = {
    "task.offline_fallback": False,  # nothing but WikiText-2
    "net.dropout": 0.1,
    "train.duration": "8 epochs",
    "train.eval_every": "0.125 frac",
    "train.checkpoint_every": "0.125 frac",
}
SMOKE = {"task.dataset": "offline", "net.dropout": 0.1}
PARTS = {"smoke": SMOKE, "cpu": LONG, "17m": LONG}
SEEDS = {"s0": 0, "s1": 1, "s2": 2}


def get_sweep(arg: str = "cpu"):
    """Every row with seeds 0, 1 and 2, or those rows and seeds that `arg` names."""
    size, *words = arg.split(",")
    if size not in PARTS:
        hint = f"begin with {', '.join(PARTS)}"
        raise UserError(f"configs/sweeps/longrun.py has no part {size!r}", hint)
    for word in words:
        if word not in ROWS and word not in SEEDS:
            hint = f"use {', '.join((*ROWS, *SEEDS))}"
            raise UserError(f"configs/sweeps/longrun.py has no row or seed {word!r}", hint)
    rows = [row for row in ROWS if row in words] or list(ROWS)
    for seed in [SEEDS[s] for s in SEEDS if s in words] or SEEDS.values():
        for row in rows:
            model, own = ROWS[row]
            config = f"configs/wikitext.py:{model}-{size}"
            yield {"config": config, "name": row} | PARTS[size] | own | {"seed": seed}
