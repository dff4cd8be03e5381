"""How much one account may send: a token bucket each, so that a flood costs little and others are heard."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from broker_fl.roles.controller.speakers import Speaker
from broker_fl.roles.runtime import Clock

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second in the long run, and ``burst`` at once."""

    per_s: float
    burst: float


MESSAGES = Rate(500.0, 5_000.0)
"""Reports and requests: a learner sends a heartbeat every few seconds, and two messages for each task."""
WASTE = Rate(50.0, 1_000.0)
"""Messages of an inbox that are refused or that nobody waits for; parts of a wanted update are free."""
DEAD_LETTERS = Rate(2.0, 50.0)
"""Refused messages that are kept with the reason."""
DEAD_LETTER_BYTES = Rate(float(16 << 10), float(16 << 20))
"""Of these messages; of what is more, only the beginnings are kept: all letters together may have 256 MiB."""
JOINS = Rate(0.2, 20.0)
"""Of a learner or a group: when it starts, and when it is asked who it is. One that is dropped is asked for
again after the next heartbeat.
"""
FORGOTTEN = Rate(10.0, 100.0)
"""Tasks of jobs that have ended, which a learner is told to let go of; it names the rest again."""
WRITTEN_DOWN = Rate(2.0, 200.0)
"""Requests that go into the audit log, which is never cut."""
READS = Rate(40.0, 1_000.0)
"""Requests that change nothing and are not written down: one, and one more for each ``READ_BYTES`` of the
answer.
"""
READ_BYTES = 64 << 10

MAX_WAITING_BYTES = 64 << 20
"""Of one account's reports and requests that were fetched and not handled yet, as while the store is away: a
thousand of them are fetched at a time, and each may have as many bytes as the broker takes.
"""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float
    num_over: int = 0


class RateLimit:
    """Of each of many accounts, whose names are verified: an attacker cannot make up others."""

    def __init__(self, rate: Rate, what: str) -> None:
        self._rate = rate
        self._what = what
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str, now: float, num: int = 1) -> bool:
        """Count ``num`` more of this account, at ``now`` seconds; False if it is over its limit."""
        bucket = self._filled(name, now)
        if bucket.tokens < num:
            self._over(name, bucket, num)
            return False
        bucket.tokens -= num
        return True

    def spend(self, name: str, now: float, num: int) -> None:
        """Count ``num`` more, also if those are too many: the account waits longer then."""
        self._filled(name, now).tokens -= num

    def has_left(self, name: str, now: float) -> bool:
        """Whether the account is below its limit; if not, that is counted as one more that was dropped."""
        bucket = self._filled(name, now)
        if bucket.tokens < 1.0:
            self._over(name, bucket)
            return False
        return True

    def _filled(self, name: str, now: float) -> _Bucket:
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(self._rate.burst, now)
        bucket.tokens = min(self._rate.burst, bucket.tokens + max(0.0, now - bucket.at) * self._rate.per_s)
        bucket.at = now
        if bucket.num_over and bucket.tokens >= self._rate.burst / 2:
            log.warning("%s: %d %s were dropped in all", name, bucket.num_over, self._what)
            bucket.num_over = 0
        return bucket

    def _over(self, name: str, bucket: _Bucket, num: int = 1) -> None:
        is_first = not bucket.num_over
        bucket.num_over += num
        if is_first:
            log.warning(
                "%s sends more %s than %g a second: what is more is dropped",
                name,
                self._what,
                self._rate.per_s,
            )


class Backlog:
    """Bytes of each account that wait to be handled. For any thread."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def enter(self, name: str, num_bytes: int) -> bool:
        """Count a message that came; False, and nothing is counted, if too much of this account waits."""
        with self._lock:
            waiting = self._bytes.get(name, 0)
            if waiting and waiting + num_bytes > MAX_WAITING_BYTES:
                if name not in self._said:
                    self._said.add(name)
                    log.warning(
                        "%s: %d bytes of its messages wait to be handled: what is more is dropped",
                        name,
                        waiting,
                    )
                return False
            self._bytes[name] = waiting + num_bytes
            return True

    def leave(self, name: str, num_bytes: int) -> None:
        """One that was counted is handled."""
        with self._lock:
            left = self._bytes.pop(name, 0) - num_bytes
            if left > 0:
                self._bytes[name] = left
            else:
                self._said.discard(name)


class Waste:
    """Counts messages that were of no use to anybody, against the accounts that sent them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._limit = RateLimit(WASTE, "messages that nobody asked for")

    def add(self, speaker: Speaker) -> None:
        """One more of this sender."""
        if speaker.account is not None:
            self._limit.take(speaker.account.user, self._clock.now())

    def is_over_limit(self, speaker: Speaker) -> bool:
        """Whether there were so many that nothing more of this sender is read for now."""
        account = speaker.account
        return account is not None and not self._limit.has_left(account.user, self._clock.now())
