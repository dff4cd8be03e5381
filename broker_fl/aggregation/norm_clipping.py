"""Norm clipping (Sun et al. 2019).

"Can You Really Backdoor Federated Learning?", section 4, "norm thresholding of updates":

``w_{t+1} = w_t + Σ_k α_k Δ_k / max(1, ‖Δ_k‖ / M)`` with ``Δ_k = w^k - w_t`` and ``Σ α_k = 1``.

With ``c_k = 1 / max(1, ‖Δ_k‖ / M)`` that is the mean of ``w^k`` and ``w_t`` with weights ``α_k c_k`` and
``Σ α_k (1 - c_k)``: it streams, and memory is two models, however many learners there are.

It withstands no number of attackers in the sense of the other rules: ``f`` of ``n`` move the result by up to
``M f / n``, whatever they send, in each round; so any cohort will do. The length is that of all float
tensors, the job's ``buffers`` too, or an attacker could move them at will; what comes of them lies between
the given and the sent. Integer and boolean tensors are the mean of the same weights, rounded, which an
attacker can move.
"""

from __future__ import annotations

from broker_fl.aggregation.distances import to_model
from broker_fl.aggregation.kept import checked_weight
from broker_fl.aggregation.sums import WeightedSum
from broker_fl.errors import AggregationError
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.wire import rules


class NormClipping:
    """The mean of the differences, each cut to ``max_norm``."""

    def __init__(self, settings: rules.NormClipping) -> None:
        self._settings = settings

    def begin(self, given: Given) -> NormClippingRound:
        """Begin a round."""
        return NormClippingRound(given, self._settings)


class NormClippingRound:
    """One round's sum."""

    def __init__(self, given: Given, settings: rules.NormClipping) -> None:
        self._given = given
        self._settings = settings
        self._sum = WeightedSum(given.spec)
        self._cut_off = 0.0
        self.total_weight = 0.0

    def fold(self, contribution: Contribution) -> float:
        """Add ``α_k c_k w^k``; ``α_k`` comes back.

        Raises:
            UpdateRefused: no examples, another spec, or values that are not finite; the sum is unchanged.
        """
        weight = checked_weight(self._given, contribution, self._settings.weighting)
        length = to_model(self._given.spec, contribution.model, self._given.model())
        share = 1.0 / max(1.0, length / self._settings.max_norm)
        if share > 0:
            self._sum.add(contribution.model, weight * share)
        self._cut_off += weight * (1.0 - share)
        self.total_weight += weight
        return weight

    def result(self) -> Combined:
        """``w_{t+1}``; the sum is used up.

        Raises:
            AggregationError: no update was folded, or the mean is not finite.
        """
        if self.total_weight == 0:
            raise AggregationError("no update was folded, so there is nothing to average")
        if self._cut_off > 0:
            self._sum.add(self._given.model(), self._cut_off)
        return Combined(model=self._sum.mean())
