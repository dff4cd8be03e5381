"""Requests and what comes of them: one answer, pages of it, a model."""

from __future__ import annotations

import queue
from contextlib import suppress
from typing import Self, TypeVar

from broker_fl.errors import BrokerUnavailable, QueueLost, RequestRefused, SettingRefused
from broker_fl.model import Model
from broker_fl.roles.driver.connection import Answer, Connection
from broker_fl.wire import messages as m

R = TypeVar("R", bound=m.Reply)
P = TypeVar("P", m.Jobs, m.Learners, m.Versions)
_REPEAT_AFTER_S = 10.0
_SAY_AFTER_S = 2.0
_REFUSED_AGAIN_AFTER_S = 1.0


class Answers:
    """The answers to one request, which is sent again while none comes: requests are safe to repeat."""

    def __init__(self, connection: Connection, request: m.Request) -> None:
        self._connection = connection
        self._request = request
        self._answers = connection.expect(request.request)

    def __enter__(self) -> Self:
        self._connection.send(self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.forget(self._request.request)

    def next(self, *expected: type[m.Reply]) -> m.Reply:
        """The next answer of an expected kind.

        Raises:
            RequestRefused: with the controller's reason; one that may pass has not, for ``timeout_s``.
            BrokerUnavailable: no controller answered within ``timeout_s``.
        """
        steady_s, refused = self._connection.runtime.steady_s, None
        give_up_at = steady_s() + self._connection.timeout_s
        while (left_s := give_up_at - steady_s()) > 0:
            reply = self._answer(left_s)
            if reply is None:
                self._connection.send(self._request)
                continue
            if isinstance(reply, m.Refused):
                refused = reply
                if not reply.again:
                    break
                self._connection.runtime.sleep(_REFUSED_AGAIN_AFTER_S)
                self._connection.send(self._request)
                continue
            if isinstance(reply, expected):
                return reply
        if refused is not None:
            raise (SettingRefused if refused.setting else RequestRefused)(refused.reason)
        raise BrokerUnavailable(
            f"no controller of federation {self._connection.topology.federation!r} answered within "
            f"{self._connection.timeout_s:g} s; is one running (broker-fl controller)?"
        )

    def _answer(self, left_s: float) -> m.Reply | None:
        """What came; None if it is time to ask again."""
        try:
            answer = self._get(min(left_s, _REPEAT_AFTER_S), left_s)
        except queue.Empty:
            return None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _get(self, timeout_s: float, left_s: float) -> Answer:
        with suppress(queue.Empty):
            return self._answers.get(timeout=min(timeout_s, _SAY_AFTER_S))
        self._connection.say_waiting(left_s - _SAY_AFTER_S)
        return self._answers.get(timeout=max(0.0, timeout_s - _SAY_AFTER_S))


def ask(connection: Connection, request: m.Request, expected: type[R]) -> R:
    """Send a request and wait for its answer.

    Raises:
        RequestRefused: with the controller's reason.
        BrokerUnavailable: no controller answered within ``timeout_s``.
    """
    with Answers(connection, request) as answers:
        reply = answers.next(expected)
        assert isinstance(reply, expected)  # noqa: S101 - what ``next`` promises, for the type checker
        return reply


def ask_for_pages(connection: Connection, request: m.Request, expected: type[P]) -> list[P]:
    """Send a request and wait for all pages of its answer; one may be there twice.

    Raises:
        RequestRefused: with the controller's reason.
        BrokerUnavailable: no controller answered within ``timeout_s``.
    """
    pages: list[P] = []
    with Answers(connection, request) as answers:
        while not pages or not pages[-1].last:
            reply = answers.next(expected)
            assert isinstance(reply, expected)  # noqa: S101 - what ``next`` promises, for the type checker
            pages.append(reply)
    return pages


def download(connection: Connection, job: str, version: int | None) -> tuple[int, Model]:
    """Fetch a model version; None is the newest. Its number comes back with it.

    Raises:
        RequestRefused: there is no such job or version.
        BrokerUnavailable: the model did not arrive; ``timeout_s`` counts from the last chunk.
    """
    while True:
        with suppress(QueueLost):
            return _download(connection, job, version)


def _download(connection: Connection, job: str, version: int | None) -> tuple[int, Model]:
    request = m.ReadModel(driver=connection.id, request=connection.unique(), job=job, version=version)
    with connection.downloading(request.request) as arriving:
        follows = ask(connection, request, m.ModelFollows)
        return follows.model.version, arriving().wait(connection.timeout_s)
