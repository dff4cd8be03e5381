"""FedRec, MetisFL's rule of recency: each learner counts with its newest update.

Stripelis and Ambite, "Accelerating Federated Learning in Heterogeneous Data and Computational Environments",
arXiv:2008.11281, asynchronous execution; ``FederatedRecency`` in MetisFL. When learner k delivers::

    W ← W + n_k' w_k' − n_k w_k
    N ← N + n_k' − n_k
    w = W / N

with its last weight and model, ``n_k w_k``, which are nothing before its first. One update makes a version:
the weighted mean of the newest updates of all learners that ever delivered one, also of those that have left.
The model that the job began with is not part of it.

``W`` is kept without rounding (``exact.py``) and ``N`` as an integer, so that nothing drifts, a weight may
change, and an update with huge values leaves no trace once it is replaced. Only ``W / N`` is rounded, as
there. (MetisFL keeps ``W`` in the model's own type.)

An update takes the same work however many learners there are. Memory: ``W``, mostly as much as four models of
float32, and three models. In the store: the newest update of each learner. After a restart of the controller
``W`` is made anew of them, which takes one reading of all.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker_fl.aggregation.exact import ExactSum
from broker_fl.aggregation.weighting import Weighting, weight_of
from broker_fl.errors import AggregationError, UpdateRefused
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.model import Model
from broker_fl.wire import rules


class FedRec:
    """Replaces each learner's update by its next one."""

    def __init__(self, settings: rules.FedRec) -> None:
        self._weighting: Weighting = settings.weighting

    def begin(self, given: Given) -> Replacement:
        """Begin the next version."""
        newest = given.carried
        if not isinstance(newest, NewestUpdates):
            newest = NewestUpdates(given, self._weighting)
        return Replacement(given, newest)


class NewestUpdates:
    """``W`` and ``N`` of the learners' newest updates, and what each of them weighs."""

    def __init__(self, given: Given, weighting: Weighting) -> None:
        """Of the updates in the store, read one after the other."""
        self._weighting = weighting
        self._sum = ExactSum(given.spec)
        self._weights: dict[str, int] = {}
        for learner, update in given.updates.items():
            self._weights[learner] = self.weight_of(update)
            self._sum.add((update.model, self._weights[learner]))
        self._total = sum(self._weights.values())

    def weight_of(self, update: Contribution) -> int:
        """What the update weighs: a whole number, above 0.

        Raises:
            UpdateRefused: it was trained on nothing, or cannot be added to the sum.
        """
        weight = weight_of(update, self._weighting)
        self._sum.check(update.model, weight)
        return int(weight)

    def total_with(self, learner: str, weight: int) -> int:
        """``N`` with this weight in the place of the learner's last."""
        return self._total - self._weights.get(learner, 0) + weight

    def replace(self, update: Contribution, weight: int, stored: Mapping[str, Contribution]) -> Model:
        """Put the update in the place of its learner's last, which is among the ``stored``; the mean.

        Raises:
            AggregationError: a value is not finite.
        """
        terms = [(update.model, float(weight))]
        if (before := self._weights.get(update.learner)) is not None:
            terms.append((stored[update.learner].model, -float(before)))
        self._sum.add(*terms)
        self._total = self.total_with(update.learner, weight)
        self._weights[update.learner] = weight
        return self._sum.mean(float(self._total))


class Replacement:
    """One version: the newest updates, and one that replaces its learner's last."""

    def __init__(self, given: Given, newest: NewestUpdates) -> None:
        self._given = given
        self._newest = newest
        self._update: Contribution | None = None
        self._weight = 0
        self.total_weight = 0.0
        """``N``, with the update; 0 before it came."""

    def fold(self, contribution: Contribution) -> float:
        """Take the update in, and keep it until ``result``; ``n_k'`` comes back.

        Raises:
            UpdateRefused: no weight, another spec, values that are not finite or too large, or a second
                update; nothing was changed.
        """
        if self._update is not None:
            raise UpdateRefused("one update makes a version, and it is there already")
        weight = self._newest.weight_of(contribution)
        self._update, self._weight = contribution, weight
        self.total_weight = float(self._newest.total_with(contribution.learner, weight))
        return float(weight)

    def result(self) -> Combined:
        """``W / N``. The sum that the next version begins with is the same object, changed in place.

        Raises:
            AggregationError: no update came, or a value is not finite.
        """
        if self._update is None:
            raise AggregationError("no update was folded, so there is nothing to replace")
        model = self._newest.replace(self._update, self._weight, self._given.updates)
        return Combined(model=model, updates=(self._update,), carried=self._newest)
