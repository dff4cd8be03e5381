"""Settings of pacing: how much work each learner is given (``coordination/pacing.py``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from broker_fl.wire.fields import Positive
from broker_fl.wire.settings import Above0, Setting


class Fixed(Setting):
    """Every learner does the work that the job's parameters say."""

    name: Literal["fixed"] = "fixed"


class Aimd(Setting):
    """Stragglers are relieved: additive increase, multiplicative decrease of each learner's local epochs.

    A learner that delivers in time gets ``increase`` epochs more in its next task, one that is late or
    misses its deadline ``decrease`` times as many. The task parameter ``epochs`` brings it the number; it
    begins with the job's own ``epochs``, or 1.
    """

    name: Literal["aimd"] = "aimd"
    target_s: Above0 | None = None
    """In time is who delivers within so many seconds of the task being sent; None takes the protocol's
    ``deadline_s``.
    """
    increase: Positive = 1
    decrease: Annotated[float, Field(gt=0, lt=1)] = 0.5
    min_epochs: Positive = 1
    max_epochs: Positive = 10

    @model_validator(mode="after")
    def _in_order(self) -> Aimd:
        if self.max_epochs < self.min_epochs:
            raise ValueError(
                f"'max_epochs' = {self.max_epochs} is below 'min_epochs' = {self.min_epochs}: no number of "
                "epochs would be allowed"
            )
        return self


AnyPacing = Fixed | Aimd
