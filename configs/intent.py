"""Classification of short texts by intent, with Cerebra, a dense Transformer, or simpler models.

python -m cerebra_jax.main --config=configs/intent.py[:PART[-PART…]]
python -m cerebra_jax.main --config=configs/intent.py --config.task.path=FILE.csv

    model   cerebra (default): every token takes the light path
            routed: a quarter of the tokens take the heavy path
            dense | cnn
            mlp: a bag of words, that is the mean of the words, then an MLP
    data    made-up utterances (default: no file, no network)
            --config.task.path=FILE with the columns text,label
            clinc150 (path: data_full.json.gz or data_small.json.gz)
            banking77 | snips (path: a folder with train.csv and test.csv, or valid.csv)
    smoke   ends in seconds

--config.task.buckets=4 puts texts of similar length into programs that are as short as they are.
--config.task.shots=10 keeps ten training texts of each intent. --config.task.oos=True adds the
out-of-scope class of CLINC150.

Measured on one core of a shared 2-core AMD EPYC (Zen 5), 2026-11-22: test accuracy, and executed
FLOPs as a share of dense in brackets.
    made-up utterances  0.924 (0.234), dense 0.914; seed 0, 45 s a run
    clinc150 (full)     0.922 ± 0.004 (0.225), dense 0.910 ± 0.003, mlp 0.925 ± 0.002;
                        3 seeds, 1 to 4 minutes a run
    banking77           0.909 ± 0.002 (0.201), mlp 0.912 ± 0.003; 3 seeds, 2 to 5 minutes
A linear SVM on words and characters has 0.928 on CLINC150 (full), 0.913 on BANKING77 and 0.986 on
SNIPS.
"""

from cerebra_jax import config
from cerebra_jax.errors import UserError

MODELS = {
    "cerebra": "cerebra",
    "routed": "cerebra",
    "dense": "transformer",
    "cnn": "cnn",
    "mlp": "mlp",
}
PATHS = {"clinc150": "data_full.json.gz", "banking77": "banking77", "snips": "snips"}
PARTS = (*MODELS, *PATHS, "smoke")


def get_config(arg: str = ""):
    """The configuration of `arg`, parts joined by hyphens.

    UserError on a part that does not exist.
    """
    parts = [p for p in arg.split("-") if p]
    if wrong := [p for p in parts if p not in PARTS]:
        raise UserError(f"configs/intent.py has no part {wrong[0]!r}", f"use {', '.join(PARTS)}")
    for kind, choices in (("models", MODELS), ("data sets", PATHS)):
        if len(chosen := [p for p in parts if p in choices]) > 1:
            raise UserError(f"configs/intent.py got two {kind}, {' and '.join(chosen)}", "name one")
    c = config.defaults()
    c.task.name = "intent"
    c.task.seq_len = 0
    c.task.tokenizer = "words"
    c.task.word_noise = 0.1
    c.task.path = next((path for part, path in PATHS.items() if part in parts), "")
    if "snips" in parts:  # its split: 13,094 and 690 of train.csv; valid.csv is the test
        c.task.valid_share = 0.05
    c.task.subwords = 1 << 14  # words and their character n-grams, as the linear model has them
    c.net.name = next((name for part, name in MODELS.items() if part in parts), "cerebra")
    c.net.causal = False
    c.net.depth = 1
    c.net.width = 128
    c.net.heads = 4
    c.net.ffn_width = 256
    # a bag of words to begin with
    c.net.dropout = 0.3
    c.net.pool = "mean"
    c.net.branch = 0.0
    c.net.pooler = c.net.name != "mlp"
    if (
        c.net.name == "cerebra"
    ):  # compression alone: the router cost twice as much and won nothing on validation texts
        c.net.route.mode = "topk" if "routed" in parts else "always_compressed"
        c.net.route.part = "block"
        c.net.route.kv = "routed"
        c.net.compress.kind = "attention"
        c.net.compress.s = 0.25
    if c.net.name == "mlp":  # runs once a text, not once a word
        c.net.width = 256
    c.train.duration = "1400 steps"
    c.train.batch_size = 64
    c.train.lr = 1e-3
    c.train.warmup = "0.05 frac"
    c.train.eval_every = "0.2 frac"
    c.train.checkpoint_every = "0.2 frac"
    if "smoke" in parts:
        c.net.depth = 2
        c.net.width = 32
        c.net.heads = 2
        c.net.ffn_width = 64
        c.train.duration = "40 steps"
        c.train.batch_size = 64
        c.train.eval_every = "20 steps"
        c.train.checkpoint_every = "20 steps"
    return c
