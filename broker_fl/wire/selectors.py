"""Settings of the selectors in ``coordination/selection.py``: who takes part in a round."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from broker_fl.wire.fields import Count, Positive
from broker_fl.wire.settings import Setting


class SelectAll(Setting):
    """Every live learner takes part in every round."""

    name: Literal["all"] = "all"


class SelectRandom(Setting):
    """A seeded random choice anew each round: ``fraction`` of the live learners, or ``count`` of them."""

    name: Literal["random"] = "random"
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    count: Positive | None = None
    seed: Count = 0

    @model_validator(mode="after")
    def _one_of_two(self) -> SelectRandom:
        if (self.fraction is None) == (self.count is None):
            raise ValueError("give either 'fraction' or 'count'")
        return self


AnySelector = SelectAll | SelectRandom
