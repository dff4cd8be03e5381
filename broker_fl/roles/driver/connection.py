"""A driver's connection: requests go out, and what comes in reaches whoever waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from broker_fl.errors import BrokerUnavailable, MessageRefused, QueueLost, RequestRefused, SettingError
from broker_fl.identity.accounts import Account
from broker_fl.interfaces import Delivery, Transport
from broker_fl.roles.driver.download import Download
from broker_fl.roles.runtime import Runtime, Waiting
from broker_fl.roles.sender import read
from broker_fl.topology import Topology
from broker_fl.wire import messages as m

Answer = m.Reply | Exception | None
"""An exception stands for all answers that would have come; None: they went where nobody reads any more."""
REPLY_PREFETCH = 64


class Watching(Protocol):
    """Who reads events in a queue of its own."""

    def move(self, queue: str) -> None:
        """``queue`` is on a node that is down."""
        ...

    def check(self) -> None:
        """Something may have been missed."""
        ...


class Connection:
    """To one federation, for any number of threads."""

    def __init__(
        self,
        transport: Transport,
        federation: str,
        timeout_s: float,
        runtime: Runtime,
        on_waiting: Callable[[float], None] | None = None,
    ) -> None:
        """Make a queue for answers, and read it; for ``on_waiting`` see ``Driver``.

        Raises:
            SettingError: the account is enrolled as something else, or in another federation.
            BrokerUnavailable, AccessDenied: see ``Transport.declare``.
        """
        self.topology = Topology(federation)
        self.runtime = runtime
        account = driver_account(transport.user, federation)
        self._name = account.name if account is not None else "driver"
        self.id = self._new_id()
        """Names the queue of answers. It changes when that is on a node that goes down."""
        self.timeout_s = timeout_s
        self._on_waiting = on_waiting
        self.transport = transport
        self._lock = threading.Lock()
        self._waiting: dict[str, Waiting[Answer]] = {}
        self._downloads: dict[str, Download] = {}  # by request
        self._watches: set[Watching] = set()
        self._failure: Exception | None = None
        transport.on_reconnect(self._on_reconnect)
        transport.on_queue_lost(self._on_queue_lost)
        if account is None:
            transport.declare(self.topology.for_controller())
        try:
            self._open(self.id)
        except QueueLost:  # its node went down just now
            self._on_queue_lost(self.topology.driver_queue(self.id))

    def close(self) -> None:
        """Disconnect."""
        self.let_go(self.topology.driver_queue(self.id))
        self.transport.close()

    def say_waiting(self, left_s: float) -> None:
        """An answer is long in coming, and is waited for so much longer; who is to know is told once."""
        told, self._on_waiting = self._on_waiting, None
        if told is not None and left_s > 0:
            told(left_s)

    # ------------------------------------------------------------ what comes in, on a thread of the transport

    def _take(self, delivery: Delivery) -> None:
        try:
            message, payload = read(delivery)
            if isinstance(message, m.ModelChunk) and payload is not None:
                self._on_chunk(message, payload)
            elif isinstance(message, m.Reply):
                self._on_reply(message)
        except MessageRefused:
            pass  # a newer controller's message, or a broken one: the request times out, or is asked again
        finally:
            delivery.ack()

    def _on_reply(self, reply: m.Reply) -> None:
        with self._lock:
            download = self._downloads.get(reply.request)
            if download is not None and isinstance(reply, m.Refused):  # it broke off
                download.fail(RequestRefused(reply.reason))
            waiting = self._waiting.get(reply.request)
            if waiting is None:
                return
            if isinstance(reply, m.ModelFollows) and reply.request not in self._downloads:
                self._downloads[reply.request] = Download(reply, self.runtime)
        waiting.put(reply)

    def _on_chunk(self, chunk: m.ModelChunk, payload: memoryview) -> None:
        with self._lock:
            downloads = [one for one in self._downloads.values() if one.model == (chunk.job, chunk.version)]
        for download in downloads:
            download.add(chunk, payload)

    def _new_id(self) -> str:
        return f"{self._name}-{self.runtime.unique()[:12]}"

    def _open(self, driver: str) -> None:
        self.transport.declare(self.topology.for_driver(driver))
        queue = self.topology.driver_queue(driver)
        self.transport.consume(queue, self._take, prefetch=REPLY_PREFETCH, exclusive=True)

    def _on_queue_lost(self, queue: str) -> None:
        """On a thread of the transport: have another one, and ask again for what was asked for."""
        with self._lock:
            watches, waiting = list(self._watches), list(self._waiting.values())
            downloads = list(self._downloads.values())
        for watch in watches:
            watch.move(queue)
        if queue != self.topology.driver_queue(self.id):
            return
        driver = self._new_id()
        self._open(driver)
        self.id = driver
        self.transport.cancel(queue)
        for answers in waiting:
            answers.put(None)
        for download in downloads:
            download.fail(QueueLost(f"queue {queue!r} is on a node that is down"))

    def _on_reconnect(self) -> None:
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.check()

    # ------------------------------------------------------------ for answers and events

    @contextmanager
    def downloading(self, request: str) -> Iterator[Callable[[], Download]]:
        """Forget the model that answers a request at the end; until then, what has come of it can be had."""

        def arriving() -> Download:
            with self._lock:
                return self._downloads[request]

        try:
            yield arriving
        finally:
            with self._lock:
                self._downloads.pop(request, None)

    def fail(self, error: Exception) -> None:
        """Raise ``error`` wherever an answer is waited for, now or later: who knows that no controller will
        answer need not wait for a timeout.
        """
        with self._lock:
            self._failure = error
            waiting, downloads = list(self._waiting.values()), list(self._downloads.values())
            watches = list(self._watches)
        for answers in waiting:
            answers.put(error)
        for download in downloads:
            download.fail(error)
        for watch in watches:
            watch.check()

    def unique(self) -> str:
        """A name that nobody else has: of a request, or a part of a job's."""
        return self.runtime.unique()

    def expect(self, request: str) -> Waiting[Answer]:
        """Collect the answers to a request, until ``forget``."""
        answers: Waiting[Answer] = self.runtime.queue()
        with self._lock:
            self._waiting[request] = answers
            if self._failure is not None:
                answers.put(self._failure)
        return answers

    def forget(self, request: str) -> None:
        """Answers to the request are no longer wanted."""
        with self._lock:
            self._waiting.pop(request, None)

    def send(self, request: m.Request) -> None:
        """Publish a request; it is answered where this driver reads now."""
        self.transport.publish(
            self.topology.control,
            [self.topology.CONTROL],
            request.model_copy(update={"driver": self.id}).pack(),
            persistent=True,
        )

    def add_watch(self, watch: Watching) -> None:
        """Have the watch check for missed events when the connection was lost, until ``remove_watch``."""
        with self._lock:
            self._watches.add(watch)

    def remove_watch(self, watch: Watching) -> None:
        """The watch has ended."""
        with self._lock:
            self._watches.discard(watch)

    def let_go(self, queue: str) -> None:
        """Delete a queue of this driver; while the broker is away it is left to expire."""
        with suppress(BrokerUnavailable):
            self.transport.delete_queue(queue)


def driver_account(user: str, federation: str) -> Account | None:
    """The enrolled account that a driver works under; None if it is a shared one.

    Raises:
        SettingError: it is enrolled as something else, or in another federation.
    """
    account = Account.of(user)
    if account is not None and not (account.asks and account.federation == federation):
        raise SettingError(f"the account {user!r} is that of {account}; it is no driver of {federation!r}")
    return account
