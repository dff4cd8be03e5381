"""A federation's versions on a Redis of its own, and whether they are whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from broker_fl.interfaces import StoredVersion
from broker_fl.stores.redis import RedisStore
from broker_fl.topology import RedisKeys

F = "f"
KEYS = RedisKeys(F)
MIB = 1 << 20


@contextmanager
def opened(url: str, timeout_s: float = 15.0) -> Iterator[RedisStore]:
    store = RedisStore(url, federation=F, timeout_s=timeout_s)
    try:
        yield store
    finally:
        store.close()


def acquire(store: RedisStore, owner: str = "first") -> int:
    epoch = store.acquire_lease(owner, 60)
    assert epoch is not None
    return epoch


def write(store: RedisStore, number: int, num_chunks: int, epoch: int) -> None:
    for index in range(num_chunks):
        store.write_chunk("job", number, index, memoryview(content(number, index)), epoch=epoch)


def commit(store: RedisStore, number: int, num_chunks: int, epoch: int) -> None:
    version = StoredVersion(version=number, manifest=b"m", num_chunks=num_chunks)
    store.commit_version("job", version, b"state %d" % number, epoch=epoch, keep=2)


def write_and_commit(store: RedisStore, number: int, num_chunks: int, epoch: int) -> None:
    write(store, number, num_chunks, epoch)
    commit(store, number, num_chunks, epoch)


def content(number: int, index: int) -> bytes:
    return b"%04d%04d" % (number, index) * (MIB // 8)


def check(store: RedisStore, newest: int) -> None:
    """Everything that is kept is whole, and ``newest`` is the newest."""
    versions = store.versions("job")
    assert [version.version for version in versions] == list(range(max(0, newest - 1), newest + 1))
    for version in versions:
        for index in range(version.num_chunks):
            assert store.read_chunk("job", version.version, index) == content(version.version, index)
    assert store.jobs() == {"job": b"state %d" % newest}


def chunk_keys(admin: Any, *, expiring: bool) -> list[bytes]:
    keys = admin.keys(f"{KEYS.chunks('job')}:*".replace("{", "\\{"))
    return sorted(key for key in keys if (admin.pttl(key) >= 0) == expiring)
