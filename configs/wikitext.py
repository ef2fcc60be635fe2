"""Language modelling on WikiText: dense Transformer, CHIAR-Former, Cerebra, or a baseline of as
many parameters.

python -m cerebra_jax.main --config=configs/wikitext.py[:PART[-PART…]]

    model   chiar (default) | cerebra | dense | densepost (LayerNorm after each part, as CHIAR has it)
            | mod | window | ssm | lstm | cnn
    size    cpu (default) | 17m | 400m          smoke: ends in seconds
    full    the paper's whole recipe, on cerebra: warm, ramp of λ on a learned threshold, pruning, 8 bits (extra quant),
            sampler, one after the other; metrics.jsonl names the phases. Then come `shrink` and `convert`

`:dense-17m`, `:chiar`, `:smoke` … Text: --config.task.data_dir=DIR with train/valid/test files;
without it WikiText-2 is downloaded, and where nothing can be downloaded the run takes the offline
corpus and says so.
"""

from cerebra_jax import config
from cerebra_jax.errors import UserError

MODELS = ("chiar", "cerebra", "dense", "densepost", "mod", "window", "ssm", "lstm", "cnn")
SIZES = ("cpu", "17m", "400m")
PARTS = (*MODELS, *SIZES, "full", "smoke")
LAYERS = {
    "ssm": 1.7,
    "lstm": 1.5,
    "cnn": 1.5,
}  # per layer of the Transformer: 7 or 8 D² parameters against 12 D²


def get_config(arg: str = ""):
    """The configuration of `arg`, parts joined by hyphens.

    UserError on a part that does not exist.
    """
    parts = [p for p in arg.split("-") if p]
    for part in parts:
        if part not in PARTS:
            raise UserError(f"configs/wikitext.py has no part {part!r}", f"use {', '.join(PARTS)}")
    for kind, choices in (("models", MODELS), ("sizes", SIZES)):
        if len(chosen := [p for p in parts if p in choices]) > 1:
            raise UserError(
                f"configs/wikitext.py got two {kind}, {' and '.join(chosen)}", "name one"
            )
    c = config.defaults()
    model = next((p for p in parts if p in MODELS), "chiar")
    c.net.name = "transformer" if model.startswith("dense") else model
    c.net.norm = "post" if model == "densepost" else "pre"
    if model == "cerebra":  # attention and FFN are routed: attention alone saves little at L = 256
        c.net.route.part, c.net.route.kv = "block", "routed"
        c.net.local = 4  # light tokens see compressed windows only, and kept ones only each other
    if model == "mod":  # as in the paper: an eighth of the tokens, which see each other
        c.net.route.rate, c.net.route.kv = 0.125, "routed"
    if "17m" in parts:  # CHIAR-Former small: 17 M parameters, GPT-2's vocabulary size
        c.task.vocab_size = 50_257
        c.net.depth, c.net.width, c.net.heads, c.net.ffn_width = 4, 256, 4, 1024
        c.net.dropout, c.net.dtype = 0.1, "bfloat16"
        c.train.duration, c.train.batch_size, c.train.lr, c.train.warmup = (
            "5 epochs",
            128,
            1e-3,
            "0.05 frac",
        )
    elif "400m" in parts:
        c.task.vocab_size = 50_257
        c.net.depth, c.net.width, c.net.heads, c.net.ffn_width = 28, 1024, 16, 4096
        c.net.dropout, c.net.dtype, c.net.scan = 0.1, "bfloat16", True
        c.train.duration, c.train.batch_size, c.train.lr = "5 epochs", 128, 1e-4
        c.train.warmup, c.train.weight_decay = "1000 steps", 0.01
        c.net.loss_chunk = 8192
    if "full" in parts:
        if model != "cerebra":
            raise UserError("configs/wikitext.py: full is for cerebra", "write cerebra-full")
        c.net.scan = False  # pruned layers differ in width
        c.net.route.tau, c.objective.lam = "learned", 1e-2
        # the logits cannot be pruned: 0.79 of the FLOPs of `smoke`, and 0.88 of `17m`, stay whatever goes
        c.prune.keep = 0.85 if "smoke" in parts else 0.94 if "17m" in parts else 0.75
        c.prune.start, c.prune.end = "0.5 frac", "0.7 frac"
        c.quant.bits, c.quant.start = 8, "0.75 frac"
        c.sampler.beta, c.sampler.gamma, c.sampler.start = 0.5, 2.0, "0.85 frac"
    if "smoke" in parts:
        c.task.vocab_size, c.task.seq_len = 512, 64
        c.net.depth, c.net.width, c.net.heads, c.net.ffn_width = (
            2 if "full" in parts else 4,
            32,
            2,
            64,
        )
        c.train.duration, c.train.batch_size = "40 steps", 8
        c.train.eval_every, c.train.checkpoint_every = "20 steps", "10 steps"
        c.prune.rounds = 3
    if model in LAYERS:
        c.net.depth = round(LAYERS[model] * c.net.depth)
    return c
