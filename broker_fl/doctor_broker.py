"""What is wrong with the broker for a role, and what to do about it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from urllib.parse import unquote

from broker_fl.doctor import Finding, judge_certificates
from broker_fl.errors import BrokerFLError
from broker_fl.identity.accounts import Account
from broker_fl.security import Security
from broker_fl.topology import Topology
from broker_fl.transports.rabbitmq.facts import BrokerFacts, Depth, Role, look_at_broker
from broker_fl.transports.rabbitmq.failures import repair_advice

_OLDEST = (3, 10)
"""What the tests run on; older brokers may lack what quorum queues need."""
_SLOW_S = 0.2
_SHORTEST_HEARTBEAT_S = 10
_WAITING = 1_000


def check_broker(
    url: str, *, federation: str, role: Role, learner: str = "", security: Security | None = None
) -> list[Finding]:
    """Look at a broker as the role sees it, and judge it; never raises for what the server or the URL is."""
    try:
        account = Account.of(_user(url))
        facts = look_at_broker(
            url,
            federation=federation,
            role=role,
            learner=learner,
            security=security,
            enrolled=account.name if account is not None else "",
        )
    except BrokerFLError as error:
        return [Finding.of(error, "nothing works without the broker")]
    return judge_broker(facts, federation=federation, role=role)


def _user(url: str) -> str:
    return unquote(url.partition("://")[2].partition("/")[0].rpartition("@")[0].partition(":")[0])


def judge_broker(facts: BrokerFacts, *, federation: str, role: Role) -> list[Finding]:
    """What the facts mean."""
    server = f"{facts.product} {facts.version}, {facts.latency_s * 1000:.1f} ms a round trip"
    return [
        Finding(level="ok", what=f"{facts.place} answers: {server}"),
        *judge_certificates(facts.certificates, time.time()),
        *_server(facts),
        *_permissions(facts, federation, role),
        *_entities(facts, Topology(federation)),
        *_queues(facts, Topology(federation)),
    ]


def _server(facts: BrokerFacts) -> Iterator[Finding]:
    version = tuple(int(part) for part in re.findall(r"\d+", facts.version)[:2])
    if version < _OLDEST:
        what = f"{facts.product} {facts.version} is older than what broker_fl is tested with"
        yield Finding(level="warning", what=what, advice="use RabbitMQ 3.10 or newer")
    if facts.alarm:
        what = f"the broker takes no messages: {facts.alarm}"
        yield Finding(
            level="error", what=what, advice="free its memory or disk: rabbitmqctl status names the alarm"
        )
    if facts.latency_s > _SLOW_S:
        what = f"a round trip takes {facts.latency_s * 1000:.0f} ms"
        yield Finding(level="warning", what=what, advice="each round waits for several")
    yield _heartbeat(facts.heartbeat_s)


def _heartbeat(heartbeat_s: int) -> Finding:
    if not heartbeat_s:
        advice = "firewalls drop connections that look idle: set `heartbeat = 60` in rabbitmq.conf"
        return Finding(level="warning", what="the broker has heartbeats switched off", advice=advice)
    what = f"heartbeats are {heartbeat_s} s apart"
    if heartbeat_s < _SHORTEST_HEARTBEAT_S:
        advice = "a busy machine may miss them: set `heartbeat = 60` in rabbitmq.conf"
        return Finding(level="warning", what=what, advice=advice)
    return Finding(level="ok", what=what)


def _permissions(facts: BrokerFacts, federation: str, role: Role) -> Iterator[Finding]:
    for what in facts.in_use:
        advice = "a learner of this name is running; two of one name cannot"
        yield Finding(level="warning", what=f"somebody else does this: {what}", advice=advice)
    if not facts.denied:
        yield Finding(level="ok", what=f"the user has the permissions that a {role} needs")
        return
    shown, more = "; ".join(facts.denied[:4]), len(facts.denied) - 4
    what = f"the user may not {shown}" + (f"; and {more} things more" if more > 0 else "")
    pattern = f"'^bfl\\.{re.escape(federation)}\\.'"
    command = f"rabbitmqctl set_permissions -p VHOST USER {pattern} {pattern} {pattern}"
    advice = repair_advice(facts.refused) or f"an operator can allow it: {command}"
    yield Finding(level="error", what=what, advice=advice)


def _entities(facts: BrokerFacts, topology: Topology) -> Iterator[Finding]:
    if facts.hands_on:
        what = f"exchange {topology.nowhere} is there, through which forged messages can end queues"
        advice = "former software made it: upgrade it, then let a standby controller take over: it deletes it"
        yield Finding(level="warning", what=what, advice=advice)
    for what in facts.different:
        advice = "another version of broker_fl, or an operator, made it: delete it while nothing runs"
        yield Finding(level="error", what=what, advice=advice)
    if facts.missing:
        what = f"{len(facts.missing)} exchanges and queues of the federation are not there yet"
        yield Finding(level="ok", what=f"{what}: whoever comes first makes them")


def _queues(facts: BrokerFacts, topology: Topology) -> Iterator[Finding]:
    reports, dead = facts.depths.get(topology.reports), facts.depths.get(topology.dead)
    if reports is not None:
        yield _controller(reports)
    if dead is not None and dead.num_messages:
        what = f"{dead.num_messages} refused messages are in queue {topology.dead}"
        yield Finding(
            level="warning", what=what, advice="each says why; the controller's log has the reasons too"
        )


def _controller(reports: Depth) -> Finding:
    waiting = f"{reports.num_messages} reports wait"
    if not reports.num_consumers:
        what = f"no controller is connected; {waiting}"
        return Finding(level="warning", what=what, advice="start one: broker-fl controller")
    if reports.num_messages > _WAITING:
        return Finding(
            level="warning", what=f"{waiting} for the controller", advice="it cannot keep up; see its log"
        )
    return Finding(level="ok", what=f"a controller is connected; {waiting}")
