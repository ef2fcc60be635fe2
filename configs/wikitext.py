"""Language modelling on WikiText, with CHIAR-Former, Cerebra, a dense Transformer or a baseline.

At the cpu size dense has 1.71 million parameters, chiar 1.65 and cerebra 2.06.

python -m cerebra_jax.main --config=configs/wikitext.py[:PART[-PART…]]

    model   chiar (default) | cerebra | dense | mod | window | ssm | lstm | cnn
            densepost: dense with LayerNorm after each part, as CHIAR has it
    size    cpu (default): 6 layers of width 128, L = 256, 600 steps | 17m | 400m
    full    the paper's whole recipe on cerebra, one part after the other: warm, ramp of λ on a
            learned threshold, pruning, 8 bits (extra quant), sampler; metrics.jsonl names the
            phases, then come `shrink` and `convert`
    smoke   ends in seconds

Examples of parts: `:dense-17m`, `:chiar`, `:smoke`. The text is that of
--config.task.data_dir=DIR, with train/valid/test files. Without it WikiText-2 is downloaded, and
where nothing can be downloaded the run takes the offline corpus and says so.
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
        c.net.route.part = "block"
        c.net.route.kv = "routed"
        c.net.local = 4  # light tokens see compressed windows only, and kept ones only each other
    if model == "mod":  # as in the paper: an eighth of the tokens, which see each other
        c.net.route.rate = 0.125
        c.net.route.kv = "routed"
    if "17m" in parts:  # CHIAR-Former small: 17 M parameters, GPT-2's vocabulary size
        c.task.vocab_size = 50_257
        c.net.depth = 4
        c.net.width = 256
        c.net.heads = 4
        c.net.ffn_width = 1024
        c.net.dropout = 0.1
        c.net.dtype = "bfloat16"
        c.net.remat = "auto"
        c.train.duration = "5 epochs"
        c.train.batch_size = 128
        c.train.lr = 1e-3
        c.train.warmup = "0.05 frac"
    elif "400m" in parts:
        c.task.vocab_size = 50_257
        c.net.depth = 28
        c.net.width = 1024
        c.net.heads = 16
        c.net.ffn_width = 4096
        c.net.dropout = 0.1
        c.net.dtype = "bfloat16"
        c.net.scan = True
        c.net.remat = "auto"
        c.train.duration = "5 epochs"
        c.train.batch_size = 128
        c.train.lr = 1e-4
        c.train.warmup = "1000 steps"
        c.train.weight_decay = 0.01
        c.net.loss_chunk = 8192
        if model == "cerebra":
            c.net.compress.heads = 4  # 128 wide, as the matrix units of a TPU are
    if "full" in parts:
        if model != "cerebra":
            raise UserError("configs/wikitext.py: full is for cerebra", "write cerebra-full")
        c.net.scan = False  # pruned layers differ in width
        c.net.route.tau = "learned"
        c.objective.lam = 1e-2
        # The logits cannot be pruned: 0.79 of the FLOPs of `smoke`, and 0.88 of `17m`, stay
        # whatever goes.
        c.prune.keep = 0.85 if "smoke" in parts else 0.94 if "17m" in parts else 0.75
        c.prune.start = "0.5 frac"
        c.prune.end = "0.7 frac"
        c.quant.bits = 8
        c.quant.start = "0.75 frac"
        c.sampler.beta = 0.5
        c.sampler.gamma = 2.0
        c.sampler.start = "0.85 frac"
    if "smoke" in parts:
        c.task.vocab_size = 512
        c.task.seq_len = 64
        c.net.depth = 2 if "full" in parts else 4
        c.net.width = 32
        c.net.heads = 2
        c.net.ffn_width = 64
        c.train.duration = "40 steps"
        c.train.batch_size = 8
        c.train.eval_every = "20 steps"
        c.train.checkpoint_every = "10 steps"
        if "full" in parts:
            c.prune.rounds = 3
    if model in LAYERS:
        c.net.depth = round(LAYERS[model] * c.net.depth)
    return c
