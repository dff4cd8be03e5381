"""Federated averaging (McMahan et al. 2017).

"Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS.

Algorithm 1, server step: ``w_{t+1} ← Σ_k (n_k / n) w^k_{t+1}``, with ``n_k`` the examples of learner ``k``
and ``n`` their sum over the learners that delivered. It streams: memory is one model, however many learners
there are.
"""

from __future__ import annotations

from broker_fl.aggregation.sums import WeightedSum
from broker_fl.errors import UpdateRefused
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.model import ModelSpec


class FedAvg:
    """The weighted mean of the updates; weights are numbers of examples."""

    def begin(self, given: Given) -> FedAvgRound:
        """Begin a round."""
        return FedAvgRound(given.spec)


class FedAvgRound:
    """One round's sum."""

    def __init__(self, spec: ModelSpec) -> None:
        self._sum = WeightedSum(spec)

    @property
    def total_weight(self) -> float:
        """``n``: examples of all updates folded so far."""
        return self._sum.total_weight

    def fold(self, contribution: Contribution) -> float:
        """Add ``n_k w^k``; ``n_k`` comes back.

        Raises:
            UpdateRefused: no examples, another spec, or values that are not finite; the sum is unchanged.
        """
        if contribution.num_examples < 1:
            raise UpdateRefused("the update was trained on no example, so it has no weight")
        weight = float(contribution.num_examples)
        self._sum.add(contribution.model, weight)
        return weight

    def result(self) -> Combined:
        """``Σ n_k w^k / n``.

        Raises:
            AggregationError: no update was folded, or the mean is not finite.
        """
        return Combined(model=self._sum.mean())
