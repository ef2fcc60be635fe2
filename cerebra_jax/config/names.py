"""Lists the names that users may type beside today's keys: earlier ones, and those of other
libraries. No JAX here.
"""

from __future__ import annotations

import sys

from cerebra_jax import display

# {old: new}; the old ones are accepted, with one line of notice.
RENAMED_KEYS: dict[str, str] = {}
RENAMED_VALUES: dict[str, dict[str, str]] = {
    "task.name": {"longseq": "long_sequence"},
}
# Keys that were a switch, and what its two positions mean now; both still work, without a notice.
SWITCHES: dict[str, dict[bool, str]] = {"net.remat": {False: "off", True: "full"}}

# Words of other libraries, which lead to a suggestion. A word is looked up whole, then without
# its section.
_SYNONYMS: dict[str, str] = {
    "train.lr": "learning_rate lrate max_lr peak_lr base_lr step_size alpha eta",
    "train.lr_end": "min_lr final_lr end_lr lr_min eta_min lr_final",
    "train.duration": (
        "epochs steps max_steps num_steps n_steps iterations iters max_iters num_iters epoch step "
        "num_epochs n_epochs max_epochs num_train_epochs train_steps total_steps training_steps "
        "num_train_steps"
    ),
    "train.batch_size": (
        "batch bs batchsize n_batch batch_sz minibatch_size global_batch_size train_batch_size "
        "per_device_train_batch_size micro_batch_size"
    ),
    "train.accum": (
        "grad_accum gradient_accumulation accumulation_steps gradient_accumulation_steps "
        "accumulate_grad_batches accum_steps microbatches"
    ),
    "train.warmup": "warmup_steps warmup_ratio num_warmup_steps warmup_iters lr_warmup warmup_frac",
    "train.weight_decay": "wd decay l2 weightdecay adam_weight_decay",
    "train.clip": (
        "grad_clip clip_norm clip_grad max_grad_norm gradient_clipping gradient_clip_val "
        "clip_grad_norm grad_clip_norm"
    ),
    "train.b1": "beta1 beta_1 adam_beta1 momentum",
    "train.b2": "beta2 beta_2 adam_beta2",
    "train.log_every": "log_interval logging_steps log_steps log_freq log_every_n_steps",
    "train.eval_every": (
        "eval_interval eval_steps eval_freq val_check_interval evaluation_interval val_every "
        "validate_every"
    ),
    "train.checkpoint_every": (
        "save_every save_interval save_steps save_freq checkpoint_interval ckpt_every ckpt_interval"
    ),
    "train.devices": "gpus n_gpus num_gpus num_devices n_devices ngpu world_size",
    "net.width": (
        "hidden_size d_model dim embed_dim n_embd emb_dim embedding_dim hidden_dim model_dim "
        "hidden n_embed embedding_size dmodel num_hidden_units"
    ),
    "net.depth": "layers n_layers num_layers n_layer num_hidden_layers nlayers blocks num_blocks",
    "net.heads": "n_heads num_heads n_head nhead num_attention_heads attention_heads nheads",
    "net.ffn_width": (
        "d_ff ffn_dim mlp_dim intermediate_size ff_dim d_ffn dim_feedforward ffn_hidden_size "
        "mlp_width n_inner"
    ),
    "net.ffn": "activation act hidden_act activation_function mlp_type act_fn",
    "net.dropout": "drop dropout_rate drop_rate resid_pdrop p_drop hidden_dropout_prob",
    "net.dtype": "precision mixed_precision bf16 fp16 bfloat16 amp half compute_dtype torch_dtype",
    "net.remat": "gradient_checkpointing activation_checkpointing grad_checkpoint checkpointing",
    "net.name": "model arch architecture model_name model_type network backbone",
    "net.causal": "is_causal autoregressive is_decoder encoder decoder bidirectional",
    "net.window": "sliding_window window_size attention_window local_window",
    "net.attention": "attn attn_implementation attention_impl flash flash_attention use_flash",
    "net.init_std": "initializer_range init_scale initializer_std",
    "net.ssm_state": "d_state state_size n_state state_dim",
    "net.kernel": "kernel_size conv_kernel d_conv",
    "task.seq_len": (
        "context block_size max_len context_length max_length max_seq_len sequence_length "
        "ctx_len n_ctx seq_length max_seq_length max_position_embeddings seqlen window_length"
    ),
    "task.name": "task dataset_type task_name problem",
    "task.path": "csv csv_path file data_file data_path dataset_path train_file input",
    "task.data_dir": "data datadir data_folder data_root dataset_dir corpus text_dir root",
    "task.cache_dir": "cache cachedir cache_path",
    "task.vocab_size": "vocab n_vocab vocabulary vocabulary_size num_tokens",
    "task.target": "label label_column target_column y output_column",
    "task.columns": "features feature_columns input_columns x text_column",
    "task.ignore": "drop_columns exclude exclude_columns",
    "task.tfds": "hf huggingface datasets tensorflow_datasets",
    "task.valid_share": "val_split validation_split valid_split val_frac valid_size val_share",
    "task.test_share": "test_split test_size test_frac",
    "objective.lam": (
        "lambda lmbda lam_flops flop_penalty penalty cost_weight compute_penalty flops_weight "
        "lambda_flops"
    ),
    "objective.budget": "flop_budget compute_budget flops_budget target_flops",
    "net.compress.r": "compression_ratio ratio compress_ratio",
    "net.route.k": "topk top_k num_tokens_kept",
    "net.route.rate": "keep_ratio routing_rate capacity_ratio heavy_share token_rate",
    "net.route.capacity": "capacity_factor",
    "prune.keep": "sparsity prune_ratio pruning_ratio density",
    "quant.bits": "quantization quantize int8 qat load_in_8bit bits nbits",
    "seed": "random_seed random_state rng_seed manual_seed prng",
}
KEYS: dict[str, str] = {
    word: key for key, synonyms in _SYNONYMS.items() for word in synonyms.split()
}
COMMANDS: dict[str, str] = {
    "test": "eval",
    "evaluate": "eval",
    "validate": "eval",
    "measure": "eval",
    "score": "eval",
    "infer": "predict",
    "inference": "predict",
    "answer": "predict",
    "sample": "generate",
    "complete": "generate",
    "chat": "generate",
    "resume": "train",
    "fit": "train",
    "run": "train",
    "continue": "train",
    "finetune": "train",
    "price": "cost",
    "flops": "cost",
    "profile": "cost",
    "estimate": "cost",
    "summary": "cost",
    "verify": "certify",
    "benchmark": "certify",
    "prune": "shrink",
    "cut": "shrink",
    "quantize": "convert",
    "int8": "convert",
    "load": "import",
    "save": "export",
    "onnx": "export",
    "search": "sweep",
    "tune": "sweep",
    "grid": "sweep",
    "optuna": "sweep",
    "compare": "report",
    "plot": "report",
    "results": "report",
    "table": "report",
    "visualize": "heatmap",
    "explain": "analyze",
    "analyse": "analyze",
    "config": "keys",
    "options": "keys",
    "params": "keys",
}
OPTIONS: dict[str, str] = {
    "output": "workdir",
    "output_dir": "workdir",
    "out_dir": "workdir",
    "outdir": "workdir",
    "logdir": "workdir",
    "log_dir": "workdir",
    "run": "workdir",
    "run_dir": "workdir",
    "checkpoint": "workdir",
    "ckpt": "workdir",
    "model_dir": "workdir",
    "save_dir": "workdir",
    "cfg": "config",
    "conf": "config",
    "config_file": "config",
    "overwrite": "fresh",
    "restart": "fresh",
    "force": "fresh",
    "debug": "verbose",
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "n_tokens": "max_tokens",
    "num_tokens": "max_tokens",
    "temp": "temperature",
    "nucleus": "top_p",
    "text": "prompt",
    "input": "data",
    "csv": "data",
    "file": "data",
    "dry_run": "dry",
    "workers": "jobs",
    "parallel": "jobs",
    "num_workers": "jobs",
    "n_jobs": "jobs",
    "threshold": "tau",
}

_told: set[str] = set()


def current_key(key: str) -> str:
    """Returns today's name of a key, and says once where it was called otherwise."""
    if key not in RENAMED_KEYS:
        return key
    tell(f"{key} is now called {RENAMED_KEYS[key]}; the old name still works")
    return RENAMED_KEYS[key]


def current_value(key: str, value: object) -> object:
    """Returns today's name of a value of a key, and says once where it was called otherwise."""
    if isinstance(value, bool) and key in SWITCHES:
        return SWITCHES[key][value]
    renamed = RENAMED_VALUES[key] if key in RENAMED_VALUES else {}
    if not isinstance(value, str) or value not in renamed:
        return value
    tell(f"{key}={value} is now called {key}={renamed[value]}; the old name still works")
    return renamed[value]


def synonym(word: str, table: dict[str, str]) -> str:
    """Returns what a word of another library means here, or "".

    Its section is left out if need be.
    """
    word = word.lower().replace("-", "_")
    tail = word.rpartition(".")[2]
    for candidate in (word, tail):
        if candidate in table:
            return table[candidate]
    return ""


def tell(line: str) -> None:
    """Prints a notice to stderr, once."""
    if line not in _told:
        _told.add(line)
        display.say(display.printable(f"notice: {line}"), file=sys.stderr)
