"""Learners that come, go, fall silent or are left out."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from broker_fl.wire.events.base import Event
from broker_fl.wire.fields import Count, Identifier, Parameters, Seconds, Text


class LearnerExcluded(Event):
    """A learner whose tasks came to nothing so often in a row is left out for a while."""

    KIND: ClassVar[str] = "learner_excluded"
    round: Count
    learner: Identifier
    num_failures: Count
    reason: Text = ""
    """Of the last failure."""


class LearnerJoined(Event):
    """A learner is there (again)."""

    KIND: ClassVar[str] = "learner_joined"
    learner: Identifier
    attributes: Parameters = Field(default={})


class LearnerLeft(Event):
    """A learner said that it goes."""

    KIND: ClassVar[str] = "learner_left"
    learner: Identifier
    reason: Text = ""


class LearnerLost(Event):
    """A learner has not been heard of for too long."""

    KIND: ClassVar[str] = "learner_lost"
    learner: Identifier
    silent_s: Seconds
