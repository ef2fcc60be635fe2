"""Figures of finished runs (extra `plots`: matplotlib). SVG keeps text as text."""

from __future__ import annotations

from pathlib import Path

from cerebra_jax.errors import UserError
from cerebra_jax.report.runs import Run

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe & Ito: safe for colour blindness
_DASHES = ("-", "--", "-.", ":")


def curves(groups: dict[str, list[Run]], path: Path, window: int = 50) -> None:
    """Training loss (mean of `window` steps) against training FLOPs executed, a line a seed, a colour a model."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ModuleNotFoundError:
        raise UserError("figures need matplotlib", 'pip install "cerebra-jax[plots]"') from None
    plt.rcParams["svg.fonttype"] = "none"
    plt.rcParams["svg.hashsalt"] = "cerebra"
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for i, (name, runs) in enumerate(groups.items()):
        for j, run in enumerate(runs):
            lines = [line for line in run.lines("train") if line["loss"] is not None]
            total, steps = run.result["costs"]["train_total"], run.result["steps"]
            x = [line["step"] * total / steps / 1e12 for line in lines][window - 1 :]
            losses = [line["loss"] for line in lines]
            y = [sum(losses[k : k + window]) / window for k in range(len(losses) - window + 1)]
            axes.plot(x, y, _DASHES[i % 4], color=_COLOURS[i % 6], lw=1.2, alpha=0.8, label=name if j == 0 else None)
    axes.set_xlabel("training compute executed, TFLOP")
    axes.set_ylabel(f"training loss, nats per token (mean of {window} steps)")
    axes.set_title(f"{next(iter(groups.values()))[0].result['dataset']}: loss against compute, a line a seed")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
