"""One formula for three units, and where its device comes from."""

from __future__ import annotations

import pytest

from cerebra_jax.config import ObjectiveCfg
from cerebra_jax.cost import device, units
from cerebra_jax.cost.units import Op
from cerebra_jax.errors import UserError

OPS = [Op(1000, 10, 4), Op(3, 500), Op(0, 7)]


def test_an_operation_costs_the_dearer_of_its_flops_and_bytes():
    seconds = units.unit(ObjectiveCfg(unit="seconds", device="1e3/1e2"), "float32", 2)
    assert units.FLOPS.price(OPS) == 1003 and isinstance(units.FLOPS.price(OPS), int)
    moved = units.unit(ObjectiveCfg(unit="bytes"), "float32", 2)
    assert moved.price(OPS) == 10 + 4 / 2 + 500 + 7
    assert seconds.price(OPS) == pytest.approx(max(1.0, 0.12) + max(0.003, 5.0) + 0.07)
    assert seconds.marginal([Op(0, 0, 100)]) == 0.0
    assert Op(2, 3, 5, 7).times(4) == Op(8, 12, 5, 28)


def test_seconds_are_those_of_the_device_and_the_dtype():
    h100 = units.unit(ObjectiveCfg(unit="seconds", device="h100"), "bfloat16", 1)
    row = device.DEVICES["h100"]
    assert (1 / h100.flop, 1 / h100.byte) == pytest.approx((row.bfloat16, row.bandwidth))
    # a CPU has a row of the table: a measurement would be another number in every session
    here = units.unit(ObjectiveCfg(unit="seconds"), "float32", 1)
    assert here.flop == 1 / device.DEVICES["cpu"].float32


@pytest.mark.parametrize("text", ["x/1e9", "1e12/", "-1/5", "nan/1", "inf/1"])
def test_a_device_that_cannot_be_read_is_refused(text):
    with pytest.raises(UserError, match="1.9e11/2.5e10"):
        device.given(text)


def test_a_device_that_is_not_in_the_table_says_how_to_measure_it(monkeypatch):
    with pytest.raises(UserError, match="choose one of cpu, t4"):
        device.given("abacus")
    monkeypatch.setattr(device, "kind_to_name", lambda kind: None)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    with pytest.raises(UserError, match="`cost` measures it"):
        device.given("")
