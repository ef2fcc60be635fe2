"""Adaptive capacity: programs shrink when a policy keeps less, grow again when it must, and do not
flap.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.policies import adaptive_capacity

SLOTS = (0.5, 0.25, 0.125)


def drive(wanted_TxRxB):
    """(program of every step, share of tokens without a slot in it)."""

    @jax.jit
    def run():
        def step(state, wanted_RxB):
            lost = adaptive_capacity.lost(wanted_RxB, SLOTS).mean(2)
            return adaptive_capacity.follow(state, lost), (
                state["program"],
                lost[0, state["program"]],
            )

        return jax.lax.scan(
            step, adaptive_capacity.init(SLOTS), jnp.asarray(wanted_TxRxB, jnp.float32)
        )[1]

    return tuple(np.asarray(x) for x in run())


def around(mean_T, spread=0.02, seed=0):
    """Demand of 2 layers and 8 examples about a mean per step."""
    noise = np.random.RandomState(seed).standard_normal((len(mean_T), 2, 8))
    return np.clip(np.asarray(mean_T)[:, None, None] + spread * noise, 0, 1)


def test_a_falling_demand_gets_ever_smaller_programs_and_loses_nothing_to_speak_of():
    program, lost = drive(around(np.linspace(0.45, 0.02, 600)))
    assert program[0] == 0 and program[-1] == 2 and (np.diff(program) >= 0).all()
    assert lost.max() < adaptive_capacity.LOST
    assert (program[:90] == 0).all()  # the start says nothing yet


def test_a_demand_that_comes_back_gets_its_slots_back():
    mean = np.concatenate([np.full(200, 0.18), np.full(200, 0.4), np.full(300, 0.18)])
    program, lost = drive(around(mean))
    assert program[199] == 1 and program[220] == 0 and program[-1] == 1
    late = np.flatnonzero(program[200:400] == 0)[0]
    assert late < 20  # steps with overflow before the larger program
    assert lost[200 + late :].max() < adaptive_capacity.LOST


@pytest.mark.parametrize("mean", [0.18, 0.2, 0.21, 0.22, 0.24, 0.25, 0.26])
def test_a_demand_near_the_size_of_a_program_does_not_flap(mean):
    program, lost = drive(around(np.full(3000, mean), spread=0.05))
    assert np.count_nonzero(np.diff(program)) <= 1
    assert (
        lost[program == 1].mean() < 1.5 * adaptive_capacity.LOST if (program == 1).any() else True
    )


def test_one_long_example_is_not_averaged_away():
    """Demand of 0.1 on average, but every eighth example wants 0.8."""
    wanted = np.full((300, 2, 8), 0.0)
    wanted[:, :, 0] = 0.8
    program, _ = drive(wanted)
    assert (program == 0).all()


def test_a_state_after_any_step_goes_on_alike():
    wanted = around(np.linspace(0.4, 0.05, 400))
    whole, _ = drive(wanted)
    state = adaptive_capacity.init(SLOTS)
    for i, w in enumerate(wanted):
        assert int(state["program"]) == whole[i]
        known = int(
            state["next"]
        )  # when step i is dispatched, the host knows the program of step i + 1
        state = adaptive_capacity.follow(
            state, adaptive_capacity.lost(jnp.asarray(w, jnp.float32), SLOTS).mean(2)
        )
        assert int(state["program"]) == known


def test_programs_differ_in_slots_and_only_where_a_router_can_learn_to_keep_less(tiny_cfg):
    def programs(**keys):
        net = {"name": "cerebra", "route": {"tau": "learned", "rate": 0.25}}
        return adaptive_capacity.programs(tiny_cfg({"net": net, "objective.lam": 0.1} | keys))

    found = programs()
    assert adaptive_capacity.slots(found) == (0.3125, 0.15625, 0.078125)
    assert {c.net.route.rate for c in found} == {0.25} and len(
        {c.net.route.floor for c in found}
    ) == 1
    assert adaptive_capacity.slots(programs(**{"net.route.capacity": 100.0})) == (1.0, 0.5, 0.25)
    assert len(programs(**{"objective.buckets": 5})) == 5
    chiar = {"net": {"name": "chiar", "route": {"mode": "hard", "tau": "running"}}}
    assert len(programs(**chiar)) == 3
    for keys in (
        {"objective.lam": 0.0},
        {"objective.lam": 0.0, "objective.budget": 0.7},
        {"net.route.tau": "running"},
        {"net.route.dispatch": False},
        {"net.route.by_layer": "1,2"},
        {"net.route.by_demand": True},
        {"objective.buckets": 1},
    ):
        assert len(programs(**keys)) == 1, keys
