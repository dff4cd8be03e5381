"""Dead letters on a real broker: listed, read, sent again and dropped, without losing the others."""

from __future__ import annotations

import json
import queue
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from broker_fl.cli.main import commands
from broker_fl.errors import QueueInUse
from broker_fl.security.audit import read, verify
from broker_fl.topology import Topology
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.transports.rabbitmq.dead import dead_letters
from broker_fl.wire.messages import Failed, Heartbeat, TaskRef
from tests.integration.test_foreign_learner import controller, wait_for

REFUSED = {
    "heartbeat": ("site-a.heartbeat", Heartbeat(learner="site-b", session="s").pack()),
    "failed": (
        "site-a.failed",
        Failed(learner="x", task=TaskRef(job="digits-1", round=3), reason="r").pack(),
    ),
    "": ("site-a.join", b"no frame at all"),
}
"""Two in the name of somebody else, and one that is nothing."""


def run(*command: str, code: int = 0) -> str:
    done = CliRunner().invoke(commands, ["dead", *command])
    assert done.exit_code == code, done.output
    return done.output if code else done.stdout


@pytest.fixture
def access(amqp_url: str, federation: str, tmp_path: Path) -> list[str]:
    """Options for a federation whose controller has refused three messages, and has ended."""
    topology = Topology(federation)
    with controller(amqp_url, federation, tmp_path):
        transport = RabbitMQTransport(amqp_url)
        for key, body in REFUSED.values():
            transport.publish(topology.reports, [key], body, persistent=True)
        transport.close()
        access = ["--broker", amqp_url, "--federation", federation]
        wait_for(lambda: len(listed(access)) == len(REFUSED))
    return access


def listed(access: list[str], *filters: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("list", "--json", *filters, *access))
    return found


def test_they_are_listed_and_shown_and_stay(access: list[str]) -> None:
    found = listed(access)
    assert [(one["kind"], one["sender"]) for one in found] == [(kind, "site-a") for kind in REFUSED]
    assert "'site-a' sent a 'heartbeat' message in the name of 'site-b'" in found[0]["reason"]
    assert [one["kind"] for one in listed(access, "--job", "digits-1")] == ["failed"]
    assert [one["id"] for one in listed(access, "--kind", "heartbeat", "--from", "site-a")] == [
        found[0]["id"]
    ]
    shown = json.loads(run("show", found[1]["id"][:8], *access))
    assert shown["header"]["task"]["job"] == "digits-1"
    for words in ("heartbeat", "digits-1", "site-a"):
        assert words in run("list", *access)
    none = CliRunner().invoke(commands, ["dead", "list", "--job", "another", *access])
    assert (none.stdout, none.exit_code) == ("", 0)
    assert "has no such dead letters" in none.stderr
    assert listed(access) == found


def test_one_is_sent_again_as_it_was_and_one_is_dropped(
    access: list[str], amqp_url: str, federation: str
) -> None:
    heartbeat, failed, nothing = (one["id"] for one in listed(access))
    assert "1 dead letter sent again" in run("replay", heartbeat, *access)
    assert [one["id"] for one in listed(access)] == [failed, nothing]
    assert "1 dead letter dropped" in run("drop", nothing[:6], *access)
    assert [one["id"] for one in listed(access)] == [failed]
    arrived: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
    transport, topology = RabbitMQTransport(amqp_url), Topology(federation)
    transport.declare(topology.for_controller())
    transport.consume(topology.reports, lambda one: arrived.put((one.routing_key, one.body)), prefetch=1)
    assert arrived.get(timeout=60) == REFUSED["heartbeat"]
    transport.close()


def test_what_is_sent_on_or_dropped_is_written_down(access: list[str], tmp_path: Path) -> None:
    heartbeat, failed, _ = (one["id"] for one in listed(access))
    log = tmp_path / "audit.jsonl"
    run("replay", heartbeat, "--audit", str(log), *access)
    run("drop", "--kind", "failed", "--all", "--audit", str(log), *access)
    lines = log.read_bytes().splitlines()
    verify(lines, access[-1])
    entries = [read(line) for line in lines]
    assert [(one["action"], one["subject"], one["details"].get("outcome")) for one in entries] == [
        ("dead_replay", "1 dead letter", None),
        ("dead_replay", "1 dead letter", "done"),
        ("dead_drop", "1 dead letter", None),
        ("dead_drop", "1 dead letter", "done"),
    ]
    assert [one["details"]["ids"] for one in entries[::2]] == [heartbeat, failed]
    assert {one["actor"] for one in entries} == {urlsplit(access[1]).username}


def test_what_nobody_would_get_stays(access: list[str], amqp_url: str, federation: str) -> None:
    topology, transport = Topology(federation), RabbitMQTransport(amqp_url)
    transport.delete_queue(topology.reports)
    transport.close()
    before = listed(access)
    assert "no queue takes 'site-a.heartbeat'" in run("replay", "--all", *access, code=2)
    assert listed(access) == before
    assert "there is no dead letter 'zz'" in run("drop", "zz", *access, code=2)
    assert "give the letters by their ids, or --all" in run("drop", *access, code=2)


def test_only_one_reads_them_at_a_time(access: list[str], amqp_url: str, federation: str) -> None:
    with dead_letters(amqp_url, federation) as opened:
        assert len(opened.letters) == len(REFUSED)
        with pytest.raises(QueueInUse), dead_letters(amqp_url, federation):
            pass
    assert len(listed(access)) == len(REFUSED)
