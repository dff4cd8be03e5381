"""What is wrong with the servers, and what to do about it: the checks behind ``broker-fl doctor``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from broker_fl.errors import BrokerFLError, ServerUnavailable
from broker_fl.security import Security
from broker_fl.security.certificates import Validity
from broker_fl.stores.redis_facts import RedisFacts, look_at_redis

_SLOW_S = 0.02
_CLOCK_S = 5.0
_FULL_SHARE = 0.8
_EXPIRES_SOON_DAYS = 30
_OLDEST = (5, 0)
"""The first Redis with streams."""
_MAINTAINED = (6, 2)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "warning", "error"]
    what: str
    """What was found."""
    advice: str = ""
    """Why it matters and what to do; empty where nothing is to be done."""
    sort: Literal["", "absent", "unreachable"] = ""
    """absent: what need not be there is not. unreachable: a server that does not answer."""

    @classmethod
    def of(cls, error: BrokerFLError, advice: str) -> Finding:
        """A server that cannot be looked at."""
        away = isinstance(error, ServerUnavailable)
        return cls(level="error", what=str(error), advice=advice, sort="unreachable" if away else "")


def check_redis(url: str, *, federation: str, security: Security | None = None) -> list[Finding]:
    """Look at a Redis and judge it; never raises for what the server or the URL is."""
    try:
        facts = look_at_redis(url, federation=federation, security=security)
    except BrokerFLError as error:
        return [Finding.of(error, "the controller cannot start without its store")]
    return judge_redis(facts)


def judge_redis(facts: RedisFacts) -> list[Finding]:
    """What the facts mean."""
    reached = f"{facts.place} answers: Redis {facts.version}, {facts.latency_s * 1000:.1f} ms a round trip"
    return [
        Finding(level="ok", what=reached),
        *judge_certificates(facts.certificates, time.time()),
        *_server(facts),
        *_memory(facts),
        *_durability(facts),
        *_access(facts),
    ]


def judge_certificates(certificates: Iterable[Validity], now: float) -> Iterator[Finding]:
    """How long they hold yet; ``now`` is Unix time."""
    for one in certificates:
        whose = f"{one.whose} {one.name!r}" if one.name else one.whose
        if one.until_s is None:
            advice = "pip install 'broker-fl[identity]' to have it read"
            yield Finding(level="ok", what=f"{whose}: cannot tell until when it holds", advice=advice)
            continue
        days = (one.until_s - now) / 86_400
        until = time.strftime("%Y-%m-%d", time.gmtime(one.until_s))
        if days <= 0:
            what = f"{whose} has expired on {until}"
            yield Finding(level="error", what=what, advice="have a new one issued: broker-fl ca")
        elif days < _EXPIRES_SOON_DAYS:
            what = f"{whose} holds until {until}: {days:.0f} days"
            yield Finding(level="warning", what=what, advice="have a new one issued: broker-fl ca")
        else:
            yield Finding(level="ok", what=f"{whose} holds until {until}, {days:.0f} days")


def _server(facts: RedisFacts) -> Iterator[Finding]:
    if (version := _version(facts.version)) < _OLDEST:
        yield Finding(
            level="error", what=f"Redis {facts.version} has no streams", advice="use Redis 6.2 or newer"
        )
    elif version < _MAINTAINED:
        yield Finding(
            level="warning", what=f"Redis {facts.version} is no longer maintained", advice="update it"
        )
    if facts.is_replica:
        what = "this server is a replica: it takes no writes"
        yield Finding(level="error", what=what, advice="give the URL of the primary")
    if facts.latency_s > _SLOW_S:
        what = f"a round trip takes {facts.latency_s * 1000:.0f} ms"
        yield Finding(
            level="warning", what=what, advice="each step of a round waits for several; move them closer"
        )
    if abs(facts.clock_offset_s) <= _CLOCK_S:
        apart = abs(facts.clock_offset_s)
        yield Finding(level="ok", what=f"the server's clock and this machine's are {apart:.1f} s apart")
    else:
        what = f"the server's clock is {facts.clock_offset_s:+.0f} s from this machine's"
        yield Finding(
            level="warning", what=what, advice="times in events will not fit together; run NTP on both"
        )


def _memory(facts: RedisFacts) -> Iterator[Finding]:
    if facts.maxmemory_policy == "noeviction":
        yield Finding(level="ok", what="maxmemory-policy is noeviction")
    else:
        yield Finding(
            level="error",
            what=f"maxmemory-policy is {facts.maxmemory_policy}: a full server would delete models",
            advice="set `maxmemory-policy noeviction` in redis.conf and by `redis-cli CONFIG SET`",
        )
    used = f"{facts.used_bytes / 1e6:.0f} MB used"
    if not facts.maxmemory_bytes:
        yield Finding(level="ok", what=f"{used}, no maxmemory: the machine's memory is the limit")
    elif facts.used_bytes > _FULL_SHARE * facts.maxmemory_bytes:
        what = f"{used} of {facts.maxmemory_bytes / 1e6:.0f} MB maxmemory"
        yield Finding(
            level="warning", what=what, advice="models need (versions kept + 1) × their size; raise it"
        )
    else:
        yield Finding(level="ok", what=f"{used} of {facts.maxmemory_bytes / 1e6:.0f} MB maxmemory")


def _durability(facts: RedisFacts) -> Iterator[Finding]:
    if facts.aof:
        yield Finding(level="ok", what="the append-only file is on")
    elif facts.snapshots is False:
        what = "nothing is written to disk: a restart of Redis loses jobs and models"
        yield Finding(level="warning", what=what, advice="set `appendonly yes`")
    else:
        what = "the append-only file is off: a crash of Redis loses what came after its last snapshot"
        yield Finding(level="warning", what=what, advice="set `appendonly yes`")
    if not facts.last_write_ok:
        what = "Redis could not write to its disk the last time, and refuses writes"
        yield Finding(level="error", what=what, advice="make room on its disk; its log has the reason")


def _access(facts: RedisFacts) -> Iterator[Finding]:
    if facts.denied:
        grants = " ".join(
            "+script|load" if name == "SCRIPT LOAD" else f"+{name.lower()}" for name in facts.denied
        )
        what = f"the user may not use {', '.join(facts.denied)} on the federation's keys"
        yield Finding(level="error", what=what, advice=f"ACL SETUSER … {grants} ~{facts.keys}")
    else:
        yield Finding(level="ok", what="the user has the permissions that the controller needs")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
