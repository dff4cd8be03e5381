"""What the learners of one host work with, and what a host asks of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from broker_fl.observer import NOBODY, Observer
from broker_fl.roles.learner.outbox import Outbox
from broker_fl.roles.learner.policy import Guard, NoGuard
from broker_fl.roles.learner.settings import LearnerSettings
from broker_fl.roles.runtime import Clock, Runtime
from broker_fl.wire import messages as m


@dataclass(slots=True, kw_only=True)
class HostServices:
    """Of one host."""

    settings: LearnerSettings
    guard: Guard | NoGuard
    """The site's policy."""
    clock: Clock
    runtime: Runtime
    outbox: Outbox
    post: Callable[[Callable[[], None]], None]
    """Have a call made on the loop's thread."""
    on_idle: Callable[[], None]
    """To be told, on any thread, that perhaps nobody works or waits any more."""
    observer: Observer = NOBODY


class Party(Protocol):
    """Who has a mailbox and a session: a learner by itself, or a group. Lives on the loop's thread."""

    @property
    def id(self) -> str: ...

    @property
    def session(self) -> str: ...

    def joins(self, mailbox: int) -> Iterable[m.Join | m.GroupJoin]:
        """What it says when it joins; ``mailbox`` is the generation of the one that it reads."""
        ...

    def statuses(self) -> tuple[m.TaskStatus, ...]:
        """Of the tasks that it holds, for heartbeats."""
        ...

    def on_task(self, task: m.Task) -> None: ...

    def on_chunk(self, chunk: m.ModelChunk, payload: memoryview) -> None: ...

    def on_upload_request(self, request: m.UploadRequest) -> None: ...

    def cancel(self, cancel: m.Cancel) -> None: ...


class Parties(Protocol):
    """All learners of a host, each by itself or as one group, and those who work on their tasks."""

    @property
    def parties(self) -> Sequence[Party]: ...

    @property
    def num_working(self) -> int:
        """Tasks that are worked on; from any thread."""
        ...

    @property
    def num_waiting(self) -> int:
        """Tasks that are whole and wait for a worker; from any thread."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether nobody works or waits."""
        ...

    def __len__(self) -> int:
        """How many learners."""
        ...

    def due_s(self) -> float | None:
        """In how many seconds ``do_what_is_due`` may have something to do."""
        ...

    def do_what_is_due(self) -> None:
        """Say or send what it is time for."""
        ...

    def cancel_all(self) -> None:
        """Nobody wants what is worked on."""
        ...

    def stop(self) -> None:
        """Let the workers end."""
        ...
