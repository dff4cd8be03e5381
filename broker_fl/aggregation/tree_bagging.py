"""Bagging of boosted trees: what each learner added to the ensemble is added to it, side by side.

A model is the sum of its trees (Chen & Guestrin 2016, "XGBoost: A Scalable Tree Boosting System", KDD,
equation 1). Each learner fits new trees ``g^k`` to what the model ``F_t`` leaves over on its data, and sends
those only; ``F_{t+1}(x) = F_t(x) + Σ_k g^k(x)``. The learners' trees of a round know nothing of one another:
a round's step is the learning rate times their number.

The order is that of the learners' ids, so that the result is the same to the last byte whatever the order of
arrival. All updates have one vote. Memory: the given model and the round's trees.
"""

from __future__ import annotations

from broker_fl import opaque
from broker_fl.aggregation.trees import Trees
from broker_fl.aggregation.weighting import weight_of
from broker_fl.errors import AggregationError, UpdateRefused
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.model import Array, Model, ModelError


class TreeBagging:
    """Models that are one ensemble of trees in XGBoost's JSON, as ``opaque.py`` puts it into a tensor."""

    def begin(self, given: Given) -> TreeBaggingRound:
        """Begin a round."""
        return TreeBaggingRound(given)


class TreeBaggingRound:
    """One round's new trees."""

    def __init__(self, given: Given) -> None:
        self.total_weight = 0.0
        self._given = given
        self._base: Trees | None = None
        self._new: dict[str, Trees] = {}

    def fold(self, contribution: Contribution) -> float:
        """Keep the learner's trees.

        Raises:
            UpdateRefused: there are none, they are not sound, or they belong to another model; nothing was
                kept.
        """
        weight = weight_of(contribution, "equal")
        if contribution.model.spec.digest != self._given.spec.digest:
            raise UpdateRefused("the update does not look like the model that was given")
        base, new = self._trees_of_the_model(), read(contribution.model)
        if differences := base.differences(new):
            raise UpdateRefused(f"the trees belong to another model: {'; '.join(differences)}")
        if not len(new):
            raise UpdateRefused("the update has no tree; learners send the trees that they added")
        self._new[contribution.learner] = new
        self.total_weight += weight
        return weight

    def result(self) -> Combined:
        """``F_{t+1}``.

        Raises:
            AggregationError: nothing was folded, or the tensor has no room for all trees.
        """
        if not self._new:
            raise AggregationError("no update was folded, so there are no trees to add")
        merged, new = self._trees_of_the_model(), self._new
        self._base, self._new = None, {}
        for learner in sorted(new):
            merged.append(new[learner])
        model = Model.empty(self._given.spec)
        try:
            opaque.write(merged.to_json(), tensor_of(model))
        except ModelError as error:
            raise AggregationError(
                f"the model is full with {len(merged)} trees: {error}; start the job from a model with a "
                f"larger capacity_bytes, or with fewer or smaller trees in a round"
            ) from error
        return Combined(model=model)

    def _trees_of_the_model(self) -> Trees:
        if self._base is None:
            self._base = read(self._given.model())
        return self._base


def read(model: Model) -> Trees:
    """The ensemble that ``model`` is.

    Raises:
        UpdateRefused: it is none.
    """
    try:
        return Trees(opaque.read(tensor_of(model)))
    except ModelError as error:
        raise UpdateRefused(
            f"the rule 'tree_bagging' merges trees, and the model has none: {error}"
        ) from error


def tensor_of(model: Model) -> Array:
    """Its one tensor.

    Raises:
        ModelError: it has more, or none.
    """
    if len(model) != 1:
        raise ModelError(f"it has {len(model)} tensors instead of one")
    return next(iter(model.values()))
