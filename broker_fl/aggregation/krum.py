"""Krum and Multi-Krum (Blanchard et al. 2017).

"Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NIPS, section 4:

``s(i) = Σ_{i→j} ‖V_i - V_j‖²`` over the ``n - f - 2`` updates ``V_j`` nearest to ``V_i``. Krum is the update
of the lowest score; Multi-Krum the mean of the ``m`` updates of the lowest scores.

They withstand ``f`` attackers of ``n ≥ 2 f + 3``. Multi-Krum's ``m`` is at most ``n - f - 2`` (El Mhamdi et
al. 2018, section 3; that many honest updates are near to one another). They need all updates at once: memory
is one model per learner; time grows with ``n²``. Integer and boolean tensors have no part in the score; they
are the selected updates' mean, rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker_fl.aggregation.blocks import by_coordinate
from broker_fl.aggregation.distances import pairwise
from broker_fl.aggregation.kept import KeptUpdates
from broker_fl.interfaces import Contribution, Given
from broker_fl.model import Array, Model
from broker_fl.wire import rules


class Krum:
    """The update, or the mean of the updates, of the lowest scores."""

    def __init__(self, settings: rules.Krum | rules.MultiKrum) -> None:
        self._settings = settings

    def begin(self, given: Given) -> KeptUpdates:
        """Begin a round."""
        return KeptUpdates(given, self._settings, self._combine)

    def _combine(self, given: Given, updates: Sequence[Contribution]) -> tuple[Model, Array]:
        models = [update.model for update in updates]
        squared = pairwise(given.spec, models, given.model())
        found = scores(squared, self._settings.max_attackers)
        # Of equal scores the first learner's is taken, whoever came first.
        best = np.argsort(found, kind="stable")[: self._num_selected(len(models))]
        chosen = [models[index] for index in best]
        shares = np.zeros(len(models))
        shares[best] = 1.0 / len(best)
        return by_coordinate(given.spec, chosen, lambda rows: rows.mean(axis=0, dtype=np.float64)), shares

    def _num_selected(self, num_updates: int) -> int:
        if isinstance(self._settings, rules.Krum):
            return 1
        return self._settings.num_selected or num_updates - self._settings.max_attackers - 2


def scores(squared: Array, max_attackers: int) -> Array:
    """``s(i)`` of each update, from their squared distances; of at least one neighbour where there is one."""
    num_updates = len(squared)
    num_neighbours = min(max(1, num_updates - max_attackers - 2), num_updates - 1)
    others = squared[~np.eye(num_updates, dtype=bool)].reshape(num_updates, num_updates - 1)
    nearest: Array = np.sort(others, axis=1)[:, :num_neighbours].sum(axis=1)
    return nearest
