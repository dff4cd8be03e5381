"""The robust rules in plain NumPy, written from the papers' equations; and how many updates each needs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import settings

from broker_fl.model import Array

NEEDED: dict[str, Callable[[int], int]] = {
    "median": lambda f: 2 * f + 1,
    "trimmed_mean": lambda f: 2 * f + 1,
    "krum": lambda f: 2 * f + 3,
    "multi_krum": lambda f: 2 * f + 3,
    "bulyan": lambda f: 4 * f + 3,
    "geometric_median": lambda f: 2 * f + 1,
}
FEW = settings(max_examples=60, deadline=None)


def squared_distances(vectors: Array) -> Array:
    return np.array([[((a - b) ** 2).sum() for b in vectors] for a in vectors])


def krum_scores(squared: Array, f: int) -> list[float]:
    """Blanchard et al. 2017, section 4."""
    n = len(squared)
    return [sum(sorted(squared[i][j] for j in range(n) if j != i)[: max(1, n - f - 2)]) for i in range(n)]


def bulyan_selection(squared: Array, f: int) -> list[int]:
    """El Mhamdi et al. 2018, section 4, step 1."""
    left = list(range(len(squared)))
    chosen: list[int] = []
    while len(chosen) < len(squared) - 2 * f:
        found = krum_scores(squared[np.ix_(left, left)], f)
        chosen.append(left.pop(int(np.argmin(found))))
    return chosen


def about_the_median(values: Array, count: int) -> float:
    """Step 2; of two values equally far away, the lower."""
    median = np.median(values)
    return float(np.mean(sorted(values, key=lambda value: (abs(value - median), value))[:count]))


def sum_of_distances(points: Array, alpha: Array, v: Array) -> float:
    return float(alpha @ np.sqrt(((points - v) ** 2).sum(axis=1)))


def geometric_median(points: Array, alpha: Array) -> Array:
    """Shares of the points in it, by very many steps of Vardi and Zhang 2000 in extended precision, on the
    vectors themselves, from the point of the least sum of distances on.
    """
    points = np.asarray(points, np.longdouble)
    alpha = np.asarray(alpha / alpha.sum(), np.longdouble)
    best = np.argmin([sum_of_distances(points, alpha, point) for point in points])
    shares: Array = np.eye(len(points), dtype=np.longdouble)[best]
    for _ in range(20_000):
        away = points - shares @ points
        distances = np.sqrt((away**2).sum(axis=1))
        apart = distances > 0
        beta = np.where(apart, alpha / np.where(apart, distances, 1), 0)
        pull, eta = beta @ away, alpha[~apart].sum()
        r = np.sqrt(pull @ pull)
        if r <= eta + 1e-15:
            break
        shares = shares + (1 - eta / r) * (beta / beta.sum() - shares)
    return shares
