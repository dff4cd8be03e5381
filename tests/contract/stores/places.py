"""Where stores are: in memory, in a file, on a server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from redis import Redis

from broker_fl.interfaces import Store
from broker_fl.stores.memory import MemoryStore
from broker_fl.stores.redis import RedisStore
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.topology import RedisKeys
from tests.servers.redis_account import documented_rules


class Place(Protocol):
    """Where a store is: two controllers each open it once."""

    def open(self) -> Store: ...

    def expire_lease(self) -> None:
        """Let the time pass that the lease in force was taken for."""
        ...


class SQLitePlace:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._now = 1_000_000.0
        self._opened: list[Store] = []

    def open(self) -> Store:
        self._opened.append(SQLiteStore(self._path, federation="f", clock=lambda: self._now))
        return self._opened[-1]

    def expire_lease(self) -> None:
        self._now += 3600

    def close(self) -> None:
        for store in self._opened:
            store.close()


class MemoryPlace:
    """Both controllers are given the same one."""

    def __init__(self) -> None:
        self._now = 0.0
        self._store = MemoryStore(lambda: self._now)

    def open(self) -> Store:
        return self._store

    def expire_lease(self) -> None:
        self._now += 3600

    def close(self) -> None:
        self._store.close()


class RedisPlace:
    """Opened with the account that operators are told to make: it is enough for all that a store does."""

    def __init__(self, url: str, federation: str) -> None:
        self._keys = RedisKeys(federation)
        self._opened: list[RedisStore] = []
        self._admin: Any = Redis.from_url(url)
        self._acl("SETUSER", federation, "reset", "on", ">few", *documented_rules(federation))
        parts = urlsplit(url)
        self._url = urlunsplit(parts._replace(netloc=f"{federation}:few@{parts.netloc.rpartition('@')[2]}"))

    def open(self) -> Store:
        self._opened.append(RedisStore(self._url, federation=self._keys.federation))
        return self._opened[-1]

    def expire_lease(self) -> None:
        # The expiry is the server's own; only the length of the lease is not waited for.
        self._admin.pexpire(self._keys.lease, 1)
        wait_until(lambda: not self._admin.exists(self._keys.lease))

    def keys_of(self, job: str) -> list[str]:
        """What the server has under the job's name."""
        found = self._admin.scan_iter(count=1000)
        return [key.decode() for key in found if job in key.decode().split(":")]

    def close(self) -> None:
        for store in self._opened:
            store.close()
        for key in self._admin.scan_iter(match=self._keys.pattern, count=1000):
            self._admin.unlink(key)
        self._acl("DELUSER", self._keys.federation)
        self._admin.close()

    def _acl(self, *words: str) -> None:
        self._admin.execute_command("ACL", *words)


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
