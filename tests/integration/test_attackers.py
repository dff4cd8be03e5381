"""Attacks on a real broker with the credentials of one enrolled learner, mallory.

Each is made while a round is open. Each ends refused, and logged or kept with the reason; and the job ends
with the model, to the last bit, of a run in peace, by the same contributors.
"""

from __future__ import annotations

import logging
import operator
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pika
import pytest
from pika import exceptions as pika_errors

from broker_fl.identity.joinfile import read_join_file
from broker_fl.identity.permissions import permissions_of
from broker_fl.model import Array, Model
from broker_fl.observer import Nobody, RefusalReason, UpdateOutcome
from broker_fl.roles.controller.limits import DEAD_LETTERS
from broker_fl.roles.driver import Driver, Job
from broker_fl.roles.learner import LearnerHost
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import cut
from broker_fl.wire.frames import pack_chunk
from broker_fl.wire.job import JobSpec
from tests.servers.enrolling import DEADLINE_S, Adds, Operator, eventually
from tests.servers.provision import Broker

ROUNDS = 2
GOOD = ("hospital-a", "hospital-b")
EXAMPLES = 1_000_000
"""That mallory says to have trained from; the others have 1."""
REFUSED, OTHER_USER = 403, 406


class Mallory:
    """Raw AMQP with the account of one party, by default a learner."""

    def __init__(self, by: Operator, port: int, name: str = "mallory", role: str = "learner") -> None:
        self.path = by.enroll(name, role)
        file = read_join_file(self.path)
        self.name = name
        self.topology = by.topology
        self.user = file.account.user
        credentials = pika.PlainCredentials(self.user, str(file.password))
        self.access = pika.ConnectionParameters("127.0.0.1", port, by.vhost, credentials)
        self.connection = pika.BlockingConnection(self.access)
        self._channel = self.connection.channel()
        self._channel.confirm_delivery()

    def attempt(self, do: Callable[[Any], object]) -> int:
        """The code with which the broker refuses it; 0 if it does not."""
        channel = self.connection.channel()
        channel.confirm_delivery()
        try:
            do(channel)
        except pika_errors.ChannelClosedByBroker as error:
            return int(error.reply_code)
        channel.close()
        return 0

    def send(self, exchange: str, key: str, body: bytes, headers: Mapping[str, Any] | None = None) -> None:
        """Publish, as this account."""
        properties = pika.BasicProperties(user_id=self.user, headers=dict(headers) if headers else None)
        self._channel.basic_publish(exchange, key, body, properties)

    def report(self, body: bytes) -> None:
        self.send(self.topology.reports, f"{self.name}.report", body)

    def deliver(self, inbox: str, bodies: Iterable[bytes]) -> None:
        """To a controller's inbox."""
        for body in bodies:
            self.send(self.topology.updates, f"{self.name}.{inbox}", body)


class Counts(Nobody):
    """What the metrics are counted from: updates by what became of them, refused messages by where."""

    def __init__(self) -> None:
        self.updates: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()

    def update(self, outcome: UpdateOutcome, reason: RefusalReason = "", count: int = 1) -> None:
        self.updates[outcome] += count

    def refused(self, source: str) -> None:
        self.refusals[source] += 1


class Stage:
    """Controller, two good learners, a driver, and mallory."""

    def __init__(self, by: Operator, port: int) -> None:
        self.operator = by
        self.topology = by.topology
        self.port = port
        self.counts = Counts()
        self.controller = by.controller(self.counts)
        self.inbox = f"controller-{self.controller.epoch}"
        self.good = {name: Adds() for name in GOOD}
        self.hosts: list[LearnerHost] = []
        for name, adds in self.good.items():
            host = by.learner(by.enroll(name), adds)
            assert host.wait_welcomed(DEADLINE_S)
        self.driver: Driver = by.driver()
        self.mallory = Mallory(by, port)
        self.in_peace = self.finish(self.begin())

    def begin(self, **settings: Any) -> Job:
        """A job whose first round is open: the good learners are at work, and wait."""
        for adds in self.good.values():
            adds.at_work.clear()
            adds.gate.clear()
        protocol = {"min_learners": 2, "quorum": 2, "deadline_s": 60.0}
        spec = {"termination": {"rounds": ROUNDS}, "protocol": protocol}
        job = self.driver.submit(JobSpec.model_validate(spec | settings), {"w": np.zeros(8, np.float32)})
        for adds in self.good.values():
            assert adds.at_work.wait(DEADLINE_S)
        return job

    def finish(self, job: Job) -> Mapping[str, Array]:
        """Let it go on to its end."""
        for adds in self.good.values():
            adds.gate.set()
        finished = job.wait()
        assert finished.state == "done", finished.reason
        return dict(job.model())

    def check_as_in_peace(
        self, job: Job, expected: Array | None = None, rounds: int = ROUNDS
    ) -> list[e.Event]:
        """Finish the job; its model and contributors are as if nothing had been."""
        model = self.finish(job)
        np.testing.assert_array_equal(model["w"], self.in_peace["w"] if expected is None else expected)
        events = list(job.events(follow=False))
        commits = [event for event in events if isinstance(event, e.VersionCommitted)]
        assert [sorted(commit.contributors) for commit in commits] == [sorted(GOOD)] * rounds
        lost = [event for event in events if isinstance(event, e.LearnerLost | e.LearnerLeft)]
        assert not [event for event in lost if event.learner in GOOD]
        return events

    def dead_letters(self) -> list[str]:
        """Reasons of what was refused since the last look."""
        return [letter.reason for letter, _ in self.letters()]

    def letters(self) -> list[tuple[m.DeadLetter, bytes]]:
        """What was refused since the last look, and why."""
        api, vhost = self.operator.api, self.operator.vhost
        taken = [m.decode(body) for body, _ in api.take_messages(vhost, self.topology.dead, 10_000)]
        return [
            (letter, bytes(body))
            for letter, body in taken
            if isinstance(letter, m.DeadLetter) and body is not None
        ]

    def refused(self, num: int) -> list[str]:
        """Reasons, once there are so many."""
        found: list[str] = []

        def enough() -> bool:
            found.extend(self.dead_letters())
            return len(found) >= num

        eventually(enough, f"{num} refusals, not {len(found)}")
        return found


@contextmanager
def staged(folder: Path, rabbitmq: Broker) -> Iterator[Stage]:
    """On a virtual host of its own, while the block runs."""
    if rabbitmq.management is None:
        pytest.skip("needs a management interface")
    with rabbitmq.vhost(f"test-{secrets.token_hex(6)}") as url:
        federation = f"test-{secrets.token_hex(6)}"
        port = int(url.rpartition(":")[2].partition("/")[0])
        with Operator(folder, url, rabbitmq.management, federation) as by:
            stage = Stage(by, port)
            yield stage
            stage.mallory.connection.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, rabbitmq: Broker) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("attackers"), rabbitmq) as found:
        yield found


def update_of(learner: str, task: m.TaskRef, value: float) -> list[bytes]:
    """A whole and valid update: its result and its chunk."""
    model = Model.of({"w": np.full(8, value, np.float32)})
    manifest = m.UpdateManifest.of(model.spec, encoding="raw", chunk_bytes=1 << 20)
    result = m.Result(learner=learner, task=task, num_examples=EXAMPLES, update=manifest)
    (chunk,) = cut(model.buffer, 1 << 20)
    header = m.UpdateChunk(learner=learner, task=task, index=0, count=1, checksum=chunk.checksum)
    return [result.pack(), pack_chunk(header.KIND, header.model_dump(), chunk.payload)]


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


def test_the_broker_refuses_whatever_is_not_a_learners_own(stage: Stage) -> None:
    job = stage.begin()
    codes = {
        what: stage.mallory.attempt(operator.methodcaller(method, *arguments))
        for what, (method, arguments) in attempts(stage).items()
    }
    allowed = {what: code for what, code in codes.items() if code not in (REFUSED, OTHER_USER)}
    assert not allowed
    assert {code for what, code in codes.items() if what.startswith("say to be")} == {OTHER_USER}
    stage.check_as_in_peace(job)


def test_nothing_in_anothers_name_is_heard(stage: Stage) -> None:
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
    for report in reports:
        mallory.report(report.pack())
        mallory.send(stage.topology.reports, "mallory.x", report.pack(), {"BCC": [f"{victim}.{report.KIND}"]})
    for body in update_of(victim, task, 1e6):
        mallory.send(stage.topology.updates, f"mallory.{stage.inbox}", body)
        mallory.send(stage.topology.updates, "mallory.x", body, {"CC": [f"{victim}.{stage.inbox}"]})
    reasons = stage.refused(2 * len(reports) + 4)
    assert sum("in the name of" in reason for reason in reasons) >= 2 * 4 + 4
    stage.check_as_in_peace(job)


def test_a_message_that_does_not_say_who_sent_it_is_refused(stage: Stage) -> None:
    job, names = stage.begin(), stage.topology
    stage.dead_letters()
    body = m.Join(learner="mallory", session="s").pack()
    assert not stage.mallory.attempt(lambda c: c.basic_publish(names.reports, "mallory.join", body))
    (reason,) = stage.refused(1)
    assert "does not say which account sent it" in reason
    stage.check_as_in_peace(job)


def test_an_update_for_a_task_that_was_not_given_or_is_over_changes_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    old = stage.begin()
    stage.finish(old)
    new = stage.begin()
    before = stage.counts.updates.copy()
    with caplog.at_level(logging.INFO):
        for job, number in ((old, 0), (old, ROUNDS), (new, 0), (new, 1), (new, 7)):
            update = update_of("mallory", m.TaskRef(job=job.id, round=number), 1e6)
            stage.mallory.deliver(stage.inbox, update)
        stage.check_as_in_peace(new)
    for kind in ("result", "update_chunk"):
        assert caplog.text.count(f"a {kind} of learner mallory for job {old.id} came too late") == 2
    assert stage.counts.updates - before == Counter(late=3)


@pytest.fixture
def member(stage: Stage) -> Iterator[Mallory]:
    """Another account of mallory's; made before a test begins, since commands take the log to themselves."""
    member = Mallory(stage.operator, stage.port, "member")
    yield member
    member.connection.close()


def test_an_update_counts_once_however_often_it_is_replayed(
    stage: Stage, member: Mallory, caplog: pytest.LogCaptureFixture
) -> None:
    """Mallory takes part, and sends what it has sent again: in the same round, in the next one, and when the
    job is done.
    """
    mallory, adds = member, Adds()
    adds.gate.clear()
    host = stage.operator.learner(mallory.path, adds)  # takes its tasks, and never delivers
    assert host.wait_welcomed(DEADLINE_S)
    job = stage.begin(protocol={"min_learners": 3, "quorum": 3, "deadline_s": 60.0})
    assert adds.at_work.wait(DEADLINE_S)
    first, second = (update_of(mallory.name, m.TaskRef(job=job.id, round=n), 1.0 + n) for n in range(ROUNDS))
    before = stage.counts.updates.copy()

    def refused(**expected: int) -> None:
        eventually(lambda: stage.counts.updates - before == Counter(expected), f"{expected} being refused")

    mallory.deliver(stage.inbox, first * 2)
    refused(duplicate=1)
    adds.at_work.clear()
    for good in stage.good.values():
        good.gate.set()
    assert adds.at_work.wait(DEADLINE_S), "the second round is open"
    mallory.deliver(stage.inbox, first)
    refused(duplicate=1, late=1)
    mallory.deliver(stage.inbox, second)
    model = stage.finish(job)
    late = stage.counts.updates["late"]
    stage.dead_letters()
    with caplog.at_level(logging.INFO):
        mallory.deliver(stage.inbox, [*first, *second, b"no message"])
        stage.refused(1)  # what was sent before it is handled
    was_too_late = caplog.text.count(f"for job {job.id} came too late")
    assert was_too_late + 2 * (stage.counts.updates["late"] - late) >= 3, "in two messages each"
    host.stop(drain_s=0.0)
    np.testing.assert_array_equal(model["w"], stage.in_peace["w"])  # all three add the same
    np.testing.assert_array_equal(job.model()["w"], model["w"])
    commits = [event for event in job.events(follow=False) if isinstance(event, e.VersionCommitted)]
    assert [sorted(commit.contributors) for commit in commits] == [sorted([*GOOD, mallory.name])] * ROUNDS
    assert [commit.total_weight for commit in commits] == [2.0 + EXAMPLES] * ROUNDS


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


def test_a_second_one_of_the_same_name_is_not_counted_twice(stage: Stage) -> None:
    by = stage.operator
    twin = by.learner(by.folder / "learner-mallory.join", adds := Adds())
    assert twin.wait_welcomed(DEADLINE_S)
    adds.gate.clear()
    job = stage.begin(protocol={"min_learners": 3})
    mailbox = stage.topology.mailbox("mallory")
    assert stage.mallory.attempt(lambda c: c.basic_consume(mailbox, lambda *_: None)) == REFUSED
    stage.mallory.report(m.Join(learner="mallory", session="another").pack())
    stage.mallory.report(m.Join(learner="mallory", session="a-third").pack())
    assert adds.at_work.wait(DEADLINE_S)
    adds.gate.set()
    np.testing.assert_array_equal(stage.finish(job)["w"], stage.in_peace["w"])  # all three add the same
    commits = [event for event in job.events(follow=False) if isinstance(event, e.VersionCommitted)]
    assert all(sorted(commit.contributors).count("mallory") <= 1 for commit in commits)
    assert all(commit.total_weight == len(commit.contributors) for commit in commits)
    twin.stop(drain_s=0.0)


def test_a_flood_is_dropped_and_the_others_are_heard(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    job, mallory, names = stage.begin(), stage.mallory, stage.topology
    stage.dead_letters()
    flood = stage.operator.connect(stage.operator.folder / "learner-mallory.join")
    beat = m.Heartbeat(learner="mallory", session="s").pack()
    with caplog.at_level(logging.WARNING):
        for _ in range(8_000):
            flood.publish(names.reports, ["mallory.heartbeat"], beat)
        for _ in range(1_500):
            flood.publish(names.updates, [f"mallory.{stage.inbox}"], b"x" * 10_000)
        assert flood.flush(DEADLINE_S)
        for name in GOOD:
            stage.good[name].gate.set()
        stage.check_as_in_peace(job)
        eventually(lambda: "nobody asked for than" in caplog.text, "the flood being noticed")
    kept = [reason for reason in stage.dead_letters() if "end" in reason or "map" in reason]
    assert len(kept) <= DEAD_LETTERS.burst + 120 * DEAD_LETTERS.per_s
    assert f"{mallory.user} sends more messages than" in caplog.text
    mallory.report(m.Leave(learner="mallory", session="s").pack())
