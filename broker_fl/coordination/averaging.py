"""Means of metrics over learners."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.float64]


class Means:
    """Mean of each metric over the learners that report it, by weight; values that are not finite are left
    out.
    """

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._weights: defaultdict[str, float] = defaultdict(float)

    def add(self, values: Mapping[str, float], weight: float) -> None:
        """What one learner reports."""
        for name, value in values.items():
            if weight > 0 and math.isfinite(value):
                self._sums[name] += weight * value
                self._weights[name] += weight

    def add_columns(self, columns: Mapping[str, Column], weights: Column) -> None:
        """What many report: a value for each of them, NaN of those that do not."""
        for name, values in columns.items():
            usable = np.isfinite(values) & (weights > 0)
            if usable.any():
                self._sums[name] += float(np.dot(values[usable], weights[usable]))
                self._weights[name] += float(weights[usable].sum())

    def means(self) -> dict[str, float]:
        """Of all metrics, but for those whose sums are too large for a float."""
        means = {name: self._sums[name] / self._weights[name] for name in self._sums}
        return {name: mean for name, mean in means.items() if math.isfinite(mean)}


class LatestMean:
    """Mean of metrics over learners, of each learner the latest; a change costs what one learner reports.

    Sums are exact, whole multiples of the smallest float64: a huge value leaves no trace once it is replaced,
    and none overflows. Weights are numbers of examples, at least 1.
    """

    def __init__(self) -> None:
        self._latest: dict[str, tuple[dict[str, int], int]] = {}
        self.total_weight = 0
        """Of all learners."""
        self._sums: defaultdict[str, int] = defaultdict(int)
        self._weights: defaultdict[str, int] = defaultdict(int)

    def __len__(self) -> int:
        return len(self._latest)

    def __contains__(self, learner: object) -> bool:
        return learner in self._latest

    def add(self, learner: str, metrics: Mapping[str, float], weight: int) -> None:
        """Put in the place of the learner's last; values that are not finite are left out."""
        self.remove(learner)
        usable = {name: weight * _whole(value) for name, value in metrics.items() if math.isfinite(value)}
        self._latest[learner] = usable, weight
        self.total_weight += weight
        for name, product in usable.items():
            self._sums[name] += product
            self._weights[name] += weight

    def remove(self, learner: str) -> None:
        """Forget what the learner reported, if it did."""
        products, weight = self._latest.pop(learner, ({}, 0))
        self.total_weight -= weight
        for name, product in products.items():
            self._sums[name] -= product
            self._weights[name] -= weight
            if not self._weights[name]:
                del self._sums[name], self._weights[name]

    def mean(self) -> dict[str, float]:
        """Of each metric over the learners that report it, correctly rounded."""
        return {name: total / (self._weights[name] << _SHIFT) for name, total in self._sums.items()}

    def reaches_without_any_one(self, name: str, value: float, sign: int) -> bool:
        """Whether the mean of this metric is at least ``value`` (``sign`` 1) or at most (-1), whichever one
        learner is left out: ``target.py``, without rounding. One learner alone decides.
        """
        line = _whole(value)
        excesses = [
            sign * (products[name] - weight * line)
            for products, weight in self._latest.values()
            if name in products
        ]
        return len(excesses) < 2 or sum(excesses) >= max(excesses)


_SHIFT = 1074
"""The smallest float64 is ``2**-1074``."""


def _whole(value: float) -> int:
    """How many times the smallest float64 it is."""
    numerator, denominator = value.as_integer_ratio()
    return numerator << (_SHIFT + 1 - denominator.bit_length())
