"""Where stores are: in memory, in a file, on a server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from broker_fl.interfaces import Store
from broker_fl.stores.memory import MemoryStore
from broker_fl.stores.redis import RedisStore
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.topology import RedisKeys


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
    def __init__(self, url: str, federation: str) -> None:
        self._url = url
        self._keys = RedisKeys(federation)
        self._opened: list[RedisStore] = []

    def open(self) -> Store:
        self._opened.append(RedisStore(self._url, federation=self._keys.federation))
        return self._opened[-1]

    def expire_lease(self) -> None:
        # The expiry is the server's own; only the length of the lease is not waited for.
        client = self._opened[0]._client
        client.pexpire(self._keys.lease, 1)
        wait_until(lambda: not client.exists(self._keys.lease))

    def keys_of(self, job: str) -> list[str]:
        """What the server has under the job's name."""
        found = self._opened[0]._client.scan_iter(count=1000)
        return [key.decode() for key in found if job in key.decode().split(":")]

    def close(self) -> None:
        client = self._opened[0]._client
        for key in client.scan_iter(match=f"bfl:{{{self._keys.federation}}}*", count=1000):
            client.unlink(key)
        for store in self._opened:
            store.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
