"""A learner's link to the broker: so many bytes a second and a latency, in each direction."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from broker_fl.errors import TransportClosed
from broker_fl.interfaces import Delivery, Sink, Transport
from broker_fl.transports.delegating import DelegatingTransport
from broker_fl.transports.limits import check_body, check_routing_keys

log = logging.getLogger(__name__)
MAX_UNDER_WAY = 64
"""Messages that may be on their way in one direction; then publishers wait."""
_CLOSE_TIMEOUT_S = 5.0


class Lane:
    """One direction: message after message, each as long as its bytes take, then ``latency_s`` on its way.

    A message that is on its way holds up nobody; one thread hands over what has arrived. A lane that takes no
    time has none.
    """

    def __init__(self, bytes_s: float | None, latency_s: float, name: str) -> None:
        self._bytes_s = bytes_s
        self._latency_s = latency_s
        self._name = name
        self._changed = threading.Condition()
        self._under_way: deque[tuple[float, Callable[[], None]]] = deque()
        self._handing_over = False
        self._free_at = 0.0
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def is_instant(self) -> bool:
        """Whether nothing is held up."""
        return self._bytes_s is None and self._latency_s <= 0

    def put(self, num_bytes: int, arrive: Callable[[], None]) -> float:
        """Send off a message; ``arrive`` is called on the lane's thread when it is there.

        When the sender is done with it, in seconds of ``time.monotonic``, comes back. After ``close`` nothing
        arrives.
        """
        with self._changed:
            sent_at = max(time.monotonic(), self._free_at)
            if self._bytes_s is not None:
                sent_at += num_bytes / self._bytes_s
            self._free_at = sent_at
            self._under_way.append((sent_at + self._latency_s, arrive))
            self._start_thread()
            self._changed.notify_all()
            return sent_at

    def wait_sent(self, sent_at: float) -> bool:
        """Wait until the sender is done and there is room for the next message; False if closed meanwhile."""
        with self._changed:
            while not self._closed:
                left_s = sent_at - time.monotonic()
                if left_s <= 0 and len(self._under_way) < MAX_UNDER_WAY:
                    return True
                self._changed.wait(left_s if left_s > 0 else None)
            return False

    def flush(self, timeout_s: float) -> bool:
        """Wait until all has arrived; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._under_way or self._handing_over), timeout_s)

    def close(self) -> None:
        """Let what is on its way be lost."""
        with self._changed:
            self._closed = True
            self._under_way.clear()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _start_thread(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (arrive := self._next()) is not None:
            try:
                arrive()
            except TransportClosed:
                return
            except Exception:
                log.exception("a message could not be handed over by the %s", self._name)

    def _next(self) -> Callable[[], None] | None:
        """The next message, once it has arrived; None when the lane is closed."""
        with self._changed:
            self._handing_over = False
            self._changed.notify_all()
            while not self._closed:
                left_s = self._under_way[0][0] - time.monotonic() if self._under_way else None
                if left_s is not None and left_s <= 0:
                    self._handing_over = True
                    return self._under_way.popleft()[1]
                self._changed.wait(left_s)
            return None


class LinkedTransport(DelegatingTransport):
    """A ``Transport`` at the end of a link: what is published and what is delivered takes its time.

    Messages of one direction keep their order; a small one waits behind the large one that is being sent, as
    on one connection. Declarations and acks take no time.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        down_bytes_s: float | None = None,
        up_bytes_s: float | None = None,
        latency_s: float = 0.0,
        name: str = "link",
    ) -> None:
        super().__init__(inner)
        self._down = Lane(down_bytes_s, latency_s, f"{name} down")
        self._up = Lane(up_bytes_s, latency_s, f"{name} up")
        self._closed = threading.Event()

    def consume(self, queue: str, sink: Sink, *, prefetch: int, exclusive: bool = False) -> None:
        def arrive(delivery: Delivery) -> None:
            try:
                sink(delivery)
            except Exception:
                log.exception("the consumer of queue %r failed; its message is rejected", queue)
                delivery.reject()

        def delayed(delivery: Delivery) -> None:
            self._down.put(len(delivery.body), lambda: arrive(delivery))

        used = sink if self._down.is_instant else delayed
        self._inner.consume(queue, used, prefetch=prefetch, exclusive=exclusive)

    def publish(
        self,
        exchange: str,
        routing_keys: Sequence[str],
        body: bytes,
        *,
        persistent: bool = False,
        mandatory: bool = False,
    ) -> None:
        def arrive() -> None:
            self._inner.publish(exchange, routing_keys, body, persistent=persistent, mandatory=mandatory)

        check_body(body)
        check_routing_keys(routing_keys)
        if self._closed.is_set():
            raise TransportClosed("the transport is closed")
        if self._up.is_instant:
            arrive()
        elif not self._up.wait_sent(self._up.put(len(body), arrive)):
            raise TransportClosed("the transport is closed")

    def flush(self, timeout_s: float) -> bool:
        give_up_at = time.monotonic() + timeout_s
        return self._up.flush(timeout_s) and self._inner.flush(max(0.0, give_up_at - time.monotonic()))

    def close(self) -> None:
        if not self._closed.is_set():
            self._up.flush(_CLOSE_TIMEOUT_S)
        self.cut()

    def cut(self) -> None:
        """Disconnect at once, as a killed process does: what was on its way is lost, deliveries go back."""
        self._closed.set()
        self._inner.close()
        self._up.close()
        self._down.close()
