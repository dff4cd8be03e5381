"""Geometric median: robust federated aggregation, RFA (Pillutla, Kakade and Harchaoui 2022).

"Robust Aggregation for Federated Learning", IEEE Transactions on Signal Processing 70, equation 6: the point
of the least ``Σ α_i ‖v - w_i‖``. It is found by Weiszfeld's steps, as in algorithm 2 there,

``β_i ← α_i / ‖v - w_i‖``,  ``v ← Σ β_i w_i / Σ β_i``,

with Vardi and Zhang's rule for a ``v`` that lies on updates (2000, "The multivariate L1-median and associated
data depth", PNAS 97, equation 2.6): these, of weight ``η``, are left out of the step, which is cut by the
share ``η / r``; ``r`` is the length of ``Σ β_i (w_i - v)`` over the others. Where ``r ≤ η`` it is the median.

It begins at the update of the least sum, so that no step leads back onto an update (Beck and Sabach 2015,
"Weiszfeld's Method: Old and New Results", section 8), and ends when ``r ≤ η + tolerance``. ``r`` is a sum of
unit vectors by ``α_i``: an update has the same part in it however far away it is.

All of this needs only the inner products of the updates. They are computed twice, the second time about the
point that the first found, where differences lose no digits: so an iteration costs ``n²``, whatever the size
of the model.

It withstands ``f`` attackers of ``n ≥ 2 f + 1`` when all weigh the same, the default; weighted by examples,
as in the paper, attackers whose ``α_i`` are together below a half. It needs all updates at once: memory is
one model per learner. One so far away that its distance overflows float64 has no part in it. Integer and
boolean tensors have no part in distances; they are the mean of the same weights ``β``, rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker_fl.aggregation.blocks import by_coordinate
from broker_fl.aggregation.distances import inner_products
from broker_fl.aggregation.kept import KeptUpdates
from broker_fl.errors import AggregationError
from broker_fl.interfaces import Contribution, Given
from broker_fl.model import Array, Model, ModelSpec
from broker_fl.wire import rules

_ROUNDING = 1e-7
"""Distances below this share of the vectors' length are what rounding leaves of 0: √(2⁻⁵²), and some room."""


class GeometricMedian:
    """The point nearest to all updates."""

    def __init__(self, settings: rules.GeometricMedian) -> None:
        self._settings = settings

    def begin(self, given: Given) -> KeptUpdates:
        """Begin a round."""
        return KeptUpdates(given, self._settings, self._combine, self._settings.weighting)

    def _combine(self, given: Given, updates: Sequence[Contribution]) -> tuple[Model, Array]:
        by_examples = self._settings.weighting == "examples"
        weights = np.array([update.num_examples if by_examples else 1 for update in updates], np.float64)
        models = [update.model for update in updates]
        found = self._shares(given.spec, [*models, given.model()], weights)
        return by_coordinate(given.spec, models, lambda rows: found @ rows.astype(np.float64)), found

    def _shares(self, spec: ModelSpec, points: Sequence[Model], weights: Array) -> Array:
        """Of the updates in their median. The last point, where it begins to look, weighs nothing."""
        shares: Array | None = None
        origin = np.zeros(len(points))
        origin[-1] = 1.0
        for _ in range(2):
            products = inner_products(spec, points, origin)[:-1, :-1]
            near = np.isfinite(np.diagonal(products))
            if not near.any():
                raise AggregationError("all updates are so far away that their distances overflow float64")
            found = self._minimise(
                products[np.ix_(near, near)],
                weights[near] / weights[near].sum(),
                None if shares is None else shares[near],
            )
            shares = np.zeros(len(weights))
            shares[near] = found
            origin = np.append(shares, 0.0)
        return origin[:-1]

    def _minimise(self, products: Array, alpha: Array, start: Array | None) -> Array:
        """Shares of the points in their median, from their inner products about a point near to them.

        ``start``, if any, are the shares that made that point.
        """
        distances = _pairwise(products)
        sums = _sums_of_distances(products, distances, alpha)
        best = int(np.argmin(sums))
        lengths = np.sqrt(np.diagonal(products))
        touching = max(
            self._settings.smoothing * float(np.median(distances[best])),
            _ROUNDING * float(np.median(lengths)),
        )
        v = np.eye(len(alpha))[best] if start is None or sums[best] < 0 else start
        for _ in range(self._settings.max_iterations):
            beta, eta = _pulls(products, alpha, v, touching)
            total = beta.sum()
            if total == 0:
                break
            step = beta - total * v
            r = np.sqrt(max(0.0, float(step @ products @ step)))
            if r <= eta + self._settings.tolerance:
                break
            v = v + (1.0 - eta / r) / total * step
        shares: Array = v / v.sum()
        return shares


def _pairwise(products: Array) -> Array:
    lengths = np.diagonal(products)
    squared = lengths[:, None] + lengths[None, :] - 2 * products
    np.fill_diagonal(squared, 0.0)
    distances: Array = np.sqrt(np.maximum(squared, 0.0))
    return distances


def _sums_of_distances(products: Array, distances: Array, alpha: Array) -> Array:
    """``Σ α_j ‖w_i - w_j‖`` of each point, less that of the origin.

    Of two squares by the sum of their roots, so that a far point does not blur what the others differ in.
    """
    lengths = np.diagonal(products)
    scale = distances + np.sqrt(lengths)[None, :]
    change = (lengths[:, None] - 2 * products) / np.where(scale > 0, scale, 1.0)
    sums: Array = change @ alpha
    return sums


def _pulls(products: Array, alpha: Array, v: Array, touching: float) -> tuple[Array, float]:
    """``β`` of the points that ``Σ v_i w_i`` is not on, and the weight of those that it is on."""
    inner = products @ v
    squared = np.diagonal(products) - 2 * inner + v @ inner
    distances = np.sqrt(np.maximum(squared, 0.0))
    apart = distances > touching
    beta = np.where(apart, alpha / np.where(apart, distances, 1.0), 0.0)
    return beta, float(alpha[~apart].sum())
