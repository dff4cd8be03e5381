"""What the robust rules share: an accumulator that keeps a round's updates until it has them all.

Memory: the updates as they came, one model per learner, and the result. Nothing is copied, so who folds an
update leaves its model alone from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker_fl.aggregation.sums import check_addable
from broker_fl.aggregation.weighting import Weighting, weight_of
from broker_fl.errors import AggregationError
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.model import Array, Model
from broker_fl.wire.rules import Robust

Combine = Callable[[Given, Sequence[Contribution]], tuple[Model, Array | None]]
"""A model, and for each update its share in it, where the rule chooses among them."""


class KeptUpdates:
    """One round's updates, of which ``combine`` makes a model.

    It gets them in the order of the learners' ids: the result is the same to the last bit whatever the order
    of arrival.
    """

    def __init__(
        self, given: Given, settings: Robust, combine: Combine, weighting: Weighting = "equal"
    ) -> None:
        self._given = given
        self._settings = settings
        self._combine = combine
        self._weighting = weighting
        self._updates: list[Contribution] = []
        self.total_weight = 0.0

    def fold(self, contribution: Contribution) -> float:
        """Keep the update.

        Raises:
            UpdateRefused: no examples, another spec, or values that are not finite; nothing was kept.
        """
        weight = checked_weight(self._given, contribution, self._weighting)
        self._updates.append(contribution)
        self.total_weight += weight
        return weight

    def result(self) -> Combined:
        """What the rule makes of the updates.

        Raises:
            AggregationError: there are too few for the attackers that the rule is to withstand, or the
            result is not finite.
        """
        updates, self._updates = sorted(self._updates, key=lambda update: update.learner), []
        rule = self._settings
        if len(updates) < rule.updates_needed():
            raise AggregationError(
                f"{len(updates)} updates are too few for the rule {rule.name!r}: to withstand "
                f"f = {rule.max_attackers} attackers it needs {rule.updates_needed()} ({rule.formula})"
            )
        model, shares = self._combine(self._given, updates)
        if shares is None:
            return Combined(model=model)
        names = [update.learner for update in updates]
        return Combined(model=model, used=dict(zip(names, shares.tolist(), strict=True)))


def checked_weight(given: Given, contribution: Contribution, weighting: Weighting) -> float:
    """The weight of an update that can be combined: 1, or its examples.

    Raises:
        UpdateRefused: it cannot be.
    """
    weight = weight_of(contribution, weighting)
    check_addable(given.spec, contribution.model, weight, contribution.magnitudes)
    return weight
