"""Settings of the protocols in ``coordination/``: when learners train, and when a new version comes of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from broker_fl.wire.fields import Count, Positive
from broker_fl.wire.settings import Above0, Setting, Share


class Rounds(Setting):
    """Base of the protocols with rounds: all of a cohort train from one version, and their updates make the
    next.
    """

    name: str
    quorum: Annotated[float, Field(gt=0, le=1)] | Positive = 1.0
    """How much of the live cohort must deliver for the round to commit: a share (float) or a count (int)."""
    over_selection: Count = 0
    """So many learners more than the selector chooses are asked; the round commits when as many as it chose
    have delivered, and the others are told to stop.
    """
    deadline_s: Above0 | None = None
    """After so many seconds the round goes on without its stragglers; None waits for every live learner."""
    min_learners: Positive = 1
    """Live learners that there must be before a round begins."""
    max_retries: Annotated[int, Field(ge=0, le=100)] = 2
    """How often a round that misses its quorum is tried again, with replacements, before the job fails."""
    max_wait_s: Above0 | None = None
    """How long the job waits while there are too few learners, before it fails; None waits for ever."""


class Synchronous(Rounds):
    """Every learner of a cohort does the same work; the round is over when all have done it."""

    name: Literal["synchronous"] = "synchronous"


class SemiSynchronous(Rounds):
    """Every learner of a cohort trains for about the same time (Stripelis, Thompson, Ambite 2022).

    That is ``lam`` times as long as the slowest needs for one epoch: the task parameter ``steps`` brings each
    learner as many optimiser steps as it does in that time. A learner that is not measured yet does the work
    that the job's own parameters say.
    """

    name: Literal["semi_synchronous"] = "semi_synchronous"
    lam: Above0 = 1.0
    """The paper's λ: how many epochs the slowest learner does in a round."""
    smoothing: Share = 0.5
    """Of a learner's earlier timings that is kept when a new one comes."""
    min_steps: Positive = 1
    max_steps: Positive | None = None

    @model_validator(mode="after")
    def _in_order(self) -> SemiSynchronous:
        if self.max_steps is not None and self.max_steps < self.min_steps:
            raise ValueError(
                f"'max_steps' = {self.max_steps} is below 'min_steps' = {self.min_steps}: no number of steps "
                "would be allowed"
            )
        return self


class Asynchronous(Setting):
    """No rounds: each learner gets the newest version when it is free, and updates count as they arrive.

    The rule says how many updates make a version: ``fedasync`` and ``fedrec`` one, ``fedbuff`` a buffer full.
    A learner has one task at a time, and no new one before its last update is in a version.
    """

    name: Literal["asynchronous"] = "asynchronous"
    max_concurrent: Positive | None = None
    """Learners that train at the same time; who has waited longest is next. None: all that are there."""
    max_staleness: Count | None = None
    """An update is refused that was trained from a version more than so many versions old."""
    max_lead: Positive | None = None
    """A learner that has delivered so many updates more than the slowest live one waits for it (stale
    synchronous parallel, Ho et al. 2013). None lets the fast run on.
    """
    deadline_s: Above0 | None = None
    """A task is taken back after so many seconds; None waits for every live learner."""
    min_learners: Positive = 1
    """Live learners that there must be before the first task is given."""
    max_failures: Annotated[int, Field(ge=1, le=100)] = 3
    """A learner whose tasks fail so often in a row is left out for ``exclude_versions``, or until it joins
    again.
    """
    exclude_versions: Positive = 100
    """After so many versions it is asked again; one more failure, and it is left out again."""
    max_wait_s: Above0 | None = None
    """How long the job waits while there are too few learners, before it fails; None waits for ever."""


AnyProtocol = Synchronous | SemiSynchronous | Asynchronous
