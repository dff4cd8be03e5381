"""What a line of the log is about: job, round and learner, which the code that logs need not name again.

``with about(job="…", round=3):`` holds for all that is logged inside, on this thread; who formats the log
reads it with ``subject``. What is true of the whole process (its federation) is told once, by ``everywhere``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import MappingProxyType, TracebackType

from broker_fl.wire.messages import Message, Task, TaskRef

Fact = str | int

_NOTHING: Mapping[str, Fact] = MappingProxyType({})
_SUBJECT: ContextVar[Mapping[str, Fact]] = ContextVar("broker_fl.about", default=_NOTHING)
_EVERYWHERE: dict[str, Fact] = {}


class about:  # noqa: N801 - reads as a statement
    """Facts for what is logged inside the block, besides those of blocks around it. None says nothing."""

    __slots__ = ("_facts", "_token")

    def __init__(self, **facts: Fact | None) -> None:
        self._facts = facts
        self._token: Token[Mapping[str, Fact]] | None = None

    def __enter__(self) -> about:
        self._token = _SUBJECT.set(_with(self._facts))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _SUBJECT.reset(self._token)

    def too(self, **facts: Fact | None) -> None:
        """Facts that turned up inside the block; until its end."""
        _SUBJECT.set(_with(facts))

    def too_of(self, message: Message) -> None:
        """Job and round of a message that belongs to a task, or that brings one along."""
        task = vars(message).get("task")  # pydantic makes an error of each field that is not there
        ref = task.task if isinstance(task, Task) else task
        if isinstance(ref, TaskRef):
            self.too(job=ref.job, round=ref.round)


def _with(facts: Mapping[str, Fact | None]) -> Mapping[str, Fact]:
    return {**_SUBJECT.get(), **{name: fact for name, fact in facts.items() if fact is not None}}


def everywhere(**facts: Fact) -> None:
    """Facts for all that this process logs from now on, on any thread."""
    _EVERYWHERE.update(facts)


def subject() -> dict[str, Fact]:
    """What holds at this point."""
    return {**_EVERYWHERE, **_SUBJECT.get()}
