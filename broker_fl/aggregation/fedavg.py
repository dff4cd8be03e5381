"""Federated averaging (McMahan et al. 2017).

"Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS.

Algorithm 1, server step: ``w_{t+1} ← Σ_k (n_k / n) w^k_{t+1}``, with ``n_k`` the examples of learner ``k``
and ``n`` their sum over the learners that delivered; or, by the job's ``weighting``, with ``n_k`` the steps
that it did, or 1. It streams: memory is one model, however many learners there are.

FedProx (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", MLSys) is the same on the server;
its proximal term is the learners' matter (``frameworks/proximal.py``).
"""

from __future__ import annotations

from broker_fl.aggregation.sums import STAGED_BYTES, WeightedSum, handed_room
from broker_fl.aggregation.weighting import Weighting, weight_of
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.model import Model, ModelSpec


class FedAvg:
    """The weighted mean of the updates."""

    def __init__(self, weighting: Weighting = "examples") -> None:
        self._weighting = weighting

    def begin(self, given: Given) -> FedAvgRound:
        """Begin a round."""
        return FedAvgRound(given.spec, self._weighting)


class FedAvgRound:
    """One round's sum."""

    def __init__(self, spec: ModelSpec, weighting: Weighting = "examples") -> None:
        self._sum = WeightedSum(spec)
        self._weighting = weighting

    @property
    def total_weight(self) -> float:
        """``n``: of all updates folded so far."""
        return self._sum.total_weight

    def fold(self, contribution: Contribution) -> float:
        """Add ``n_k w^k``; ``n_k`` comes back. Several are added in one pass: until ``settle`` or ``result``
        the model may be needed as it is.

        Raises:
            UpdateRefused: no weight, another spec, or values that are not finite; the sum is unchanged.
        """
        weight = weight_of(contribution, self._weighting)
        room = handed_room(contribution.model.spec) if contribution.handed else STAGED_BYTES
        self._sum.add(contribution.model, weight, magnitudes=contribution.magnitudes, room=room)
        return weight

    def fold_sum(self, total: Model, weight: float) -> None:
        """Add ``Σ n_j w^j`` of others, ``weight`` being their ``Σ n_j``; ``total`` may be needed as in
        ``fold``.

        Raises:
            UpdateRefused: another spec, no weight, or values that are not finite; the sum is unchanged.
        """
        self._sum.add_sum(total, weight, room=STAGED_BYTES)

    def settle(self) -> None:
        """Add what waits for others: there is time for it now."""
        self._sum.settle()

    def result(self) -> Combined:
        """``Σ n_k w^k / n``.

        Raises:
            AggregationError: no update was folded, or the mean is not finite.
        """
        return Combined(model=self._sum.mean())
