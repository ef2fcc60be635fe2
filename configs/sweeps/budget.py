"""Cerebra under a compute budget: half and three quarters of the dense FLOPs.

python -m cerebra_jax.main sweep --config=configs/sweeps/budget.py:smoke --jobs=2
python -m cerebra_jax.main sweep --config=configs/sweeps/budget.py:encoder --dry

    text (default)    WikiText-2, 600 steps
    encoder           masked recall, L = 128, 16 pairs, 1,000 steps
    smoke             the offline corpus, seconds a run

6 runs: 2 budgets of 3 seeds. The router keeps what its learned threshold lets through. The text is
that of --config.task.data_dir=DIR, or WikiText-2 is downloaded; there is no other text.
`report --budgets=FILE.svg` draws costs, multiplier and duality gap of the runs.
"""

from cerebra_jax.errors import UserError

LEARNED = {"net.route.tau": "learned"}
TEXT = LEARNED | {"net.compress.s": 0.25}
# {part: (configuration, keys)}
PARTS = {
    "text": (
        "configs/wikitext.py:cerebra",
        TEXT | {"task.offline_fallback": False, "train.duration": "600 steps"},
    ),
    "encoder": (
        "configs/longseq.py:masked",
        LEARNED | {"net.route.mode": "threshold", "task.pairs": 16, "train.duration": "1000 steps"},
    ),
    "smoke": ("configs/wikitext.py:cerebra-smoke", TEXT | {"task.dataset": "offline"}),
}


def get_sweep(part: str = "text"):
    """Both budgets with seeds 0, 1 and 2."""
    if part not in PARTS:
        hint = f"use {', '.join(PARTS)}"
        raise UserError(f"configs/sweeps/budget.py has no part {part!r}", hint)
    config, keys = PARTS[part]
    for seed in range(3):
        for budget in (0.5, 0.75):
            point = {"config": config, "name": f"budget{budget}", "objective.budget": budget}
            yield point | keys | {"seed": seed}
