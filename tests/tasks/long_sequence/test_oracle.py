"""The oracle router: what the task marks takes the heavy path, in the slots of any other router."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.cli.flags import parse
from cerebra_jax.errors import UserError
from cerebra_jax.layers.rows import ranks, tokens
from cerebra_jax.models import model as models
from cerebra_jax.models.stack import capacity_of
from cerebra_jax.routing import routers as router
from cerebra_jax.tasks import registry
from cerebra_jax.training.experiment import prepare

L, K = 40, 5  # mqar: 3 K tokens are needed


@pytest.fixture
def session(tiny_cfg):
    def make(**net):
        task = {"name": "longseq", "kind": "mqar", "seq_len": L, "pairs": K, "vocab_size": 30}
        cfg = tiny_cfg(
            {
                "task": task,
                "net.name": "cerebra",
                "net.depth": 2,
                "net.route": {"mode": "oracle"} | net,
            }
        )
        return prepare(cfg, registry.build(cfg))

    return make


def decided(s):
    batch, state = s.task.train_batch(0, 0, 4), s.fresh()

    @jax.jit
    def run(batch):
        variables = {"params": state.params, "routing": {}}
        return s.model.apply(variables, batch, models.neutral_knobs())[1]

    return batch, run(batch)


@pytest.mark.parametrize("kv", ["all", "routed"])
def test_an_oracle_in_slots_learns_what_a_masked_one_does(kv, session):
    def of(s, params):
        def loss(params):
            out, _ = s.model.apply({"params": params, "routing": {}}, batch, models.neutral_knobs())
            return s.task.loss(out, batch, 1024)[0]

        return jax.jit(jax.value_and_grad(loss))(params)

    slots, masked = (
        session(rate=3 * K / L, kv=kv, part="block", dispatch=dispatch)
        for dispatch in (True, False)
    )
    batch, params = slots.task.train_batch(0, 0, 4), slots.fresh().params
    got, want = of(slots, params), of(masked, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_what_is_needed_is_kept_and_nothing_else(session):
    batch, aux = decided(session(rate=3 * K / L))
    for kept_BxL in aux.scores["kept"]:
        np.testing.assert_array_equal(kept_BxL, batch["needed_BxL"])
    np.testing.assert_allclose(aux.stats["kept"], 3 * K / L)
    np.testing.assert_array_equal(aux.stats["overflow"], 0)
    np.testing.assert_allclose(aux.expected_B, aux.hard_B, rtol=1e-6)


def test_too_few_slots_hold_the_first_of_them_and_the_rest_is_reported(session):
    batch, aux = decided(session(rate=0.2, capacity=1.0))
    first = batch["needed_BxL"] & (np.cumsum(batch["needed_BxL"], axis=1) <= 0.2 * L)
    np.testing.assert_array_equal(aux.scores["kept"][0], first)
    np.testing.assert_allclose(aux.stats["overflow"], (3 * K - 0.2 * L) / L, atol=1e-6)


def test_padding_is_never_kept():
    mask = np.arange(L)[None] < np.array([[L], [7], [0]])
    rows = tokens(jnp.ones((3, L, 8)), ranks(L, False, mask), False, mask)
    now = router.Circumstances(None, 0, 1.0, jnp.arange(3), np.ones((3, L), bool))
    np.testing.assert_array_equal(router.OracleRouter().apply({}, rows, now).wanted, mask)


@pytest.mark.parametrize("causal", [True, False])
def test_an_oracle_has_the_slots_of_the_others_wherever_its_tokens_stand(causal):
    net = config.NetCfg(name="cerebra", causal=causal, route=config.RouteCfg(mode="random"))
    oracle = dataclasses.replace(net, route=config.RouteCfg(mode="oracle"))
    for n in (128, 2048):
        found = capacity_of(oracle, oracle.route, n, True).layout
        assert found.K == capacity_of(net, net.route, n, True).layout.K
        assert found.tokens == ((0, n),)


def test_who_marks_nothing_gets_no_oracle(tiny_cfg, session):
    for name, more in (
        ("text", {}),
        ("listops", {"net.causal": False, "task.rows": 100, "task.shortest": 5}),
    ):
        cfg = tiny_cfg(
            {"net.name": "cerebra", "net.route.mode": "oracle", "task.name": name} | more
        )
        with pytest.raises(UserError, match=f"oracle, but task.name={name} does not mark"):
            registry.fitted(cfg, registry.sketch(cfg).shape)
    with pytest.raises(UserError, match="oracle for chiar"):
        tiny_cfg({"net.name": "chiar", "net.route.mode": "oracle"})
    model = session().model
    assert model.token is None
    with pytest.raises(UserError, match="oracle: nobody marks"):
        model.init_cache(np.arange(2))


def test_its_parts_of_the_configuration_are_cerebra_with_the_same_program():
    cfgs = {
        part: parse([f"--config=configs/longseq.py:{part}"]).cfg
        for part in ("cerebra", "oracle", "random")
    }
    costs = {part: models.build(cfg, 512).cost.executed for part, cfg in cfgs.items()}
    learned = {name: n for name, n in costs["cerebra"].items() if not name.endswith("/router")}
    assert costs["oracle"] == costs["random"] == learned
    with pytest.raises(UserError, match="copy needs every token"):
        parse(["--config=configs/longseq.py:copy-oracle"])
