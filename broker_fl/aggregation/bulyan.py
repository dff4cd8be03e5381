"""Bulyan over Krum (El Mhamdi, Guerraoui and Rouault 2018).

"The Hidden Vulnerability of Distributed Learning in Byzantium", ICML, section 4:

1. ``θ = n - 2 f`` updates are selected: Krum's choice, then Krum's choice of those that are left, and so on.
   Towards the end fewer are left than Krum's ``n - f - 2`` neighbours ask for; a score has one at least.
2. Each coordinate of the result is the mean of the ``β = θ - 2 f`` selected values nearest to their median.

It withstands ``f`` attackers of ``n ≥ 4 f + 3``, also those that hide a large change in one coordinate,
which Krum lets through. It needs all updates at once: memory is one model per learner; time grows with ``n²``
(and, of the small matrix of distances, with ``n³``). Integer and boolean tensors have no part in the
selection; step 2 is applied to them, rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker_fl.aggregation.blocks import by_coordinate
from broker_fl.aggregation.distances import pairwise
from broker_fl.aggregation.kept import KeptUpdates
from broker_fl.aggregation.krum import scores
from broker_fl.aggregation.sorting import sort_columns
from broker_fl.interfaces import Contribution, Given
from broker_fl.model import Array, Model
from broker_fl.wire import rules


class Bulyan:
    """The mean about the median of what Krum selects."""

    def __init__(self, settings: rules.Bulyan) -> None:
        self._settings = settings

    def begin(self, given: Given) -> KeptUpdates:
        """Begin a round."""
        return KeptUpdates(given, self._settings, self._combine)

    def _combine(self, given: Given, updates: Sequence[Contribution]) -> tuple[Model, Array]:
        models = [update.model for update in updates]
        f = self._settings.max_attackers
        chosen = select(pairwise(given.spec, models, given.model()), f)
        selected = [models[index] for index in chosen]
        shares = np.zeros(len(models))
        shares[chosen] = 1.0 / len(chosen)
        count = len(selected) - 2 * f
        return by_coordinate(given.spec, selected, lambda rows: mean_about_median(rows, count)), shares


def select(squared: Array, max_attackers: int) -> list[int]:
    """Step 1: ``θ`` indices, the first selected first."""
    left = list(range(len(squared)))
    chosen: list[int] = []
    while len(chosen) < len(squared) - 2 * max_attackers:
        found = scores(squared[np.ix_(left, left)], max_attackers)
        chosen.append(left.pop(int(np.argmin(found))))
    return chosen


def mean_about_median(rows: Array, count: int) -> Array:
    """Step 2: of each column, the mean of the ``count`` values nearest to its median.

    They stand side by side in the sorted column: from the lowest place on, go up while the value that would
    be left behind is farther from the median than the one that would come in. Columns are sorted in place.
    """
    sort_columns(rows)
    num_rows, num_left_out = len(rows), len(rows) - count
    middle = rows[(num_rows - 1) // 2 : num_rows // 2 + 1].mean(axis=0, dtype=np.float64)
    first = np.count_nonzero(middle - rows[:num_left_out] > rows[count:] - middle, axis=0)
    total: Array = rows[num_left_out:count].sum(axis=0, dtype=np.float64)  # taken wherever one begins
    for place in range(num_rows):
        if not num_left_out <= place < count:
            total += np.where((first <= place) & (place < first + count), rows[place], 0.0)
    return total / count
