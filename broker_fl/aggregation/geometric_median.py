"""Geometric median: robust federated aggregation, RFA (Pillutla, Kakade and Harchaoui 2022).

"Robust Aggregation for Federated Learning", IEEE Transactions on Signal Processing 70, equation 6 and
algorithm 2, the smoothed Weiszfeld algorithm. The point of the least ``Σ α_i ‖v - w_i‖`` is found by

``β_i ← α_i / max(ν, ‖v - w_i‖)``,  ``v ← Σ β_i w_i / Σ β_i``,

from the model that was given, so that an attacker who is far away weighs next to nothing from the first step
on. It is over after ``max_iterations``, or when the sum falls by less than ``tolerance`` of itself.

It withstands ``f`` attackers of ``n ≥ 2 f + 1`` when all weigh the same, the default; weighted by examples,
as in the paper, attackers whose ``α_i`` are together below a half. It needs all updates at once: memory is
one model per learner. Integer and boolean tensors have no part in distances; they are the mean of the same
weights ``β``, rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker_fl.aggregation.blocks import by_coordinate
from broker_fl.aggregation.distances import to_point
from broker_fl.aggregation.kept import KeptUpdates
from broker_fl.interfaces import Contribution, Given
from broker_fl.model import Array, Model, ModelSpec
from broker_fl.wire import rules


class GeometricMedian:
    """The point nearest to all updates."""

    def __init__(self, settings: rules.GeometricMedian) -> None:
        self._settings = settings

    def begin(self, given: Given) -> KeptUpdates:
        """Begin a round."""
        return KeptUpdates(given, self._settings, self._combine, self._settings.weighting)

    def _combine(self, given: Given, updates: Sequence[Contribution]) -> Model:
        by_examples = self._settings.weighting == "examples"
        weights = np.array([update.num_examples if by_examples else 1 for update in updates], np.float64)
        points = [*(update.model for update in updates), given.model()]
        alpha = np.append(weights / weights.sum(), 0.0)
        found = self._weiszfeld(given.spec, points, alpha)[:-1]
        return by_coordinate(given.spec, points[:-1], lambda rows: found @ rows.astype(np.float64))

    def _weiszfeld(self, spec: ModelSpec, points: Sequence[Model], alpha: Array) -> Array:
        """The last ``β_i / Σ β_i``. ``v`` begins at the last point, which weighs nothing itself."""
        v = np.zeros(len(points))
        v[-1] = 1.0
        before = np.inf
        for _ in range(self._settings.max_iterations):
            distances = to_point(spec, points, v)
            beta = alpha / np.maximum(self._settings.smoothing, distances)
            v = beta / beta.sum()
            total = float(alpha @ np.where(alpha > 0, distances, 0.0))
            if before - total <= self._settings.tolerance * total < np.inf:
                break
            before = total
        return v
