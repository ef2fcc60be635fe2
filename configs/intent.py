"""Classification of short texts by intent: Cerebra encoder, dense Transformer, convolutions, or a
bag of words.

python -m cerebra_jax.main --config=configs/intent.py[:PART[-PART…]]
python -m cerebra_jax.main --config=configs/intent.py --config.task.path=FILE.csv

    model   cerebra (default: every token on the light path) | routed (a quarter of them heavy) | dense | cnn
            mlp (a bag: the mean of the words, then an MLP)    smoke: ends in seconds
    data    made-up utterances (default: no file, no network), or --config.task.path=FILE with columns text,label
            clinc150 (path: data_full.json.gz or data_small.json.gz) | banking77 | snips (path: a folder with train.csv
            and test.csv, or valid.csv)

Texts of similar length in programs as short as they are: --config.task.buckets=4.
Low data: --config.task.shots=10. Out-of-scope class of CLINC150: --config.task.oos=True.

Measured on one core of a shared 2-core AMD EPYC (Zen 5), 2026-11-22, test accuracy; in brackets the executed FLOPs:
    made-up utterances  0.924 (0.234), dense 0.914; seed 0, 45 s a run
    clinc150 (full)     0.922 ± 0.004 (0.225), dense 0.910 ± 0.003, mlp 0.925 ± 0.002; 3 seeds, 1 to 4 minutes a run
    banking77           0.909 ± 0.002 (0.201), mlp 0.912 ± 0.003; 3 seeds, 2 to 5 minutes
A linear SVM on words and characters has 0.928 on CLINC150 (full), 0.913 on BANKING77 and 0.986 on SNIPS.
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
    c.task.name, c.task.seq_len, c.task.tokenizer, c.task.word_noise = "intent", 0, "words", 0.1
    c.task.path = next((path for part, path in PATHS.items() if part in parts), "")
    if "snips" in parts:  # its split: 13,094 and 690 of train.csv; valid.csv is the test
        c.task.valid_share = 0.05
    c.task.subwords = 1 << 14  # words and their character n-grams, as the linear model has them
    c.net.name = next((name for part, name in MODELS.items() if part in parts), "cerebra")
    c.net.causal, c.net.depth, c.net.width, c.net.heads, c.net.ffn_width = False, 1, 128, 4, 256
    c.net.dropout, c.net.pool, c.net.branch = 0.3, "mean", 0.0  # a bag of words to begin with
    c.net.pooler = c.net.name != "mlp"
    if (
        c.net.name == "cerebra"
    ):  # compression alone: the router cost twice as much and won nothing on validation texts
        c.net.route.mode = "topk" if "routed" in parts else "always_compressed"
        c.net.route.part, c.net.route.kv = "block", "routed"
        c.net.compress.kind, c.net.compress.s = "attention", 0.25
    if c.net.name == "mlp":  # runs once a text, not once a word
        c.net.width = 256
    c.train.duration, c.train.batch_size, c.train.lr, c.train.warmup = (
        "1400 steps",
        64,
        1e-3,
        "0.05 frac",
    )
    c.train.eval_every, c.train.checkpoint_every = "0.2 frac", "0.2 frac"
    if "smoke" in parts:
        c.net.depth, c.net.width, c.net.heads, c.net.ffn_width = 2, 32, 2, 64
        c.train.duration, c.train.batch_size = "40 steps", 64
        c.train.eval_every, c.train.checkpoint_every = "20 steps", "20 steps"
    return c
