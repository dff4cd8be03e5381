"""Attacks with messages that RabbitMQ takes and passes on, and that break or mislead who reads them.

As in ``test_rights``: with the credentials of one enrolled learner, while a round is open.
"""

from __future__ import annotations

import logging

import pika
import pytest

from broker_fl.roles.controller.limits import DEAD_LETTERS
from broker_fl.wire import messages as m
from tests.integration.attackers.stage import GOOD, Stage, update_of
from tests.servers import raw_amqp
from tests.servers.enrolling import eventually


def send(stage: Stage, properties: pika.BasicProperties, body: bytes) -> None:
    """To the inbox."""
    key = f"mallory.{stage.inbox}".encode()
    _publish(stage, stage.topology.updates, key, body, properties)


def report(stage: Stage, properties: pika.BasicProperties, body: bytes, key: bytes = b"mallory.x") -> None:
    _publish(stage, stage.topology.reports, key, body, properties)


def _publish(stage: Stage, exchange: str, key: bytes, body: bytes, properties: pika.BasicProperties) -> None:
    code = stage.mallory.attempt(lambda channel: channel.basic_publish(exchange, key, body, properties))
    assert not code, "the broker takes it"


def test_no_table_of_headers_stops_the_controller(stage: Stage) -> None:
    job, tables = stage.begin(), raw_amqp.tables(stage.mallory.user)
    stage.dead_letters()
    for properties in tables.values():
        send(stage, raw_amqp.RawProperties(properties), b"no message")
        report(stage, raw_amqp.RawProperties(properties), b"no message")
    reasons = stage.refused(2 * len(tables))
    assert ["the body is" in reason for reason in reasons] == [True] * 2 * len(tables)
    stage.check_as_in_peace(job)


def test_who_sent_a_message_cannot_be_read_in_two_ways(stage: Stage) -> None:
    job, user, victim = stage.begin(), stage.mallory.user, GOOD[0]
    stage.dead_letters()
    foreign = raw_amqp.RawProperties(raw_amqp.in_two_ways(user, user.replace("mallory", victim)))
    task = m.TaskRef(job=job.id, round=0)
    report(stage, foreign, m.Failed(learner=victim, task=task, reason="so sad").pack())
    for body in update_of(victim, task, 1e6):
        send(stage, foreign, body)
    reasons = stage.refused(3)
    assert all("which account sent it" in reason or "in the name of" in reason for reason in reasons)
    stage.check_as_in_peace(job)


def test_a_routing_key_that_is_no_text_is_refused(stage: Stage) -> None:
    job, named = stage.begin(), pika.BasicProperties(user_id=stage.mallory.user)
    stage.dead_letters()
    report(stage, named, b"no message", key=b"mallory.\xff\xfe\n")
    report(stage, pika.BasicProperties(), b"no message", key=b"mallory.\xff\xfe\n")
    assert len(stage.refused(2)) == 2
    stage.check_as_in_peace(job)


def test_a_flood_that_does_not_say_who_sent_it_is_dropped(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    job, names = stage.begin(), stage.topology
    stage.dead_letters()
    channel = stage.mallory.connection.channel()
    with caplog.at_level(logging.WARNING):
        for _ in range(3_000):
            channel.basic_publish(names.reports, "mallory.x", b"no message")
        channel.close()
        stage.mallory.report(m.Join(learner="mallory", session="s").pack())
        eventually(lambda: len(stage.driver.learners()) == 3, "what came after the flood being heard")
    most = DEAD_LETTERS.burst + 120 * DEAD_LETTERS.per_s
    assert sum("refused a message" in record.message for record in caplog.records) <= most
    assert len(stage.dead_letters()) <= most
    stage.mallory.report(m.Leave(learner="mallory", session="s").pack())
    stage.check_as_in_peace(job)
