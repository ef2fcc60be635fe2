"""The preview: rows that add up, estimates that name themselves, nothing large allocated."""

import jax
import jax.numpy as jnp
import pytest

from cerebra_jax.cli import cost as command
from cerebra_jax.cli.sweep_price import price
from cerebra_jax.cost import device, preview
from cerebra_jax.cost.preview import Batches
from cerebra_jax.types import Cost

CHIP = device.Device("chip", float32=1e12, bfloat16=2e12, bandwidth=1e9, memory=1 << 30)


def test_equal_neighbours_share_a_row_and_sums_are_kept():
    layers = {f"layer_{i:02d}/a": price for i, price in enumerate((1, 5, 5, 5, 1))}
    parts = layers | {"head": 7}
    cost = Cost(parts, {k: 2 * v for k, v in parts.items()})
    found = preview.rows(cost, Cost({}, {"head": 3}))
    assert [(r.block, r.count, r.model, r.executed) for r in found] == [
        ("layer_00", 1, 1, 2),
        ("layer_01-03", 3, 15, 30),
        ("layer_04", 1, 1, 2),
        ("head", 1, 7, 14),
    ]
    assert sum(r.model for r in found) == cost.model_flops
    assert [r.dense for r in found] == [0, 0, 0, 3]


def product(params, batch):
    return jnp.sum(jnp.tanh(batch @ params))


def batch_of(n):
    return jax.ShapeDtypeStruct((n, 8), jnp.float32)


W = jax.ShapeDtypeStruct((8, 16), jnp.float32)


def test_a_small_step_is_timed_and_scales_with_accumulation():
    one = preview.step(product, W, Batches(batch_of, 4, 1), CHIP, "float32", float("inf"))
    two = preview.step(product, W, Batches(batch_of, 4, 2), CHIP, "float32", float("inf"))
    assert one.timed and one.seconds > 0
    forward = 2 * 4 * 8 * 16
    assert one.flops == 2 * forward  # and the gradient of the weights
    assert two.flops == 2 * one.flops


def test_a_step_too_slow_to_time_whole_is_timed_in_part():
    slow = CHIP._replace(float32=1e3)
    step = preview.step(product, W, Batches(batch_of, 64, 1), slow, "float32", float("inf"))
    assert step.timed == 1
    whole = preview.step(product, W, Batches(batch_of, 64, 1), CHIP, "float32", 0.0)
    assert step.flops == whole.flops and step.activations >= whole.activations * 63 // 64


def test_seconds_of_a_cut_batch_are_scaled_to_the_step(monkeypatch):
    monkeypatch.setattr(preview, "_timed", lambda *_: (0.5, 1000))
    slow = CHIP._replace(float32=1e3)
    step = preview.step(product, W, Batches(batch_of, 64, 3), slow, "float32", float("inf"))
    assert (step.timed, step.seconds) == (1, 3 * 0.5 * 64)


@pytest.mark.parametrize("late", [True, False], ids=["late", "large"])
def test_otherwise_the_roofline(late, monkeypatch):
    if not late:
        monkeypatch.setattr(preview, "SMALL_PARAMS", 1)
    deadline = 0.0 if late else float("inf")
    step = preview.step(product, W, Batches(batch_of, 4), CHIP, "float32", deadline)
    assert not step.timed
    assert (
        step.seconds == device.roofline_seconds(step.flops, step.bytes, CHIP) / preview.EFFICIENCY
    )
    assert step.activations > 0


@pytest.mark.parametrize("name", ["transformer", "chiar"])
def test_the_command_prints_what_it_returns(name, tiny_cfg, monkeypatch):
    lines = []
    cfg = tiny_cfg({"net.name": name, "train.devices": 1})
    monkeypatch.setattr(command, "QUICK", float("inf"))  # however loaded the machine is
    found = command.preview(cfg, lines.append)
    text = "\n".join(lines)
    assert ("DCT by fft" in text) == (name == "chiar")
    for kind in ("executed", "model"):
        of_rows = sum(row[kind] for row in found["blocks"])
        assert of_rows == round(found["flops_per_token"][kind] * cfg.task.seq_len)
    assert (found["rel_flops"]["executed"] == 1.0) == (name == "transformer")
    assert found["total_flops"] == 8 * found["flops_per_token"]["train_step"] * 8 * 32
    assert found["timed_examples"] == 8 and "(timed here)" in text
    words = ("params", "head", "attention", "memory", "tokens/s", "checkpoints", "1 MAC = 2 FLOPs")
    assert all(word in text for word in words)
    assert "\x1b" not in text  # not a terminal: no control codes


@pytest.mark.parametrize("twin", ["", "equal_flops"])
def test_a_preview_under_a_budget_is_of_the_program_that_the_run_ends_with(twin, tiny_cfg):
    """And its total is that of all programs on the way, as the steps of a sweep are priced."""
    lines = []
    keys = {"net.name": "cerebra", "net.route.tau": "learned", "objective.budget": 0.85}
    cfg = tiny_cfg(keys | {"twin": twin, "task.seq_len": 64, "train.devices": 1})
    found, priced = command.preview(cfg, lines.append), price(cfg)
    assert found["rel_flops"]["executed"] == priced["executed"]
    assert (abs(priced["executed"] - 0.85) < 0.03) == (not twin)
    last = found["total_flops"] / found["steps"] / found["flops_per_token"]["train_step"] / (8 * 64)
    assert last == pytest.approx(priced["flops"] / 8 / priced["step_flops"])
    assert (found["budget"] is None) == bool(twin)
    assert ("the last one's" in "\n".join(lines)) == (not twin)


def test_a_large_model_is_previewed_from_its_shapes(tiny_cfg):
    lines = []
    net = {"name": "transformer", "depth": 28, "width": 1024, "heads": 16, "ffn_width": 4096}
    task = {"tokenizer": "bpe", "vocab_size": 50257}
    cfg = tiny_cfg({"net": net | {"scan": True}, "task": task, "train.duration": "5 epochs"})
    before = len(jax.live_arrays())
    found = command.preview(cfg, lines.append)
    assert 4.0e8 < found["params"] < 4.1e8
    assert not found["timed_examples"] and found["total_flops"] is None
    assert sum(a.nbytes for a in jax.live_arrays()[before:]) < 1 << 20
    assert "a guess" in "\n".join(lines) and "per million tokens" in "\n".join(lines)


def test_a_model_that_does_not_fit_is_said_so(tiny_cfg, monkeypatch):
    monkeypatch.setattr(device, "detect", lambda: CHIP._replace(memory=1))
    lines = []
    command.preview(tiny_cfg(), lines.append)
    assert "DOES NOT FIT" in "\n".join(lines)


def test_a_preview_is_of_the_device_that_is_asked_for(tiny_cfg):
    lines = []
    net = {"net.name": "transformer", "net.dtype": "bfloat16", "net.width": 32, "net.heads": 2}
    here = command.preview(tiny_cfg(net), lines.append)
    there = command.preview(tiny_cfg(net | {"objective.device": "h100"}), lines.append)
    assert there["device"] == "h100 x 1" and there["memory_bytes"]["of"] == 80 * 10**9
    assert here["timed_examples"] and not there["timed_examples"]
    assert here["traffic"] is None and there["traffic"]["bytes"] > 0
    assert there["step_seconds"] == there["traffic"]["seconds"]
    # the fused kernel visits no pair above the diagonal
    executed = [found["flops_per_token"]["executed"] for found in (here, there)]
    assert executed[1] == there["flops_per_token"]["model"] < executed[0]
    assert "modelled from the kernels" in lines[-4] and "traffic" in lines[-5]
