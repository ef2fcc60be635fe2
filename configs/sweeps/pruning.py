"""What should be pruned first: loss change per FLOP saved, loss change alone, small weights, or
any; at equal FLOPs.

python -m cerebra_jax.main sweep --config=configs/sweeps/pruning.py:smoke --jobs=2
python -m cerebra_jax.main sweep --config=configs/sweeps/pruning.py:tabular --dry

    smoke, cpu (default)    text at that size of configs/wikitext.py
    tabular                 a table (configs/tabular.py): made-up rents
    salaries                the same of salaries, with --config.task.path=salaries.csv

15 runs: nothing pruned, and four scores at 0.75 (text) or 0.4 (table) of the executed FLOPs, 3
seeds each. The dense Transformer for a text, Cerebra for a table: in both, a head and a hidden
feature cost different amounts.
"""

from cerebra_jax.errors import UserError

SCORES = ("sensitivity", "taylor", "magnitude", "random")
ARGS = {"smoke": "configs/wikitext.py:dense-smoke", "cpu": "configs/wikitext.py:dense"}
ARGS |= {"tabular": "configs/tabular.py", "salaries": "configs/tabular.py:salaries"}


def get_sweep(arg: str = "cpu"):
    """Every score with seeds 0, 1 and 2."""
    if arg not in ARGS:
        raise UserError(f"configs/sweeps/pruning.py has no part {arg!r}", f"use {', '.join(ARGS)}")
    keep = 0.4 if "tabular" in ARGS[arg] else 0.75
    for seed in range(3):
        yield {"config": ARGS[arg], "name": "whole", "seed": seed}
        for score in SCORES:
            yield {
                "config": ARGS[arg],
                "name": score,
                "prune.keep": keep,
                "prune.score": score,
                "seed": seed,
            }
