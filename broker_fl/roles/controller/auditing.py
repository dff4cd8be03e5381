"""The controller's side of the audit log: entries are chained at once, and stored in order."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator

from broker_fl.errors import AuditBroken, StoreUnavailable
from broker_fl.interfaces import Store
from broker_fl.roles.runtime import Clock
from broker_fl.security.audit import LOG_NAME, Deed, Head, chained, read

log = logging.getLogger(__name__)
BATCH = 2_000


class AuditLog:
    """Of one controller, while it holds the lease; lives on its thread.

    The store's fence sees to it that the chain has one end: a controller that was thought dead adds nothing.
    """

    def __init__(self, store: Store, federation: str, epoch: int, clock: Clock) -> None:
        """Goes on from the newest entry, also if that is none: ``verify`` will say so.

        Raises:
            StoreUnavailable: it does not answer.
        """
        self._store = store
        self._epoch = epoch
        self._clock = clock
        self._pending: list[bytes] = []
        last = store.read_events(LOG_NAME, after=store.num_events(LOG_NAME) - 1, limit=1)
        self.head = Head.of_empty(federation)
        if last:
            self.head = self._after(last[-1])
        log.info("the audit log's head is %s", self.head)

    def _after(self, line: bytes) -> Head:
        try:
            fields = read(line)
        except AuditBroken as error:
            log.error("%s; the log goes on after it", error)
            return Head(self._store.num_events(LOG_NAME), hashlib.sha256(line).hexdigest())
        return Head(fields["sequence"], fields["hash"])

    def add(self, deed: Deed) -> None:
        """Chain an entry to the last; it is stored with the next ``flush``."""
        line, self.head = chained(deed, self.head, self._clock.now())
        self._pending.append(line)

    @property
    def has_news(self) -> bool:
        """Whether ``flush`` has something to do."""
        return bool(self._pending)

    def flush(self) -> StoreUnavailable | None:
        """Store what was added; an error of the store is returned, and it has to be tried again."""
        try:
            self.write()
        except StoreUnavailable as error:
            log.warning("%d entries of the audit log wait for the store: %s", len(self._pending), error)
            return error
        return None

    def write(self) -> None:
        """Store what was added.

        Raises:
            StoreUnavailable: what is not stored waits for the next time.
            Fenced: another controller has taken over.
        """
        while self._pending:
            batch = self._pending[:BATCH]
            first = self.head.sequence - len(self._pending) + 1
            self._store.append_events(LOG_NAME, batch, first=first, epoch=self._epoch)
            del self._pending[: len(batch)]


def stored_lines(store: Store) -> Iterator[bytes]:
    """All entries in a store, oldest first.

    Raises:
        StoreUnavailable: it does not answer.
    """
    after, page = 0, [b""]
    while page:
        page = store.read_events(LOG_NAME, after=after, limit=BATCH)
        yield from page
        if page:
            after = max(after + 1, read(page[-1])["sequence"])
