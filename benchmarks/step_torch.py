"""A plain PyTorch Transformer of the same architecture as `transformer`.

It has pre-LN, RoPE, GELU (tanh), a tied head, no biases, SDPA, AdamW (fused) and clipping. It
starts from our weights, so its losses must be ours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cerebra_jax.config import RunCfg, TrainCfg
from cerebra_jax.cost.timing import Unavailable, Variant, best_rate, cores

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError:
    torch = None

INSTALL = "pip install torch --index-url https://download.pytorch.org/whl/cpu"


def build(cfg: RunCfg, folder: Path, compiled: bool) -> Variant:
    """Returns a training step on the CPU, eager or by torch.compile.

    Raises Unavailable, with what to do, where PyTorch or torch.compile does not work.
    """
    if torch is None:
        raise Unavailable(f"PyTorch is not installed: {INSTALL}")
    torch.set_num_threads(cores())

    # our weights and batches
    net = _module()(cfg)
    _load(net, dict(np.load(folder / "transformer.npz")))
    batches = [dict(np.load(folder / f"batch_{i}.npz")) for i in range(3)]
    pairs = [
        tuple(torch.from_numpy(b[k]).long() for k in ("inputs_BxL", "labels_BxL")) for b in batches
    ]

    # a step, as ours
    optimizer = _adamw(net, cfg.train)
    loss_of = torch.compile(net) if compiled else net
    done = 0

    def steps(n: int) -> float:
        nonlocal done
        for _ in range(n):
            loss = loss_of(*pairs[done % len(pairs)])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), cfg.train.clip)
            optimizer.step()
            done += 1
        return loss.item()

    try:
        losses = [steps(1) for _ in pairs]
    except Exception as e:  # torch.compile needs a C++ compiler; its errors have no common base
        if not compiled:
            raise
        raise Unavailable(
            f"torch.compile does not work here: {type(e).__name__}: {str(e)[:200]}"
        ) from e

    # what the table says beside its times
    n = 1024
    a = torch.from_numpy(np.random.default_rng(0).standard_normal((n, n)).astype(np.float32))
    info = {
        "params": sum(p.numel() for p in net.parameters()),
        "losses": losses,
        "versions": {"torch": torch.__version__, "threads": torch.get_num_threads()},
        "blas": "MKL" if torch.backends.mkl.is_available() else "no MKL",
    }
    return Variant(steps, lambda: best_rate(lambda: torch.mm(a, a), 2 * n**3), info)


def _module():
    """Returns the module class; PyTorch may be missing when this file is imported."""

    class Layer(nn.Module):
        def __init__(self, D: int, H: int, ffn: int):
            super().__init__()
            self.H = H
            self.norm1 = nn.LayerNorm(D)
            self.qkv = nn.Linear(D, 3 * D, bias=False)
            self.out = nn.Linear(D, D, bias=False)
            self.norm2 = nn.LayerNorm(D)
            self.up = nn.Linear(D, ffn, bias=False)
            self.down = nn.Linear(ffn, D, bias=False)

        def forward(self, x_BxLxD, cos_LxC, sin_LxC):
            B, L, D = x_BxLxD.shape
            qkv = self.qkv(self.norm1(x_BxLxD)).view(B, L, 3, self.H, D // self.H)
            q_BxHxLxC, k_BxHxLxC, v_BxHxLxC = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            q_BxHxLxC = _rope(q_BxHxLxC, cos_LxC, sin_LxC)
            k_BxHxLxC = _rope(k_BxHxLxC, cos_LxC, sin_LxC)
            y_BxHxLxC = F.scaled_dot_product_attention(
                q_BxHxLxC, k_BxHxLxC, v_BxHxLxC, is_causal=True
            )
            x_BxLxD = x_BxLxD + self.out(y_BxHxLxC.transpose(1, 2).reshape(B, L, D))
            return x_BxLxD + self.down(F.gelu(self.up(self.norm2(x_BxLxD)), approximate="tanh"))

    class Transformer(nn.Module):
        def __init__(self, cfg: RunCfg):
            super().__init__()
            D = cfg.net.width
            H = cfg.net.heads
            L = cfg.task.seq_len
            self.table = nn.Embedding(cfg.task.vocab_size, D)
            self.layers = nn.ModuleList(
                Layer(D, H, cfg.net.ffn_width) for _ in range(cfg.net.depth)
            )
            self.norm = nn.LayerNorm(D)
            half = D // H // 2
            angle = torch.arange(L)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
            self.register_buffer("cos_LxC", torch.cos(angle))
            self.register_buffer("sin_LxC", torch.sin(angle))

        def forward(self, inputs_BxL, labels_BxL):
            x_BxLxD = self.table(inputs_BxL)
            for layer in self.layers:
                x_BxLxD = layer(x_BxLxD, self.cos_LxC, self.sin_LxC)
            logits = F.linear(self.norm(x_BxLxD), self.table.weight)
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels_BxL.reshape(-1))

    return Transformer


def _rope(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _adamw(net, cfg: TrainCfg):
    groups = [
        {"params": [p for p in net.parameters() if p.ndim == 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.b1, cfg.b2), fused=True)


def _load(net, ours: dict[str, np.ndarray]) -> None:
    """Copies our weights, whose kernels are transposed there; raises if one of them is not used."""
    with torch.no_grad():

        def put(parameter, *names: str) -> None:
            arrays = [ours.pop(name) for name in names]
            array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)
            parameter.copy_(torch.from_numpy(array.T if names[0].endswith("kernel") else array))

        def put_norm(norm, name: str) -> None:
            put(norm.weight, f"{name}/norm/scale")
            put(norm.bias, f"{name}/norm/bias")

        put(net.table.weight, "embed/table")
        put_norm(net.norm, "norm")
        for i, layer in enumerate(net.layers):
            name = f"layer_{i:02d}"
            put(layer.qkv.weight, f"{name}/attention/q/kernel", f"{name}/attention/kv/kernel")
            put(layer.out.weight, f"{name}/attention/out/kernel")
            put(layer.up.weight, f"{name}/ffn/up/kernel")
            put(layer.down.weight, f"{name}/ffn/down/kernel")
            put_norm(layer.norm1, f"{name}/attention_norm")
            put_norm(layer.norm2, f"{name}/ffn_norm")
    if ours:
        raise RuntimeError(f"weights that the PyTorch model has not: {sorted(ours)}")
