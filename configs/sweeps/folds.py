"""k-fold: every row of your table, or of your labelled texts, is tested once; a run a fold.

cerebra sweep --config=configs/sweeps/folds.py:5 --config.task.path=T.csv --config.task.target=Y
cerebra report runs/folds-5          # mean and spread over the folds

    2, 3, 5 (default), 10              a table (configs/tabular.py)
    intent-2, -3, -5, -10              labelled texts (configs/intent.py)
    smoke-3, intent-smoke-3 …          the same at the size of a test

Fold i of k is the test of the run with seed i; a part of the others (task.valid_share) chooses the
checkpoint. Training sets overlap, so the spread is that of folds, not of new data.
"""

from cerebra_jax.errors import UserError

FOLDS = (2, 3, 5, 10)


def get_sweep(arg: str = "5"):
    """A run for each fold."""
    *parts, last = arg.split("-")
    if not last.isdigit() or int(last) not in FOLDS or not {*parts} <= {"intent", "smoke"}:
        hint = f"use {', '.join(map(str, FOLDS))}, with intent- or smoke- before it"
        raise UserError(f"configs/sweeps/folds.py has no part {arg!r}", hint)
    name = "intent" if "intent" in parts else "tabular"
    size = ":smoke" if "smoke" in parts else ""
    folds = int(last)
    for fold in range(folds):
        keys = {"task.folds": folds, "seed": fold}
        yield {"config": f"configs/{name}.py{size}", "name": f"fold {fold + 1} of {folds}", **keys}
