"""What a routed layer says about its decisions: costs, statistics, what thresholds follow."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from cerebra_jax.config import RouteCfg
from cerebra_jax.routing import thresholds
from cerebra_jax.routing.decision_cost import cost_of
from cerebra_jax.routing.entropy_router import Choice, uses
from cerebra_jax.routing.routed import Decided, fullest
from cerebra_jax.routing.routers import Route, scored
from cerebra_jax.types import LayerDecision, LayerReport

NOTHING = LayerReport(None, None, {}, {}, {}, {})
"""Of a layer that takes no decision."""


@dataclass(frozen=True)
class Reporter:
    """Reports the decisions of one layer; `cost` is what they cost."""

    route: RouteCfg
    causal: bool
    cost: LayerDecision

    def report(self, route: Route | None, decided: Decided | None, mask_BxL, rate) -> LayerReport:
        """Returns the report of a layer of Cerebra or MoD."""
        if route is None:
            return NOTHING
        assert decided is not None, "every decision is carried out"
        kept = decided.kept_BxL.astype(jnp.float32)
        # below the floor the penalty no longer pushes: thresholds would chase scores that fall
        # for ever
        moving = kept.mean(1, keepdims=True) > self.route.floor
        p_BxL = jnp.where(moving, route.p, jax.lax.stop_gradient(route.p))
        stats = self._stats(route.wanted, kept)
        stats["gate"] = decided.gate_BxL.sum(1) / jnp.maximum(kept.sum(1), 1)
        losses, observed = {}, {}
        if scored(self.route):
            real = jnp.ones_like(kept) if mask_BxL is None else mask_BxL.astype(jnp.float32)
            square = (real * jnp.square(route.score)).sum(1)
            losses["z_loss"] = square / jnp.maximum(real.sum(1), 1)
        if self.route.mode == "threshold":
            observed = thresholds.observe(self.route, route.score, mask_BxL, rate)
        scores = {"score": jax.lax.stop_gradient(route.score), "kept": decided.kept_BxL}
        return LayerReport(self._cost(p_BxL), self._cost(kept), stats, observed, scores, losses)

    def report_choice(self, choice: Choice, decided: Decided, rbf_kept, rate) -> LayerReport:
        """Returns the report of a layer of CHIAR, among two or three operators."""
        route = choice.attention
        kept = decided.kept_BxL.astype(jnp.float32)
        expected_B, hard_B = self._cost(route.p), self._cost(kept)
        stats = self._stats(route.wanted, kept)
        stats |= uses(choice, decided.kept_BxL, rbf_kept, self.route.mode == "soft")
        scores = {"score": jax.lax.stop_gradient(route.score), "kept": decided.kept_BxL}
        if choice.rbf is not None:
            mixed = rbf_kept.astype(jnp.float32)
            expected_B += self.cost.mixed * choice.rbf.p.sum(1)
            hard_B += self.cost.mixed * mixed.sum(1)
            stats["overflow"] += (choice.rbf.wanted.astype(jnp.float32) - mixed).mean(1)
            scores["mixed"] = rbf_kept
        observed = thresholds.observe_entropy(self.route, route.score, rate)
        return LayerReport(expected_B, hard_B, stats, observed, scores, {})

    def add(self, report: LayerReport, lost_B) -> LayerReport:
        """Returns the report with the reconstruction loss of the light path."""
        return report._replace(losses=report.losses | {"reconstruct": lost_B})

    def _cost(self, p_BxL):
        return cost_of(p_BxL, self.cost, self.route.kv, self.causal)

    def _stats(self, wanted_BxL, kept) -> dict[str, jax.Array]:
        return {
            "kept": kept.mean(1),
            "wanted": fullest(wanted_BxL, self.causal),
            "overflow": (wanted_BxL.astype(jnp.float32) - kept).mean(1),
        }
