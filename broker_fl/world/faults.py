"""What happens to learners: they die, and come back or not; their tasks fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from broker_fl.wire.fields import Count, Identifier, Positive
from broker_fl.wire.settings import Above0, Setting
from broker_fl.world.draws import AtLeast0


class _Hits(Setting):
    """Whom a fault hits: named ones, a share of all, or so many; drawn from the world's seed."""

    learners: Annotated[Sequence[Identifier], Field(min_length=1)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of all learners, rounded to the nearest whole number."""
    count: Positive | None = None

    def _num_given(self) -> int:
        return sum(value is not None for value in (self.learners, self.fraction, self.count))

    def num_drawn(self, num_learners: int) -> int:
        """How many are drawn at random; 0 where learners are named."""
        return self.count or int((self.fraction or 0.0) * num_learners + 0.5)


class Kill(_Hits):
    """Learners die as a process does that is killed: nothing is said, nothing is read any more.

    What a learner was doing is lost. In ``at_round`` it dies when its work on that round begins, or as the
    round does, if it has none. One that is back before it is missed gets its task anew.
    """

    name: Literal["kill"] = "kill"
    at_round: Count | None = None
    at_s: AtLeast0 | None = None
    """Seconds after all learners are there."""
    back_at_round: Positive | None = None
    back_after_s: Above0 | None = None
    """Seconds after its death. Without this and ``back_at_round`` it stays away."""

    @model_validator(mode="after")
    def _is_clear(self) -> Kill:
        if self._num_given() != 1:
            raise ValueError("give one of 'learners', 'fraction' and 'count'")
        if (self.at_round is None) == (self.at_s is None):
            raise ValueError("give either 'at_round' or 'at_s'")
        if self.back_at_round is not None and self.back_after_s is not None:
            raise ValueError("give 'back_at_round' or 'back_after_s', or neither")
        if None not in (self.at_round, self.back_at_round) and self.back_at_round <= self.at_round:  # type: ignore[operator]
            raise ValueError(
                f"'back_at_round' = {self.back_at_round} is not after 'at_round' = {self.at_round}"
            )
        return self


class Fail(_Hits):
    """Trainings fail with an error, each with the same probability; without a choice of learners, of all."""

    name: Literal["fail"] = "fail"
    probability: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _is_clear(self) -> Fail:
        if self._num_given() > 1:
            raise ValueError("give one of 'learners', 'fraction' and 'count', or none")
        return self


Fault = Annotated[Kill | Fail, Field(discriminator="name")]
