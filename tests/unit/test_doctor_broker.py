"""What the doctor makes of a broker."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from broker_fl.doctor_broker import check_broker, judge_broker
from broker_fl.topology import Topology
from broker_fl.transports.rabbitmq.facts import BrokerFacts, Depth

F = "demo"
REPORTS, DEAD = Topology(F).reports, Topology(F).dead


def depths(*, reports: int = 0, consumers: int = 1, dead: int = 0) -> dict[str, Depth]:
    return {
        REPORTS: Depth(num_messages=reports, num_consumers=consumers),
        DEAD: Depth(num_messages=dead, num_consumers=0),
    }


GOOD = BrokerFacts(
    place="amqp://host:5672/",
    product="RabbitMQ",
    version="3.12.1",
    tls=False,
    latency_s=0.002,
    heartbeat_s=60,
    alarm="",
    missing=(),
    denied=(),
    different=(),
    in_use=(),
    depths=depths(),
)


def test_a_good_broker_is_good_and_is_described() -> None:
    findings = judge_broker(GOOD, federation=F, role="learner")
    assert {finding.level for finding in findings} == {"ok"}
    told = "\n".join(finding.what for finding in findings)
    for fact in ("RabbitMQ 3.12.1", "2.0 ms", "60 s apart", "a learner needs", "a controller is connected"):
        assert fact in told


@pytest.mark.parametrize(
    ("facts", "level", "what", "advice"),
    [
        (replace(GOOD, alarm="low on disk"), "error", "no messages: low on disk", "rabbitmqctl status"),
        (replace(GOOD, heartbeat_s=0), "warning", "heartbeats switched off", "heartbeat = 60"),
        (replace(GOOD, heartbeat_s=9), "warning", "9 s apart", "heartbeat = 60"),
        (replace(GOOD, version="3.9.29"), "warning", "3.9.29 is older", "3.10"),
        (replace(GOOD, version="unknown"), "warning", "unknown is older", "3.10"),
        (replace(GOOD, latency_s=0.35), "warning", "350 ms", "round"),
        (replace(GOOD, different=("queue q is not durable",)), "error", "q is not durable", "delete it"),
        (replace(GOOD, in_use=("read mailbox a",)), "warning", "mailbox a", "two of one name"),
        (replace(GOOD, denied=("read q",)), "error", "may not read q$", r"\^bfl\\\.demo\\\."),
        (replace(GOOD, denied=tuple("abcdef")), "error", "a; b; c; d; and 2 things more", "operator"),
        (
            replace(GOOD, depths=depths(consumers=0, reports=3)),
            "warning",
            "no controller.*3 reports",
            "start",
        ),
        (replace(GOOD, depths=depths(reports=1001)), "warning", "1001 reports wait", "cannot keep up"),
        (replace(GOOD, hands_on=True), "warning", f"exchange {re.escape(DEAD)} is there", "take over"),
        (replace(GOOD, depths=depths(dead=2)), "warning", f"2 refused messages.*{re.escape(DEAD)}", "why"),
    ],
)
def test_each_thing_that_is_wrong_is_named_with_what_to_do(
    facts: BrokerFacts, level: str, what: str, advice: str
) -> None:
    (found,) = [f for f in judge_broker(facts, federation=F, role="learner") if f.level != "ok"]
    assert found.level == level
    assert re.search(what, found.what)
    assert re.search(advice, found.advice)


@pytest.mark.parametrize(
    "facts",
    [
        replace(GOOD, version="3.10.0"),
        replace(GOOD, version="4.1.4"),
        replace(GOOD, heartbeat_s=10),
        replace(GOOD, latency_s=0.2),
        replace(GOOD, depths=depths(reports=1000)),
        replace(GOOD, depths={}, missing=("exchange e", "queue q")),
    ],
)
def test_what_is_just_good_enough_is_not_complained_of(facts: BrokerFacts) -> None:
    assert {f.level for f in judge_broker(facts, federation=F, role="controller")} == {"ok"}


@pytest.mark.parametrize(("url", "what"), [("http://host", "amqp"), ("amqp://127.0.0.1:1/", "127.0.0.1:1")])
def test_a_broker_that_cannot_be_looked_at_is_the_one_finding(url: str, what: str) -> None:
    (found,) = check_broker(url, federation=F, role="driver")
    assert found.level == "error"
    assert what in found.what
    assert found.advice
