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
