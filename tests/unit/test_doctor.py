"""What the doctor makes of what it sees."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from broker_fl.doctor import judge_redis
from broker_fl.stores.redis_facts import RedisFacts

GOOD = RedisFacts(
    place="redis://host:6379/0",
    version="7.0.15",
    is_replica=False,
    maxmemory_policy="noeviction",
    maxmemory_bytes=1000,
    used_bytes=500,
    aof=True,
    snapshots=False,
    last_write_ok=True,
    latency_s=0.0004,
    clock_offset_s=-0.3,
    keys="bfl:{hospitals}:*",
    denied=(),
)
GRANTS = r"\+hset \+script\|load ~bfl:\{hospitals\}:\*$"


def test_a_good_redis_is_good() -> None:
    assert {finding.level for finding in judge_redis(GOOD)} == {"ok"}


@pytest.mark.parametrize(
    ("facts", "level", "what", "advice"),
    [
        (replace(GOOD, version="4.0.9"), "error", "Redis 4.0.9", "6.2"),
        (replace(GOOD, version="6.0.16"), "warning", "no longer maintained", "update"),
        (replace(GOOD, is_replica=True), "error", "replica", "primary"),
        (replace(GOOD, maxmemory_policy="allkeys-lfu"), "error", "allkeys-lfu", "noeviction"),
        (replace(GOOD, used_bytes=900), "warning", "maxmemory", "raise"),
        (replace(GOOD, aof=False), "warning", "a restart of Redis loses", "appendonly yes"),
        (replace(GOOD, aof=False, snapshots=True), "warning", "last snapshot", "appendonly yes"),
        (replace(GOOD, aof=False, snapshots=None), "warning", "last snapshot", "appendonly yes"),
        (replace(GOOD, last_write_ok=False), "error", "could not write to its disk", "room"),
        (replace(GOOD, latency_s=0.05), "warning", "50 ms", "closer"),
        (replace(GOOD, clock_offset_s=61), "warning", r"\+61 s", "NTP"),
        (replace(GOOD, denied=("HSET", "SCRIPT LOAD")), "error", "HSET, SCRIPT LOAD", GRANTS),
    ],
)
def test_each_thing_that_is_wrong_is_named_with_what_to_do(
    facts: RedisFacts, level: str, what: str, advice: str
) -> None:
    (found,) = [finding for finding in judge_redis(facts) if finding.level != "ok"]
    assert found.level == level
    assert re.search(what, found.what)
    assert re.search(advice, found.advice)


def test_a_server_without_a_limit_is_not_full() -> None:
    findings = judge_redis(replace(GOOD, maxmemory_bytes=0, used_bytes=1 << 40))
    assert {finding.level for finding in findings} == {"ok"}
