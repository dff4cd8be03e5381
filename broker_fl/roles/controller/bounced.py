"""What a controller has sent to others and somebody has the broker send back to it.

Who may declare a queue may have it hand on what it gets, as dead letters, to an exchange that the account may
write to (https://www.rabbitmq.com/docs/dlx). The broker leaves the first sender's account in them: so drivers
and observers can have a federation's events come to a controller as if a controller had sent them. No
controller sends another anything but letters that are to be heard again (``replays.py``).
"""

from __future__ import annotations

import logging
import threading

from broker_fl.errors import FrameRefused
from broker_fl.interfaces import Delivery
from broker_fl.roles.controller.replays import may_replay
from broker_fl.roles.controller.services import Services
from broker_fl.wire.frames import unpack_short_header
from broker_fl.wire.messages import DeadLetter

log = logging.getLogger(__name__)
SAY_EVERY_S = 60.0


class Bounced:
    """Drops it before it costs anything. Of one controller."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._num = 0
        self._queue = ""
        self._num_unsaid = 0
        self._say_at = services.clock.now()

    def drop(self, delivery: Delivery) -> bool:
        """Whether it is such a message; if so it is acked, and kept nowhere. On any thread."""
        if not may_replay(delivery, self._services.topology.federation) or _is_letter(delivery):
            return False
        delivery.ack()
        queue: str = getattr(delivery, "died_in", "")  # only RabbitMQ hands on dead letters
        with self._lock:
            is_first = not self._num
            self._num += 1
            self._queue = queue or self._queue
        if is_first:  # one call waits for the controller's thread, however many messages come
            self._services.post(self._tell)
        return True

    def _tell(self) -> None:
        with self._lock:
            num, queue, self._num = self._num, self._queue, 0
        for _ in range(num):
            self._services.observer.refused("bounced")
        self._num_unsaid += num
        now = self._services.clock.now()
        if now < self._say_at:
            return
        log.warning(
            "%d messages came back to this controller that a controller had sent to others, the last by "
            "queue %r: they are dropped. Whoever declared that queue, which is named after its account, has "
            "them sent here: revoke it",
            self._num_unsaid,
            queue,
        )
        self._num_unsaid, self._say_at = 0, now + SAY_EVERY_S


def _is_letter(delivery: Delivery) -> bool:
    """By its kind alone: a letter that cannot be read is no less to be kept."""
    try:
        header = unpack_short_header(delivery.body)
    except FrameRefused:
        return False
    return header is not None and bool(header["kind"] == DeadLetter.KIND)
