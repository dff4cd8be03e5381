"""Attacks with more than was asked for: updates too late or again, a second learner of a name, a flood.

As in ``test_rights``: with the credentials of one enrolled learner, while a round is open.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from broker_fl.roles.controller.limits import DEAD_LETTERS
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from tests.integration.attackers.stage import EXAMPLES, GOOD, REFUSED, ROUNDS, Mallory, Stage, update_of
from tests.servers.enrolling import DEADLINE_S, Adds, eventually


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
    stage.mallory.report(m.Leave(learner="mallory", session="a-third").pack())
    twin.stop(drain_s=0.0)


def test_a_flood_is_dropped_and_the_others_are_heard(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    job, mallory, names = stage.begin(), stage.mallory, stage.topology
    stage.dead_letters()
    flood = stage.operator.connect(stage.operator.folder / "learner-mallory.join")
    beat = m.Heartbeat(learner="mallory", session="s").pack()
    with caplog.at_level(logging.WARNING):
        for _ in range(16_000):  # more than a pause of the controller forgives
            flood.publish(names.reports, ["mallory.heartbeat"], beat)
        for _ in range(3_000):
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
