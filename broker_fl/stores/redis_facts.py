"""What ``broker-fl doctor`` wants to know about a Redis."""

from __future__ import annotations

import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from broker_fl.security import Security
from broker_fl.security.certificates import Validity, of_decoded, of_files
from broker_fl.stores.redis_client import connect, place, translated
from broker_fl.topology import RedisKeys

_SECTIONS = ("server", "memory", "persistence", "replication")
_ROUND_TRIPS = 5


@dataclass(frozen=True, kw_only=True)
class RedisFacts:
    """One look at a server."""

    place: str
    version: str
    is_replica: bool
    maxmemory_policy: str
    maxmemory_bytes: int
    """0: no limit."""
    used_bytes: int
    aof: bool
    snapshots: bool | None
    """Whether RDB snapshots are scheduled; None: it may not be asked."""
    last_write_ok: bool
    """Whether the last snapshot and the last write to the AOF worked."""
    latency_s: float
    """Shortest of a few round trips."""
    clock_offset_s: float
    """The server's clock minus ours."""
    certificates: tuple[Validity, ...] = ()
    """Ours, the authorities that are trusted, and the server's as it showed it."""
    keys: str
    """What the keys of the federation match."""
    denied: tuple[str, ...]
    """Commands that the user may not use on the federation's keys, and should."""


def look_at_redis(
    url: str, *, federation: str, timeout_s: float = 5.0, security: Security | None = None
) -> RedisFacts:
    """Ask the server; a key that is made to try permissions is deleted again.

    Raises:
        SettingError: the URL is malformed.
        AccessDenied: wrong user or password, or the user may not use ``INFO``.
        StoreUnavailable: it does not answer.
    """
    client: Any = connect(url, timeout_s=timeout_s, security=security)
    try:
        with translated(place(url)):
            info = {key: value for section in _SECTIONS for key, value in client.info(section).items()}
            return RedisFacts(
                place=place(url),
                version=str(info.get("redis_version", "unknown")),
                is_replica=info.get("role") == "slave",
                maxmemory_policy=info.get("maxmemory_policy", "noeviction"),
                maxmemory_bytes=info.get("maxmemory", 0),
                used_bytes=info.get("used_memory", 0),
                aof=bool(info.get("aof_enabled")),
                snapshots=_snapshots(client),
                last_write_ok="err"
                not in (info.get("rdb_last_bgsave_status"), info.get("aof_last_write_status")),
                latency_s=min(_round_trip_s(client) for _ in range(_ROUND_TRIPS)),
                clock_offset_s=_clock_offset_s(client),
                certificates=_certificates(client, security or Security()),
                keys=RedisKeys(federation).pattern,
                denied=_denied(client, RedisKeys(federation)),
            )
    finally:
        client.close()


def _certificates(client: Any, security: Security) -> tuple[Validity, ...]:
    connection = client.connection_pool.get_connection()
    try:
        sock = connection._sock  # noqa: SLF001 - the driver has no public name for it
        if not isinstance(sock, ssl.SSLSocket):
            return ()
        return (*of_files(security), of_decoded("the server's certificate", sock.getpeercert() or {}))
    finally:
        client.connection_pool.release(connection)


def _snapshots(client: Any) -> bool | None:
    try:
        return bool(client.config_get("save").get("save"))
    except ResponseError:  # forbidden, or renamed
        return None


def _round_trip_s(client: Any) -> float:
    start = time.perf_counter()
    client.time()  # not PING: a server that cannot write to its disk refuses it
    return time.perf_counter() - start


def _clock_offset_s(client: Any) -> float:
    before = time.time()
    seconds, microseconds = client.time()
    return float(seconds + microseconds / 1e6 - (before + time.time()) / 2)


_NEEDED: Final = """
SET {lease} x PX 60000
GET {lease}
EXISTS {lease}
PERSIST {lease}
HSET {hash} epoch 1 owner x
HGET {hash} epoch
HGETALL {hash}
HKEYS {hash}
HINCRBY {hash} epoch 1
HDEL {hash} owner
XADD {stream} 1-0 e x
XRANGE {stream} - + COUNT 1
XREVRANGE {stream} + - COUNT 1
SCRIPT LOAD return(1)
EVALSHA 930269f31393d0be681588b6ab08dccee7d6bb67 0
DEL {lease}
UNLINK {lease} {hash} {stream}
"""
"""What the store does, tried on keys of its own."""


def _denied(client: Any, keys: RedisKeys) -> tuple[str, ...]:
    trial = RedisKeys(keys.federation).lease + ":doctor"
    names = {"lease": trial, "hash": f"{trial}:hash", "stream": f"{trial}:stream"}
    denied = []
    for line in _NEEDED.strip().splitlines():
        words = [word.format(**names) for word in line.split()]
        try:
            client.execute_command(*words)
        except NoPermissionError:
            denied.append("SCRIPT LOAD" if words[0] == "SCRIPT" else words[0])
        except ResponseError:
            continue  # full, read-only or left from before: not a matter of permissions
    with suppress(RedisError):
        client.delete(*names.values())
    return tuple(denied)
