"""FedBuff (Nguyen et al. 2022).

"Federated Learning with Buffered Asynchronous Aggregation", AISTATS, Algorithm 1, server, with the weights of
its section 5 for stale updates::

    Δ̄ = 1/K Σ_i s(τ_i) Δ_i
    w_{t+1} = w_t + η_g Δ̄

``Δ_i`` is what learner i changed, which it computes itself, so that nobody has to keep the versions that
learners began from. (The paper's ``Δ`` has the other sign.) As there, the sum is divided by the number of
updates, not by the sum of their weights. It streams; memory is the newest version and one sum. Integer and
boolean tensors and the job's ``buffers`` have no change: learners send their values, which take the mean by
``s(τ_i)``. (Of a variance changes would not do: two that each take it from 1 to 0.1 would make it negative.)
"""

from __future__ import annotations

from broker_fl.aggregation.changes import ChangeSum
from broker_fl.aggregation.staleness import Discount, discount
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.wire import rules


class FedBuff:
    """Moves the newest version by the mean change of a buffer of updates."""

    def __init__(self, settings: rules.FedBuff) -> None:
        self._learning_rate = settings.learning_rate
        self._discount = discount(settings.staleness)

    def begin(self, given: Given) -> Buffer:
        """Begin the next version."""
        return Buffer(given, self._learning_rate, self._discount)


class Buffer:
    """One version's ``Σ s(τ_i) Δ_i``."""

    def __init__(self, given: Given, learning_rate: float, discount: Discount) -> None:
        self._sum = ChangeSum(given)
        self._learning_rate = learning_rate
        self._discount = discount
        self._num_updates = 0

    @property
    def total_weight(self) -> float:
        """``Σ s(τ_i)`` of all updates folded so far."""
        return self._sum.total_weight

    def fold(self, contribution: Contribution) -> float:
        """Add ``s(τ_i) Δ_i``, of which ``contribution.model`` is ``Δ_i``; ``s(τ_i)`` comes back.

        Raises:
            UpdateRefused: another spec, or values that are not finite; nothing was changed.
        """
        weight = self._discount(contribution.staleness)
        self._sum.check(contribution.model, weight)
        self._sum.add_change(contribution.model, weight)
        self._num_updates += 1
        return weight

    def result(self) -> Combined:
        """``w_t + η_g Δ̄``.

        Raises:
            AggregationError: no update was folded, or a value is not finite.
        """
        self._sum.totals()
        self._sum.rescale(self._learning_rate / self._num_updates)
        return Combined(model=self._sum.moved())
