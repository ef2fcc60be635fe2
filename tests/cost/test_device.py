"""The device table and the roofline; no times are asserted."""

import types

import jax
import pytest

from cerebra_jax.cost import device
from cerebra_jax.errors import UserError


def test_table_has_every_promised_row_with_sane_numbers():
    assert set(device.DEVICES) == {"cpu", "t4", "a100", "h100", "h200", "v5e", "v6e"}
    for row in device.DEVICES.values():
        assert row.bfloat16 >= row.float32 > row.bandwidth > row.memory > 0
        assert not row.measured


def test_roofline_is_the_slower_of_the_two():
    chip = device.Device("x", float32=100.0, bfloat16=200.0, bandwidth=10.0, memory=1)
    assert device.roofline_seconds(1000, 10, chip) == 10.0  # compute bound
    assert device.roofline_seconds(1000, 10, chip, "bfloat16") == 5.0
    assert device.roofline_seconds(10, 1000, chip) == 100.0  # memory bound


@pytest.mark.parametrize(
    "kind, name",
    [
        ("Tesla T4", "t4"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("TPU v5 lite", "v5e"),
        ("TPU v6 lite", "v6e"),
        ("TPU v6e", "v6e"),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA T400 4GB", None),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_device_kinds(kind, name):
    assert device.kind_to_name(kind) == name


def test_every_row_has_a_platform_and_other_names_that_of_this_machine(monkeypatch):
    platforms = {name: device.platform_of(name) for name in device.DEVICES}
    gpus = {"t4": "old_gpu"} | dict.fromkeys(("a100", "h100", "h200"), "gpu")
    assert platforms == {"cpu": "cpu"} | gpus | dict.fromkeys(("v5e", "v6e"), "tpu")
    assert device.platform_of("NVIDIA H100 80GB HBM3") == "gpu"
    assert device.platform_of("TPU v5 lite") == "tpu"
    assert device.present_platform() == jax.default_backend()
    monkeypatch.setattr(device, "present_platform", lambda: "here")
    found = [device.platform_of(name) for name in ("", "1e12/1e9", "h100", "cpu")]
    assert found == ["here", "here", "gpu", "cpu"]


def test_a_gpu_before_ampere_is_an_old_one(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = []
    for capability in ("7.5", "8.0", "10.0", "gfx942"):
        gpu = types.SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(jax, "local_devices", lambda gpu=gpu: [gpu])
        found.append(device.present_platform())
    assert found == ["old_gpu", "gpu", "gpu", "gpu"]


def test_unknown_name_is_the_users_mistake():
    with pytest.raises(UserError, match="h100"):
        device.lookup("h1000")


def test_detect_measures_a_cpu():
    here = device.detect()
    assert here.measured and here.name == "cpu"
    assert min(here.float32, here.bfloat16, here.bandwidth, here.memory) > 0
