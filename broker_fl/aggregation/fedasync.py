"""FedAsync (Xie et al. 2019).

"Asynchronous Federated Optimization", arXiv:1903.03934, Algorithm 1, server::

    α_t = α s(t − τ)
    x_t = (1 − α_t) x_{t−1} + α_t x_new

One update makes a version. It streams; memory is the newest version and one more. The paper's learners hold
on to the version that they were given by a proximal term: the task parameter ``proximal_mu`` does that.
"""

from __future__ import annotations

from broker_fl.aggregation.staleness import Discount, discount
from broker_fl.aggregation.sums import WeightedSum
from broker_fl.errors import UpdateRefused
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.wire import rules


class FedAsync:
    """Mixes each update into the newest version."""

    def __init__(self, settings: rules.FedAsync) -> None:
        self._alpha = settings.alpha
        self._discount = discount(settings.staleness)

    def begin(self, given: Given) -> FedAsyncStep:
        """Begin the next version."""
        return FedAsyncStep(given, self._alpha, self._discount)


class FedAsyncStep:
    """One version: the newest one before it, and an update."""

    def __init__(self, given: Given, alpha: float, discount: Discount) -> None:
        self._given = given
        self._alpha = alpha
        self._discount = discount
        self._sum = WeightedSum(given.spec)
        self.total_weight = 0.0
        """``α_t`` of the update; 0 before it came."""

    def fold(self, contribution: Contribution) -> float:
        """Take the update in; ``α_t`` comes back.

        Raises:
            UpdateRefused: another spec, values that are not finite, or a second update.
        """
        if self.total_weight:
            raise UpdateRefused("one update makes a version, and it is there already")
        share = self._alpha * self._discount(contribution.staleness)
        self._sum.add(contribution.model, share)
        self.total_weight = share
        return share

    def result(self) -> Combined:
        """``(1 − α_t) x_{t−1} + α_t x_new``; integers are rounded.

        Raises:
            AggregationError: no update came, or a value is not finite.
        """
        share = self.total_weight
        if 0.0 < share < 1.0:
            self._sum.add(self._given.model(), 1.0 - share)
        return Combined(model=self._sum.mean())
