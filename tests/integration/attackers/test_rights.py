"""Attacks on a real broker that reach for what is not a learner's: others' models, queues, names, its limits.

With the credentials of one enrolled learner, mallory, while a round is open. Each ends refused, and logged or
kept with the reason; and the job ends with the model, to the last bit, of a run in peace, by the same
contributors.
"""

from __future__ import annotations

import logging
import operator
import re
import secrets
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pika
import pytest
from pika import exceptions as pika_errors

from broker_fl.identity.joinfile import read_join_file
from broker_fl.identity.permissions import permissions_of
from broker_fl.wire import messages as m
from tests.integration.attackers.stage import GOOD, REFUSED, Mallory, Stage, update_of
from tests.servers.enrolling import eventually
from tests.servers.provision import Broker

OTHER_USER = 406


def test_a_model_that_was_not_given_is_not_had_by_asking(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a learner may speak, nobody answers a driver's requests; what a controller says is not heard."""
    job, mallory = stage.begin(), stage.mallory
    stage.dead_letters()
    before, me = stage.counts.refusals.copy(), f"mallory-{secrets.token_hex(6)}"
    questions = [
        m.ReadModel(driver=me, request="r", job=job.id),
        m.ReadModel(driver=stage.driver.id, request="r", job=job.id, version=0),
        m.ReadEvents(driver=me, request="r", job=job.id, after=0),
        m.UploadRequest(task=m.TaskRef(job=job.id, round=0), inbox="controller-99"),
    ]
    with caplog.at_level(logging.WARNING):
        for question in questions:
            mallory.report(question.pack())
            mallory.deliver(stage.inbox, [question.pack()])
        reasons = stage.refused(2 * len(questions))
    assert sum("is not a report" in reason for reason in reasons) == len(questions)
    assert sum("does not belong into an inbox" in reason for reason in reasons) == len(questions)
    assert caplog.text.count(f"with key {mallory.name}.") == 2 * len(questions)
    found = stage.counts.refusals - before
    assert found == Counter(reports=len(questions), inbox=len(questions))
    stage.check_as_in_peace(job)


def attempts(stage: Stage) -> dict[str, tuple[str, Any]]:
    """What the broker must refuse, by what it is: a method of a channel and its arguments."""
    names, inbox = stage.topology, stage.topology.inbox(stage.inbox)
    own, other = names.mailbox("mallory"), names.mailbox(GOOD[0])
    others_key = names.learner_key(GOOD[0])
    foreign = pika.BasicProperties(user_id=f"{names.federation}.learner.{GOOD[0]}")
    found: dict[str, tuple[str, Any]] = {
        "copy another's tasks": ("queue_bind", (own, names.tasks, others_key)),
        "declare a queue": ("queue_declare", ("mine",)),
        "declare another mailbox": ("queue_declare", (names.mailbox("mallory-2"), False, True)),
        "declare a queue without a name": ("queue_declare", ("", False, False, True)),
        "declare an exchange": ("exchange_declare", ("mine",)),
        "delete its mailbox": ("queue_delete", (own,)),
        "unbind its mailbox": ("queue_unbind", (own, names.tasks, names.learner_key("mallory"))),
        "bind exchanges": ("exchange_bind", (names.updates, names.tasks, "#")),
    }
    for queue in (other, inbox, names.reports, names.control, names.dead):
        found |= {
            f"consume from {queue}": ("basic_consume", (queue, print)),
            f"get from {queue}": ("basic_get", (queue,)),
            f"purge {queue}": ("queue_purge", (queue,)),
            f"delete {queue}": ("queue_delete", (queue,)),
        }
    for exchange in (names.tasks, names.answers, names.control, names.events, "", "amq.topic"):
        found[f"publish to {exchange!r}"] = "basic_publish", (exchange, others_key, b"")
        found[f"bind to {exchange!r}"] = "queue_bind", (own, exchange or "amq.direct", "#")
    for exchange, key in ((names.updates, f"{GOOD[0]}.{stage.inbox}"), (names.reports, f"{GOOD[0]}.join")):
        found |= {
            f"publish as another to {exchange}": ("basic_publish", (exchange, key, b"")),
            f"bind to {exchange}": ("queue_bind", (own, exchange, "#")),
            f"delete {exchange}": ("exchange_delete", (exchange,)),
            f"say to be another on {exchange}": ("basic_publish", (exchange, "mallory.x", b"", foreign)),
        }
    return found


def test_the_broker_refuses_whatever_is_not_a_learners_own(stage: Stage, rabbitmq: Broker) -> None:
    """And writes down what, and whose it was."""
    job, before = stage.begin(), said_of(stage.mallory.user, rabbitmq.log)
    codes = {
        what: stage.mallory.attempt(operator.methodcaller(method, *arguments))
        for what, (method, arguments) in attempts(stage).items()
    }
    allowed = {what: code for what, code in codes.items() if code not in (REFUSED, OTHER_USER)}
    assert not allowed
    assert {code for what, code in codes.items() if what.startswith("say to be")} == {OTHER_USER}
    if rabbitmq.log is not None:
        expected = Counter({"access_refused": 0, "precondition_failed": 0})
        expected.update(
            "access_refused" if code == REFUSED else "precondition_failed" for code in codes.values()
        )
        logged = partial(said_of, stage.mallory.user, rabbitmq.log)
        eventually(lambda: logged() - before == +expected, f"{expected} in the broker's log, not {logged()}")
    stage.check_as_in_peace(job)


def said_of(user: str, log: Path | None) -> Counter[str]:
    """Refusals of an account's operations in the broker's log, by kind."""
    text = "" if log is None else log.read_text("utf-8", errors="replace")
    operation = r".*\n.*operation \S+ caused a channel exception (\w+)"
    return Counter(
        re.findall(rf"Channel error on connection .*user: '{re.escape(user)}'\)?{operation}", text)
    )


def test_nothing_in_anothers_name_is_heard(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Neither by the name in the message, nor by a routing key that BCC brings past the topic permission."""
    job, mallory = stage.begin(), stage.mallory
    victim, task = GOOD[0], m.TaskRef(job=job.id, round=0)
    stage.dead_letters()
    reports = [
        m.Join(learner=victim, session="stolen"),
        m.Leave(learner=victim, session="stolen", reason="good-bye"),
        m.Heartbeat(learner=victim, session="stolen"),
        m.Failed(learner=victim, task=task, reason="so sad"),
        m.GroupJoin(group="mallory", session="s", members=(victim, "mallory-1")),
        m.StopJob(driver=stage.driver.id, request="r", job=job.id),
    ]
    with caplog.at_level(logging.WARNING):
        for report in reports:
            mallory.report(report.pack())
            mallory.send(
                stage.topology.reports, "mallory.x", report.pack(), {"BCC": [f"{victim}.{report.KIND}"]}
            )
        for body in update_of(victim, task, 1e6):
            mallory.send(stage.topology.updates, f"mallory.{stage.inbox}", body)
            mallory.send(stage.topology.updates, "mallory.x", body, {"CC": [f"{victim}.{stage.inbox}"]})
        reasons = stage.refused(2 * len(reports) + 4)
    assert sum("in the name of" in reason for reason in reasons) >= 2 * 4 + 4
    logged = [text for text in caplog.messages if text.startswith("refused a message from ")]
    assert sorted(text.partition(": ")[2] for text in logged) == sorted(reasons)
    stage.check_as_in_peace(job)


def test_a_message_that_does_not_say_who_sent_it_is_refused(stage: Stage) -> None:
    job, names = stage.begin(), stage.topology
    stage.dead_letters()
    body = m.Join(learner="mallory", session="s").pack()
    assert not stage.mallory.attempt(lambda c: c.basic_publish(names.reports, "mallory.join", body))
    (reason,) = stage.refused(1)
    assert "does not say which account sent it" in reason
    stage.check_as_in_peace(job)


def test_what_an_observer_has_sent_back_to_a_controller_changes_nothing_and_blames_the_observer(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that expire in a queue of bob's own go on to ``control``, as sent by the controller."""
    bob, names = Mallory(stage.operator, stage.port, "bob", "observer"), stage.topology
    stage.dead_letters()
    before = stage.counts.refusals.copy()
    queue = names.event_queue(f"bob-{secrets.token_hex(6)}-{secrets.token_hex(4)}")
    onward = {"x-dead-letter-exchange": names.control, "x-dead-letter-routing-key": names.CONTROL}
    steps = (
        lambda c: c.queue_declare(queue, durable=True, arguments={"x-message-ttl": 0, **onward}),
        lambda c: c.queue_bind(queue, names.events, "#"),
    )
    # Not at the root, where commands put handlers of their own.
    monkeypatch.setattr(logging.getLogger("broker_fl"), "handlers", [caplog.handler])
    assert [bob.attempt(step) for step in steps] == [0, 0]
    stage.check_as_in_peace(stage.begin())
    eventually(lambda: (stage.counts.refusals - before)["bounced"], "an event that came back")
    eventually(lambda: queue in caplog.text, "the queue being named")
    bob.connection.close()
    stage.operator.run("revoke", "bob")
    stage.driver.jobs()  # behind all that came back
    assert stage.operator.api.queue(stage.operator.vhost, queue) is None
    assert set(stage.counts.refusals - before) == {"bounced"}
    assert not stage.dead_letters()
    assert "controller.main" not in caplog.text


def refusal_of(open_one: Callable[[], Any]) -> str:
    """What the broker says to one more, once it does not let it in; each that it lets in is closed again.

    It counts a little after it lets in, and is meant to: https://github.com/rabbitmq/rabbitmq-server/issues/1547
    """
    said: list[str] = []

    def is_refused() -> bool:
        try:
            open_one().close()
        except pika_errors.AMQPError as error:
            said.append(repr(error))
        return bool(said)

    eventually(is_refused, "one more being refused")
    return said[0]


def test_an_account_has_so_many_connections_and_channels_and_no_more(stage: Stage) -> None:
    job = stage.begin()
    crowd = Mallory(stage.operator, stage.port, "crowd")  # a connection with a channel
    limits, opened = permissions_of(read_join_file(crowd.path).account), [crowd.connection]
    connect = partial(pika.BlockingConnection, crowd.access)
    try:
        opened += [connect() for _ in range(limits.max_connections - len(opened))]
        assert "user connection limit (10) is reached" in refusal_of(connect)
        for _ in range(limits.max_channels - 1):
            opened[-1].channel()
        assert all(connection.is_open for connection in opened)
        assert "maximum allowed user limit of (50)" in refusal_of(opened[-1].channel)
    finally:
        for connection in opened:
            if connection.is_open:
                connection.close()
    stage.check_as_in_peace(job)
