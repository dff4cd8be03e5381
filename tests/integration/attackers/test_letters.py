"""Dead letters where parties have accounts of their own: read whatever they hold, heard as of who wrote them.

In federations of former software RabbitMQ moved a message there by itself when its ``expiration``, which the
sender chooses, was over: such a letter, which may still be there, is what somebody wrote, to the last byte.
"""

from __future__ import annotations

import json
import queue
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from click.testing import CliRunner

from broker_fl.cli.main import commands
from broker_fl.topology import Binding, Exchange
from broker_fl.wire import messages as m
from broker_fl.wire.frames import pack_chunk
from tests.integration.attackers.stage import GOOD, Mallory, Stage
from tests.servers import raw_amqp
from tests.servers.enrolling import DEADLINE_S, Operator, eventually
from tests.servers.provision import Broker


class Letters:
    """A federation whose controller is not there yet, and two learners' accounts."""

    def __init__(self, by: Operator, port: int) -> None:
        self.by = by
        self.port = port
        self.reports = by.topology.reports
        self.main = by.enroll("main", "controller")
        self.mallory, self.site = Mallory(by, port), Mallory(by, port, "site")

    def as_before(self) -> None:
        """As former software left it: the broker hands on what expires."""
        nowhere, dead = self.by.topology.nowhere, self.by.topology.dead
        self.by.api.declare(self.by.vhost, [Exchange(nowhere, "fanout"), Binding(nowhere, dead)])

    def expire(self, sender: Mallory, properties: pika.BasicProperties, body: bytes) -> None:
        """A report that the broker moves to the dead letters, since nobody takes it in time."""
        key = f"{sender.name}.report"
        code = sender.attempt(lambda c: c.basic_publish(self.reports, key, body, properties))
        assert not code

    @staticmethod
    def bomb(sender: Mallory, exchange: str, key: str) -> None:
        """Twelve messages that expire unread, with headers as RabbitMQ 3.10.8 does not hand them on."""
        properties = pika.BasicProperties(
            headers={"x-death": ["no table"]}, expiration="1", user_id=sender.user
        )
        for _ in range(12):
            assert not sender.attempt(lambda c: c.basic_publish(exchange, key, b"bomb", properties))

    def listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.by.run("dead", "list", "--json").stdout)
        return found

    def wait_listed(self, num: int) -> list[dict[str, Any]]:
        eventually(lambda: len(self.listed()) == num, f"{num} dead letters")
        return self.listed()

    def replay(self, *words: str) -> str:
        """As the operator who has the controller's join file, and no other account."""
        done = CliRunner().invoke(commands, ["dead", "replay", *words, "--join", str(self.main)])
        assert done.exit_code == 0, done.output
        return done.output


@pytest.fixture
def letters(tmp_path: Path, rabbitmq: Broker) -> Iterator[Letters]:
    if rabbitmq.management is None:
        pytest.skip("needs a management interface")
    with rabbitmq.vhost(f"test-{secrets.token_hex(6)}") as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        with Operator(tmp_path, url, rabbitmq.management, f"test-{secrets.token_hex(6)}") as by:
            found = Letters(by, port)
            yield found
            for party in (found.mallory, found.site):
                party.connection.close()


def named(sender: Mallory) -> pika.BasicProperties:
    return pika.BasicProperties(user_id=sender.user, expiration="1")


def with_expiration(properties: bytes) -> raw_amqp.RawProperties:
    """Those of ``raw_amqp.tables``, on a message that expires; what precedes the account is in this order."""
    flags = pika.BasicProperties.FLAG_EXPIRATION
    (given,) = struct.unpack_from(">H", properties)
    (length,) = struct.unpack_from(">I", properties, 2)
    end = 6 + length
    return raw_amqp.RawProperties(
        struct.pack(">H", given | flags) + properties[2:end] + raw_amqp.short(b"1") + properties[end:]
    )


def test_no_table_of_headers_keeps_an_operator_from_reading_and_dropping_them(letters: Letters) -> None:
    letters.as_before()
    tables = raw_amqp.tables(letters.mallory.user)
    for properties in tables.values():
        letters.expire(letters.mallory, with_expiration(properties), b"\x1b[2J no message")
    forged = {"x-death": 3, "x-first-death-queue": 3}
    letters.expire(
        letters.mallory,
        pika.BasicProperties(headers=forged, user_id=letters.mallory.user, expiration="1"),
        b"no message",
    )
    found = letters.wait_listed(len(tables) + 1)
    assert {one["user"] for one in found} == {letters.mallory.user}
    assert "\x1b" not in letters.by.run("dead", "list").output
    assert "mallory.report" in letters.by.run("dead", "show", found[0]["id"]).output
    assert f"{len(found)} dead letters dropped" in letters.by.run("dead", "drop", "--all").output
    assert not letters.listed()


def test_a_letter_is_heard_again_as_from_who_wrote_it(letters: Letters) -> None:
    """Whatever it says of itself: the second one looks like what a controller wrote of the first sender."""
    site, mallory, by = letters.site, letters.mallory, letters.by
    letters.as_before()
    letters.expire(site, named(site), m.Join(learner="site", session="s").pack())
    letters.wait_listed(1)
    leave = m.Leave(learner="site", session="s", reason="good-bye").pack()
    note = m.DeadLetter(
        source=letters.reports, routing_key="site.leave", reason="by mistake", time_s=1.0, user=site.user
    )
    letters.expire(mallory, named(mallory), pack_chunk(note.KIND, note.model_dump(), memoryview(leave)))
    before = letters.wait_listed(2)
    assert [one["user"] for one in before] == [site.user, mallory.user]
    assert [one["reason"] for one in before] == ["by the broker: expired"] * 2

    told = by.run("dead", "replay", "--all", ok=False).output
    assert "Nothing was sent" in told
    assert letters.listed() == before

    by.controller(join=letters.main)
    driver = by.driver()
    assert "2 dead letters sent again" in letters.replay("--all")
    (after,) = letters.wait_listed(1)
    assert (after["user"], after["kind"]) == (mallory.user, "dead_letter")
    assert "is not a report" in after["reason"]
    assert [learner.learner for learner in driver.learners()] == ["site"]
    assert "1 dead letter sent again" in letters.replay("--all")
    (again,) = letters.wait_listed(1)
    assert (again["user"], again["reason"]) == (mallory.user, after["reason"])


def test_what_was_refused_is_refused_for_the_same_reason_whoever_sends_it_on(stage: Stage) -> None:
    """Nor is it lost by that: who cannot have it heard does not take it out."""
    by, job = stage.operator, stage.begin()
    stage.dead_letters()
    stage.mallory.report(m.Leave(learner=GOOD[0], session="stolen", reason="good-bye").pack())
    names = stage.topology
    assert not stage.mallory.attempt(lambda c: c.basic_publish(names.reports, "mallory.x", b"who am I"))

    def listed() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(by.run("dead", "list", "--json").stdout)
        return found

    eventually(lambda: len(listed()) == 2, "two refusals")
    before = listed()
    assert [one["user"] for one in before] == [stage.mallory.user, ""]
    told = by.run("dead", "replay", "--all", ok=False).output
    assert "Nothing was sent" in told
    assert listed() == before
    replay = ["dead", "replay", "--all", "--join", str(by.folder / "controller-main.join")]
    done = CliRunner().invoke(commands, replay)
    assert (done.exit_code, "does not say which account sent it" in done.output) == (2, True), done.output
    assert "1 dead letter sent again" in done.output
    eventually(lambda: len(listed()) == 2, "the refusal again")
    anonymous, again = listed()
    assert anonymous == before[1]
    same = ("user", "reason", "queue", "routing_key", "num_bytes")
    assert [again[name] for name in same] == [before[0][name] for name in same]
    stage.dead_letters()
    stage.check_as_in_peace(job)


def test_no_expired_message_ends_an_inbox(letters: Letters) -> None:
    """RabbitMQ 3.10.8 does not survive headers that look like its own where it hands on what expired."""
    inbox, mallory, topology = "controller-1", letters.mallory, letters.by.topology
    letters.by.api.declare(letters.by.vhost, topology.for_inbox(inbox))
    letters.bomb(mallory, topology.updates, f"mallory.{inbox}")
    mallory.deliver(inbox, [b"after"])

    def taken() -> bytes:
        """One message; of those that expire, the last may still be there when this one comes to be read."""
        return letters.by.api.take_messages(letters.by.vhost, topology.inbox(inbox), 1)[0][0]

    assert next(body for body in iter(taken, None) if body != b"bomb") == b"after"


@pytest.mark.parametrize("cleared_by", ["controller", "operator"])
def test_no_expired_message_ends_reports_or_control(letters: Letters, cleared_by: str) -> None:
    """Not even where former software was; a learner and a driver try it while no controller is there."""
    by, topology = letters.by, letters.by.topology
    ana = Mallory(by, letters.port, "ana", "driver")
    letters.as_before()
    if cleared_by == "operator":
        by.run("enroll", "main", "--role", "controller", "--repair")
    else:
        controller = by.controller(join=letters.main)
        controller.stop()
        assert controller.wait(DEADLINE_S)
    for sender, exchange, key in (
        (letters.mallory, topology.reports, "mallory.report"),
        (ana, topology.control, topology.CONTROL),
    ):
        letters.bomb(sender, exchange, key)
        sender.send(exchange, key, b"after")
    ana.connection.close()
    reader, arrived = by.connect(letters.main), queue.SimpleQueue[bytes]()
    reader.declare(topology.for_controller())
    for name in (topology.reports, topology.control):
        reader.consume(name, lambda one: arrived.put(one.body), prefetch=9)
        bodies = iter(lambda: arrived.get(timeout=DEADLINE_S), None)
        assert next(body for body in bodies if body != b"bomb") == b"after"
    reader.close()
    assert not letters.listed()
