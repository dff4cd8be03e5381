"""What a line of the log is about: job, round and learner, which the code that logs need not name again.

``with about(job="…", round=3):`` holds for all that is logged inside, on this thread; who formats the log
reads it with ``subject``. What is true of the whole process (its federation) is told once, by ``everywhere``.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from types import TracebackType

from broker_fl.wire.messages import Message, Task, TaskRef

Fact = str | int

_SUBJECT: ContextVar[about | None] = ContextVar("broker_fl.about", default=None)
_EVERYWHERE: dict[str, Fact] = {}


class about:  # noqa: N801 - reads as a statement
    """Facts for what is logged inside the block, besides those of blocks around it. None says nothing.

    Each message that comes in opens one, and hardly any logs a line: facts are put together when one does.
    """

    __slots__ = ("_facts", "_message", "_outer", "_token")

    def __init__(self, **facts: Fact | None) -> None:
        self._facts = facts
        self._message: Message | None = None
        self._outer: about | None = None
        self._token: Token[about | None] | None = None

    def __enter__(self) -> about:
        self._outer = _SUBJECT.get()
        self._token = _SUBJECT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _SUBJECT.reset(self._token)

    def learner(self, name: str) -> None:
        """It turned out inside the block whom it is about."""
        self._facts["learner"] = name

    def message(self, message: Message) -> None:
        """It is about the task that the message belongs to, or brings along, if there is one."""
        self._message = message

    def facts(self) -> dict[str, Fact]:
        """All that holds inside the block."""
        facts = self._outer.facts() if self._outer is not None else {}
        facts |= {name: fact for name, fact in self._facts.items() if fact is not None}
        task = getattr(self._message, "task", None)
        ref = task.task if isinstance(task, Task) else task
        return facts | {"job": ref.job, "round": ref.round} if isinstance(ref, TaskRef) else facts


def everywhere(**facts: Fact) -> None:
    """Facts for all that this process logs from now on, on any thread."""
    _EVERYWHERE.update(facts)


def subject(*, of_process: bool = True) -> dict[str, Fact]:
    """What holds at this point; without what is true of the whole process, if that is said elsewhere."""
    block = _SUBJECT.get()
    return {**(_EVERYWHERE if of_process else {}), **(block.facts() if block is not None else {})}
