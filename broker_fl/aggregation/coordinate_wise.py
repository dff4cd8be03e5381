"""Coordinate-wise median and trimmed mean (Yin et al. 2018).

"Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML.

Definition 1: the median of each coordinate; of an even number of values, the mean of the middle two.
Definition 2: the ``β``-trimmed mean of each coordinate: the mean of the values without the largest and the
smallest ``β`` of them, here with ``β = f / n``. The median is the trimmed mean that leaves the middle one or
two.

They withstand ``f`` attackers of ``n ≥ 2 f + 1``: no coordinate leaves the range of the honest ones. They
need all updates at once: memory is one model per learner. Integer and boolean tensors are treated as floats
are, and rounded; of booleans the majority is taken, a tie is False.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker_fl.aggregation.blocks import by_coordinate
from broker_fl.aggregation.kept import KeptUpdates
from broker_fl.aggregation.sorting import sort_columns
from broker_fl.interfaces import Contribution, Given
from broker_fl.model import Array, Model
from broker_fl.wire import rules


class TrimmedMean:
    """The mean of each coordinate without its ``f`` smallest and ``f`` largest values."""

    def __init__(self, settings: rules.TrimmedMean) -> None:
        self._settings = settings

    def begin(self, given: Given) -> KeptUpdates:
        """Begin a round."""
        return KeptUpdates(given, self._settings, self._combine)

    def _combine(self, given: Given, updates: Sequence[Contribution]) -> tuple[Model, None]:
        trim = self._settings.max_attackers
        models = [update.model for update in updates]
        return by_coordinate(given.spec, models, lambda rows: trimmed_mean(rows, trim)), None


class Median:
    """The median of each coordinate."""

    def __init__(self, settings: rules.Median) -> None:
        self._settings = settings

    def begin(self, given: Given) -> KeptUpdates:
        """Begin a round."""
        return KeptUpdates(given, self._settings, self._combine)

    def _combine(self, given: Given, updates: Sequence[Contribution]) -> tuple[Model, None]:
        models = [update.model for update in updates]
        return by_coordinate(given.spec, models, median), None


def trimmed_mean(rows: Array, trim: int) -> Array:
    """Of each column without ``trim`` values at either end; the columns are sorted in place."""
    sort_columns(rows)
    kept: Array = rows[trim : len(rows) - trim].mean(axis=0, dtype=np.float64)
    return kept


def median(rows: Array) -> Array:
    """Of each column; the columns are sorted in place."""
    return trimmed_mean(rows, (len(rows) - 1) // 2)
