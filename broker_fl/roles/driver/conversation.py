"""What a driver waits for: the answers to a request, a model on its way, the events of a job."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Self

from broker_fl.errors import (
    BrokerUnavailable,
    FrameRefused,
    MessageRefused,
    QueueLost,
    RequestRefused,
    SettingRefused,
)
from broker_fl.interfaces import Delivery
from broker_fl.model import Model
from broker_fl.roles.runtime import Runtime, Waiting
from broker_fl.roles.sender import read
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import Assembly
from broker_fl.wire.encodings import encoding
from broker_fl.wire.events import Event, decode_event

if TYPE_CHECKING:
    from broker_fl.roles.driver.driver import Driver

Answer = m.Reply | Exception | None
"""An exception stands for all answers that would have come; None: they went where nobody reads any more."""
EVENTS_PREFETCH = 256
MAX_MODEL_BYTES = 8 << 30
_REPEAT_AFTER_S = 10.0
_TRY_AGAIN_AFTER_S = 0.25
_REFUSED_AGAIN_AFTER_S = 1.0


class Answers:
    """The answers to one request, which is sent again while none comes: requests are safe to repeat."""

    def __init__(self, driver: Driver, request: m.Request) -> None:
        self._driver = driver
        self._request = request
        self._answers = driver.expect(request.request)

    def __enter__(self) -> Self:
        self._driver.send(self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._driver.forget(self._request.request)

    def next(self, *expected: type[m.Reply]) -> m.Reply:
        """The next answer of an expected kind.

        Raises:
            RequestRefused: with the controller's reason; one that may pass has not, for ``timeout_s``.
            BrokerUnavailable: no controller answered within ``timeout_s``.
        """
        steady_s, refused = self._driver.runtime.steady_s, None
        give_up_at = steady_s() + self._driver.timeout_s
        while (left_s := give_up_at - steady_s()) > 0:
            reply = self._answer(min(left_s, _REPEAT_AFTER_S))
            if reply is None:
                self._driver.send(self._request)
                continue
            if isinstance(reply, m.Refused):
                refused = reply
                if not reply.again:
                    break
                self._driver.runtime.sleep(_REFUSED_AGAIN_AFTER_S)
                self._driver.send(self._request)
                continue
            if isinstance(reply, expected):
                return reply
        if refused is not None:
            raise (SettingRefused if refused.setting else RequestRefused)(refused.reason)
        raise BrokerUnavailable(
            f"no controller of federation {self._driver.topology.federation!r} answered within "
            f"{self._driver.timeout_s:g} s; is one running (broker-fl controller)?"
        )

    def _answer(self, timeout_s: float) -> m.Reply | None:
        """What came; None if it is time to ask again."""
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(answer, Exception):
            raise answer
        return answer


class Download:
    """A model on its way to the driver."""

    def __init__(self, follows: m.ModelFollows, runtime: Runtime) -> None:
        self.model = (follows.job, follows.model.version)
        self._manifest = follows.model
        self._spec = follows.model.model_spec(max_bytes=MAX_MODEL_BYTES)
        self._assembly = Assembly(follows.model.num_bytes, follows.model.chunk_bytes)
        self._arrived: Waiting[Exception | None] = runtime.queue()

    def add(self, chunk: m.ModelChunk, payload: memoryview) -> None:
        """Take a chunk that came in; one that is there already is ignored."""
        self._assembly.add(chunk.index, chunk.count, chunk.checksum, payload)
        self._arrived.put(None)

    def fail(self, error: Exception) -> None:
        """Raise ``error`` from ``wait``: nothing more comes."""
        self._arrived.put(error)

    def wait(self, timeout_s: float) -> Model:
        """The model, once it is whole.

        Raises:
            BrokerUnavailable: no chunk came for ``timeout_s``.
            FrameRefused: what came is not what was announced.
        """
        while not self._assembly.complete:
            try:
                failure = self._arrived.get(timeout=timeout_s)
            except queue.Empty:
                missing = self._assembly.num_missing
                raise BrokerUnavailable(
                    f"{missing} chunks of the model did not arrive within {timeout_s:g} s",
                ) from None
            if failure is not None:
                raise failure
        model = encoding(self._manifest.encoding).decode(self._assembly.buffer, self._spec)
        if self._manifest.encoding == "raw" and model.digest != self._manifest.digest:
            raise FrameRefused("the model arrived with another digest than was announced")
        return model.own()


class Watch:
    """Live events of one job, in a queue of its own."""

    def __init__(self, driver: Driver, job: str) -> None:
        self._driver = driver
        self._watcher = self._new_name()
        self._job = job
        self._batches: Waiting[tuple[bytes, ...] | None] = driver.runtime.queue()

    def __enter__(self) -> Self:
        driver, runtime = self._driver, self._driver.runtime
        give_up_at = runtime.steady_s() + driver.timeout_s
        while not self._is_consuming():
            if runtime.steady_s() >= give_up_at:
                raise BrokerUnavailable(f"the broker has not been there for {driver.timeout_s:g} s")
            runtime.sleep(_TRY_AGAIN_AFTER_S)
        driver.add_watch(self)
        return self

    def _is_consuming(self) -> bool:
        """Begin; False while the broker is away."""
        try:
            self._consume(self._watcher)
        except QueueLost:  # its node went down just now
            self._driver.transport.cancel(self._driver.topology.event_queue(self._watcher))
            self._watcher = self._new_name()
            return False
        except BrokerUnavailable:
            return False
        return True

    def _new_name(self) -> str:
        return f"{self._driver.id}-{self._driver.unique()[:8]}"

    def _consume(self, watcher: str) -> None:
        driver, name = self._driver, self._driver.topology.event_queue(watcher)
        driver.transport.declare(driver.topology.for_watcher(watcher, self._job))
        driver.transport.consume(name, self._take, prefetch=EVENTS_PREFETCH, exclusive=True)

    def move(self, queue: str) -> None:
        """``queue`` is on a node that is down: if it is this one, have another. On a thread of the transport.

        Raises:
            BrokerUnavailable: there is none at the moment; the transport says again that it is lost.
        """
        driver = self._driver
        if queue != driver.topology.event_queue(self._watcher):
            return
        watcher = self._new_name()
        self._consume(watcher)
        self._watcher = watcher
        driver.transport.cancel(queue)
        self.check()

    def __exit__(self, *_: object) -> None:
        self._driver.remove_watch(self)
        self._driver.let_go(self._driver.topology.event_queue(self._watcher))

    def check(self) -> None:
        """Something may have been missed: have ``next`` say so; from any thread."""
        self._batches.put(None)

    def _take(self, delivery: Delivery) -> None:
        try:
            message, _ = read(delivery)
            if isinstance(message, m.EventBatch):
                self._batches.put(message.events)
        except MessageRefused:
            self.check()  # the stored events tell what was missed
        finally:
            delivery.ack()

    def next(self, last: int) -> list[Event]:
        """Events after ``last``; empty when some may have been missed, or none came for a while."""
        while True:
            try:
                batch = self._batches.get(timeout=_REPEAT_AFTER_S)
            except queue.Empty:
                return []
            if batch is None:
                return []
            if fresh := [event for event in map(decode_event, batch) if event.sequence > last]:
                return fresh
