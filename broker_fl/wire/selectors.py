"""Settings of the selectors in ``coordination/selection/``; each is described in ``docs/selectors.md``."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from broker_fl.wire.conditions import Where
from broker_fl.wire.fields import Count, Name, Parameters, Positive
from broker_fl.wire.settings import Setting

DEFAULT_EXCLUDE_ROUNDS = 10


class Selecting(Setting):
    """What all selectors have in common: which learners they choose from."""

    name: str
    where: Where = Field(default={})
    """Only learners whose attributes are so; one that has not told the attribute is not. ``learner`` is its
    id, ``software`` what it runs.
    """
    exclude_after: Positive | None = None
    """A learner that failed so often in a row is left out for ``exclude_rounds`` rounds and then asked again;
    one success, and it is back for good. None: nobody is left out.
    """
    exclude_rounds: Positive = DEFAULT_EXCLUDE_ROUNDS

    @model_validator(mode="after")
    def _excludes_somebody(self) -> Self:
        if self.exclude_after is None and self.exclude_rounds != DEFAULT_EXCLUDE_ROUNDS:
            raise ValueError(f"'exclude_rounds' = {self.exclude_rounds} does nothing without 'exclude_after'")
        return self

    def smallest_cohort(self, num_eligible: int) -> int:
        """How many are chosen at least, of so many to choose from."""
        return num_eligible


class Sized(Selecting):
    """What selectors have in common that choose some of the learners."""

    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of those that there are to choose from; rounded up."""
    count: Positive | None = None
    """Fewer where fewer are there."""
    needs_size: ClassVar[bool] = True

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        num_given = (self.fraction is not None) + (self.count is not None)
        if num_given == 2 or (self.needs_size and num_given == 0):
            raise ValueError("give either 'fraction' or 'count'")
        return self

    def cohort_size(self, num_eligible: int) -> int:
        """How many of so many are to be chosen; at least 1 where there are any."""
        if self.count is not None:
            return min(self.count, num_eligible)
        return math.ceil((self.fraction or 1.0) * num_eligible - 1e-9)

    def smallest_cohort(self, num_eligible: int) -> int:
        return self.cohort_size(num_eligible)


class SelectAll(Selecting):
    """Every live learner takes part in every round."""

    name: Literal["all"] = "all"


class SelectRandom(Sized):
    """A seeded random choice anew each round."""

    name: Literal["random"] = "random"
    seed: Count = 0


class SelectRotation(Sized):
    """Whoever has waited longest is next, so that all get their turn equally often."""

    name: Literal["rotation"] = "rotation"


class SelectPowerOfChoice(Sized):
    """Those with the highest loss among candidates drawn by their share of examples (Cho et al. 2022).

    Learners report the metric ``loss``; one of whom none is known comes before those of whom it is.
    """

    name: Literal["power_of_choice"] = "power_of_choice"
    num_candidates: Positive
    """How many are drawn, ``d`` in the paper: the more, the more weight has the loss. At least as many as are
    chosen.
    """
    seed: Count = 0

    @model_validator(mode="after")
    def _choice_at_all(self) -> SelectPowerOfChoice:
        if self.count is not None and self.num_candidates < self.count:
            raise ValueError(
                f"'num_candidates' = {self.num_candidates} is below 'count' = {self.count}: so many "
                "cannot be chosen among them"
            )
        return self


class SelectSlowAware(Sized):
    """Learners that take much longer than the others get their turn in every ``slow_every``-th round only.

    Without ``fraction`` and ``count``: all that are not slow, and in that round all.
    """

    name: Literal["slow_aware"] = "slow_aware"
    slow_factor: Annotated[float, Field(gt=1)] = 2.0
    """A learner is slow whose tasks take more than so many times the median of all learners' tasks."""
    slow_every: Annotated[int, Field(ge=2)] = 5
    needs_size: ClassVar[bool] = False

    def smallest_cohort(self, num_eligible: int) -> int:
        if self.fraction is None and self.count is None:
            return math.ceil(num_eligible / 2)  # so many are not above the median
        return self.cohort_size(num_eligible)


class OwnSelector(Selecting):
    """A selector of the user's own: a class in the app file that the controller was started with."""

    name: Literal["own"] = "own"
    selector: Name
    """Name of the class."""
    settings: Parameters = Field(default={})
    """What it is made with: ``Class(**settings)``."""

    def smallest_cohort(self, num_eligible: int) -> int:
        return min(1, num_eligible)


AnySelector = SelectAll | SelectRandom | SelectRotation | SelectPowerOfChoice | SelectSlowAware | OwnSelector
