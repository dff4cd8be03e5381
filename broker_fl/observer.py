"""What roles tell whoever watches them: the seam that metrics hang on. Roles know nothing of who watches.

What *happens* is told (``Observer``); what *is* is asked for when somebody wants to know
(``Controller.status``, ``LearnerHost.status``, ``RabbitMQTransport.traffic``).
"""

from __future__ import annotations

from typing import Literal, Protocol

from broker_fl.wire.events import Event

UpdateOutcome = Literal["late", "duplicate", "refused"]
"""Of an update that arrived and is in no sum; those that are in one are events (``UpdateFolded``)."""
RefusalReason = Literal["", "frame", "result", "update", "stale", "unreadable"]
"""``frame``: bytes that are no part of an update; ``update``: whole, and not to be folded (shape, weight,
values); ``result``: its numbers contradict the task; ``stale``: trained from too old a version;
``unreadable``: a result that is none.
"""
REFUSAL_REASONS: tuple[RefusalReason, ...] = ("frame", "result", "update", "stale", "unreadable")
WorkOutcome = Literal["finished", "failed", "cancelled"]


class Observer(Protocol):
    """Is told on the role's own threads: it is quick, raises nothing and calls nobody back."""

    def event(self, event: Event) -> None:
        """Something happened to a job; of the controller."""
        ...

    def update(self, outcome: UpdateOutcome, reason: RefusalReason = "", count: int = 1) -> None:
        """Updates arrived that count nowhere; of the controller."""
        ...

    def refused(self, source: str) -> None:
        """A message was not taken: from ``inbox``, ``reports``, ``control`` or ``mailbox``; because its
        sender sends too much: ``over_limit``; or because somebody had a controller's own message sent back to
        it: ``bounced``.
        """
        ...

    def received(self, seconds: float) -> None:
        """A learner has a task with its model, so long after the announcement."""
        ...

    def worked(self, outcome: WorkOutcome, seconds: float) -> None:
        """A learner is done with a task: evaluation and training, without what came before."""
        ...


class Nobody:
    """Watches nothing."""

    def event(self, event: Event) -> None: ...

    def update(self, outcome: UpdateOutcome, reason: RefusalReason = "", count: int = 1) -> None: ...

    def refused(self, source: str) -> None: ...

    def received(self, seconds: float) -> None: ...

    def worked(self, outcome: WorkOutcome, seconds: float) -> None: ...


NOBODY: Observer = Nobody()
