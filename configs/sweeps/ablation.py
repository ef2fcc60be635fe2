"""What each part of Cerebra adds: compression alone, the router, sampler, pruning, 8 bits.

Beside dense and chance.

python -m cerebra_jax.main sweep --config=configs/sweeps/ablation.py:smoke --jobs=2
python -m cerebra_jax.main sweep --config=configs/sweeps/ablation.py --dry

    smoke, cpu (default), 17m, 400m    text at that size of configs/wikitext.py
    tabular, tabular-smoke             a table (configs/tabular.py): made-up rents
    salaries                           the same of salaries, with --config.task.path=salaries.csv

24 runs: 8 rows of 3 seeds. A pruned run computes with zeros to its end: `executed` is that of the
whole model, and kept_rel_flops in result.json ("test") what it costs after `shrink`. 8 bits take
the extra quant. What came out, with times, stands in benchmarks/results/README.md.
"""

from cerebra_jax.errors import UserError

SAMPLER = {"sampler.beta": 0.5, "sampler.gamma": 2.0}
PRUNE = {"prune.keep": 0.75}
# At 17m most FLOPs are those of the logits, which stay. Pruned layers differ in width, so they are
# not scanned over.
PRUNE_AT = {"17m": {"prune.keep": 0.94}, "400m": PRUNE | {"net.scan": False}}
ROWS = {
    "dense": {"twin": "dense"},
    "compression": {"net.route.mode": "always_compressed"},
    "compression+router": {},
    "compression+router+sampler": SAMPLER,
    "compression+router+sampler+prune": SAMPLER | PRUNE,
    "compression+router+sampler+prune+QAT": SAMPLER
    | PRUNE
    | {"quant.bits": 8, "quant.start": "0.8 frac"},
    "compression+random-router": {"twin": "random"},
    "all-heavy": {"net.route.mode": "always_full"},
}
ARGS = {size: f"configs/wikitext.py:cerebra-{size}" for size in ("smoke", "cpu", "17m", "400m")}
ARGS |= {"tabular": "configs/tabular.py", "tabular-smoke": "configs/tabular.py:smoke"}
ARGS["salaries"] = "configs/tabular.py:salaries"


def get_sweep(arg: str = "cpu"):
    """Every row with seeds 0, 1 and 2."""
    if arg not in ARGS:
        raise UserError(f"configs/sweeps/ablation.py has no part {arg!r}", f"use {', '.join(ARGS)}")
    for name, keys in ROWS.items():
        keys = keys | PRUNE_AT[arg] if "prune.keep" in keys and arg in PRUNE_AT else keys
        for seed in range(3):
            yield {"config": ARGS[arg], "name": name, **keys, "seed": seed}
