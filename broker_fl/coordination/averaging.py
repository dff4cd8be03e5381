"""Means of metrics over learners."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping


def weighted_mean(metrics: Iterable[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Mean of each metric over the learners that report it, by weight; values that are not finite are left
    out.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    weights: defaultdict[str, float] = defaultdict(float)
    for values, weight in metrics:
        for name, value in values.items():
            if weight > 0 and math.isfinite(value):
                sums[name] += weight * value
                weights[name] += weight
    return {name: sums[name] / weights[name] for name in sums}


class LatestMean:
    """Mean of metrics over learners, of each learner the latest; a change costs what one learner reports.

    Weights are numbers of examples, at least 1.
    """

    def __init__(self) -> None:
        self._latest: dict[str, tuple[dict[str, float], float]] = {}
        self.total_weight = 0.0
        """Of all learners."""
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._weights: defaultdict[str, float] = defaultdict(float)

    def __len__(self) -> int:
        return len(self._latest)

    def __contains__(self, learner: object) -> bool:
        return learner in self._latest

    def add(self, learner: str, metrics: Mapping[str, float], weight: float) -> None:
        """Put in the place of the learner's last; values that are not finite are left out."""
        self.remove(learner)
        usable = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._latest[learner] = usable, weight
        self.total_weight += weight
        for name, value in usable.items():
            self._sums[name] += weight * value
            self._weights[name] += weight

    def remove(self, learner: str) -> None:
        """Forget what the learner reported, if it did."""
        metrics, weight = self._latest.pop(learner, ({}, 0.0))
        self.total_weight -= weight
        for name, value in metrics.items():
            self._sums[name] -= weight * value
            self._weights[name] -= weight

    def mean(self) -> dict[str, float]:
        """Of each metric over the learners that report it."""
        return {name: self._sums[name] / weight for name, weight in self._weights.items() if weight > 0.5}
