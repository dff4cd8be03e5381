"""q-FedAvg (Li et al. 2020).

"Fair Resource Allocation in Federated Learning", ICLR, Algorithm 2. With ``F_k`` the loss of the model that
was given, on learner k's data, and ``L`` the inverse of the learners' learning rate::

    Δw_k = L (w_t − w_k)
    Δ_k = F_k^q Δw_k
    h_k = q F_k^{q−1} ‖Δw_k‖² + L F_k^q
    w_{t+1} = w_t − Σ_k p_k Δ_k / Σ_k p_k h_k

The paper draws learners with probability ``p_k``, their share of the examples, and has no ``p_k`` in the last
line. Here the selector draws them alike, so ``p_k`` weighs the terms, which is the same in expectation; q = 0
is then FedAvg. ``weighting = "equal"`` leaves it out. As in the authors' code, 1e-10 is added to ``F_k``, so
that a loss of 0 has a power.

``F_k`` is the metric ``loss`` of the learner's evaluation: on its training data, as in the paper, if that is
what it evaluates on. It streams. Memory: the given model and one sum. The norm is over what is trained;
integer and boolean tensors and the job's ``buffers`` take the mean by ``p_k``.
"""

from __future__ import annotations

import math
from typing import Literal

from broker_fl.aggregation import fused
from broker_fl.aggregation.changes import ChangeSum
from broker_fl.aggregation.weighting import weight_of
from broker_fl.errors import UpdateRefused
from broker_fl.interfaces import Combined, Contribution, Given

LOSS = "loss"
_TINY = 1e-10
_MUCH = 1e6


class QFedAvg:
    """Learners with a larger loss count more."""

    def __init__(
        self, *, q: float, learning_rate: float, weighting: Literal["examples", "equal"] = "examples"
    ) -> None:
        self._q = q
        self._lipschitz = 1.0 / learning_rate
        self._weighting = weighting

    def begin(self, given: Given) -> QFedAvgRound:
        """Begin a round."""
        return QFedAvgRound(given, self._q, self._lipschitz, self._weighting)


class QFedAvgRound:
    """One round's ``Σ p_k Δ_k`` and ``Σ p_k h_k``, both up to a factor that they share."""

    def __init__(
        self, given: Given, q: float, lipschitz: float, weighting: Literal["examples", "equal"]
    ) -> None:
        self._sum = ChangeSum(given)
        self._q = q
        self._lipschitz = lipschitz
        self._weighting = weighting
        self._total_h = 0.0
        self._unit = 0.0
        """What both sums are divided by: F^q is easily out of float32's range, ratios of them seldom are."""

    @property
    def total_weight(self) -> float:
        """Of all updates folded so far: examples, or how many they are."""
        return self._sum.total_weight

    def fold(self, contribution: Contribution) -> float:
        """Add ``p_k Δ_k`` and ``p_k h_k``; ``p_k``, not yet divided by the sum of all, comes back.

        Raises:
            UpdateRefused: no examples, no usable loss, another spec, or values that are not finite; nothing
                was changed.
        """
        weight = weight_of(contribution, self._weighting)
        loss = _loss(contribution) + _TINY
        self._sum.check(contribution.model, weight)
        squared = self._lipschitz**2 * self._sum.squared_change(contribution.model)
        power, slope = _power(loss, self._q), self._q * _power(loss, self._q - 1.0)
        h = slope * squared + self._lipschitz * power
        if not (math.isfinite(weight * h) and h > 0):
            raise UpdateRefused(f"a loss of {loss:g} to the power of q = {self._q:g} is out of range")
        self._measure_by(h)
        scale = weight * (power * self._lipschitz / self._unit)
        self._sum.add(contribution.model, scale=scale, weight=weight)
        self._total_h += weight * (h / self._unit)
        return weight

    def _measure_by(self, h: float) -> None:
        if h > _MUCH * self._unit:
            self._sum.rescale(self._unit / h)
            self._total_h *= self._unit / h
            self._unit = h

    def result(self) -> Combined:
        """``w_{t+1}``.

        Raises:
            AggregationError: no update was folded, or a value is not finite.
        """
        for change in self._sum.totals():
            fused.evaluate("change / h", change, change=change, h=self._total_h)
        return Combined(model=self._sum.moved())


def _loss(contribution: Contribution) -> float:
    loss = contribution.evaluation.get(LOSS)
    if loss is None:
        raise UpdateRefused(
            f"the learner's evaluation has no metric {LOSS!r}, and q-FedAvg weighs learners by it"
        )
    if not (math.isfinite(loss) and loss >= 0):
        raise UpdateRefused(
            f"the {LOSS!r} of the learner's evaluation is {loss}; q-FedAvg needs one of at least 0"
        )
    return loss


def _power(loss: float, exponent: float) -> float:
    try:
        return float(loss**exponent)
    except OverflowError:
        return math.inf
