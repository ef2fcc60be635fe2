"""Short texts by intent: Cerebra, a bag of words, and where they were compared dense and a router.

python -m cerebra_jax.main sweep --config=configs/sweeps/intent.py:smoke --jobs=2
python -m cerebra_jax.main sweep --config=configs/sweeps/intent.py:clinc150 --dry

    clinc150         cerebra, mlp, dense and routed
    clinc150small    cerebra and mlp
    banking77        cerebra and mlp
    smoke            made-up utterances, seconds a run

3 seeds of each. --config.task.path says where the data are: data_full.json.gz, data_small.json.gz,
and the folder of BANKING77. configs/intent.py says what the models are, and what the files hold.
"""

from cerebra_jax.errors import UserError

# {part: (data set of configs/intent.py, models)}
PARTS = {
    "clinc150": ("clinc150", ("cerebra", "mlp", "dense", "routed")),
    "clinc150small": ("clinc150", ("cerebra", "mlp")),
    "banking77": ("banking77", ("cerebra", "mlp")),
    "smoke": ("smoke", ("cerebra", "mlp")),
}


def get_sweep(part: str):
    """Every model of the part with seeds 0, 1 and 2."""
    if part not in PARTS:
        hint = f"use {', '.join(PARTS)}"
        raise UserError(f"configs/sweeps/intent.py has no part {part!r}", hint)
    data, models = PARTS[part]
    for seed in range(3):
        for model in models:
            config = f"configs/intent.py:{model}-{data}"
            yield {"config": config, "name": f"{part}-{model}", "seed": seed}
