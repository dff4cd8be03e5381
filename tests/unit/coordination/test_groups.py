from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from broker_fl.coordination import signals as s
from broker_fl.coordination.averaging import Means
from broker_fl.coordination.cohort import Status
from broker_fl.coordination.groups import GroupJob
from broker_fl.coordination.membership import Group
from broker_fl.coordination.shares import Share
from broker_fl.interfaces import Member
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec, MetricTarget, Termination, Transfer
from broker_fl.wire.messages import GroupResult, TaskRef, TaskStatus
from tests.unit.coordination.bench import Bench, spec

MEMBERS = ("g-0", "g-1", "g-2")


def joined(bench: Bench, group: str = "g", *members: str, session: str = "1") -> list[s.Action]:
    there = {name: Member(learner=name) for name in members or MEMBERS}
    bench.members.join_group(Group(group=group, session=session, members=there, last_seen=bench.now))
    return bench.step(s.GroupUp(group))


def bench_of(settings: JobSpec | None = None, *alone: str) -> Bench:
    bench = Bench(settings or spec(rounds=2, min_learners=3 + len(alone), evaluate=False), *alone)
    joined(bench)
    return bench


def share(bench: Bench, name: str, *learners: str, group: str = "g", **fields: object) -> Share:
    task = fields.pop("task", None) or bench.ref((learners or MEMBERS)[0])
    given = {"num_examples": (2,), "learners": learners or MEMBERS, **fields}
    return Share.of([GroupResult(group=group, task=task, share=name, **given)])  # type: ignore[arg-type]


def arrive(bench: Bench, one: Share) -> list[s.Action]:
    return bench.step(s.ShareArrived(one))


def fold(bench: Bench, one: Share) -> list[s.Action]:
    return bench.step(s.ShareWasFolded(share=one, weight=float(one.weights("examples").sum())))


def expects(bench: Bench, one: Share) -> bool:
    assert isinstance(bench.job, GroupJob)
    return bench.job.expects_share(one)


def status(bench: Bench, learner: str) -> str:
    part = bench.job.state.cohort.get(learner)
    assert part is not None
    return str(part.status)


def test_a_groups_task_is_one_for_all_of_its_members_and_its_sum_delivers_them_at_once() -> None:
    bench = bench_of(None, "a")
    (sent,) = bench.of(s.SendTasks)
    assert (sent.learners, dict(sent.groups)) == (("a",), {"g": MEMBERS})
    one = share(bench, "x", metrics={"loss": (1.0, 2.0, float("nan"))}, num_examples=(1, 3, 5))
    arrive(bench, one)
    assert {status(bench, learner) for learner in MEMBERS} == {Status.FINISHED}
    fold(bench, one)
    assert {status(bench, learner) for learner in MEMBERS} == {Status.DELIVERED}
    bench.deliver("a", metrics={"loss": 4.0})
    bench.stored()
    (committed,) = bench.all(e.VersionCommitted)
    assert committed.contributors == ("a", *MEMBERS)
    assert committed.metrics == {"loss": pytest.approx((1 * 1 + 3 * 2 + 1 * 4) / 5)}
    assert [event.weight for event in bench.all(e.GroupFolded)] == [9.0]


@pytest.mark.parametrize(("metric", "end"), [("accuracy", "done"), ("accurcy", "failed")])
def test_a_target_is_looked_for_among_the_metrics_of_groups(metric: str, end: str) -> None:
    target = MetricTarget(metric=metric, value=0.5)
    bench = bench_of(spec(min_learners=3, termination=Termination(rounds=5, target=target)))
    one = share(bench, "x", evaluation={"accuracy": (0.25, 0.75, 0.5)}, evaluation_examples=(1,))
    arrive(bench, one)
    fold(bench, one)
    (finished,) = bench.all(e.JobFinished)
    assert finished.state == end
    assert bench.all(e.VersionEvaluated)[0].metrics == {"accuracy": 0.5}


def test_of_two_sums_with_the_same_learner_one_counts_whichever_order_they_come_in() -> None:
    """A host that was started anew trains again; both sums may be on their way."""
    for first, second in (("x", "y"), ("y", "x")):
        bench = bench_of(None, "a")
        shares = {"x": share(bench, "x"), "y": share(bench, "y", "g-0", "g-1")}
        for one in shares.values():
            arrive(bench, one)
        assert expects(bench, shares[first])
        fold(bench, shares[first])
        assert not expects(bench, shares[second])
        assert not fold(bench, shares[second])
        assert not expects(bench, shares[first])
        assert not fold(bench, shares[first]), "the same sum once more"
        arrive(bench, shares[second])
        assert len(bench.all(e.GroupFolded)) == 1


def test_a_share_that_comes_after_some_of_its_learners_are_counted_is_refused_for_the_rest() -> None:
    bench = bench_of()
    one = share(bench, "x", "g-0")
    arrive(bench, one)
    fold(bench, one)
    arrive(bench, share(bench, "y"))
    (missed,) = bench.all(e.GroupMissed)
    assert (missed.outcome, missed.learners) == ("refused", ("g-1", "g-2"))
    assert "cannot be taken apart" in missed.reasons[0]
    assert status(bench, "g-0") == Status.DELIVERED
    assert bench.asked() == set()


@pytest.mark.parametrize(
    ("group", "learners"),
    [("g", ("g-0", "a")), ("g", ("g-0", "h-0")), ("h", ("g-0",)), ("g", ("g-0", "g-0")), ("g", ("nobody",))],
)
def test_a_group_speaks_for_its_own_members_and_for_each_once(group: str, learners: tuple[str, ...]) -> None:
    bench = Bench(spec(rounds=1, min_learners=5, evaluate=False), "a")
    joined(bench, "h", "h-0")
    joined(bench)
    one = share(bench, "x", *learners, group=group, task=TaskRef(job="job", round=0))
    arrive(bench, one)
    assert not expects(bench, one)
    assert not bench.all(e.GroupFinished)


def test_of_a_learner_that_failed_in_a_share_the_others_count_and_it_is_asked_once_more() -> None:
    bench = bench_of()
    one = share(bench, "x", "g-0", "g-2", failed=("g-1",), reasons=("no memory",))
    arrive(bench, one)
    assert status(bench, "g-1") == Status.FAILED
    fold(bench, one)
    (sent,) = bench.of(s.SendTasks)
    assert (sent.task.attempt, dict(sent.groups)) == (1, {"g": ("g-1",)})
    again = share(bench, "y", "g-1")
    assert again.task.attempt == 1
    arrive(bench, again)
    fold(bench, again)
    assert bench.of(s.Commit)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"metrics": {"loss": (1.0, float("inf"), 1.0)}}, "metric 'loss' of g-1 is not finite"),
        ({"num_examples": (1, 1, 0)}, "the update of g-2 was trained on no example"),
        ({"num_steps": (5, 4, 5)}, "the task of g-1 asked for 5 optimiser steps, it reports 4"),
    ],
)
def test_a_share_with_a_learner_that_would_be_refused_alone_is_refused(
    fields: dict[str, Any], reason: str
) -> None:
    bench = bench_of(spec(rounds=1, min_learners=3, max_retries=0, parameters={"steps": 5}))
    arrive(bench, share(bench, "x", **fields))
    (missed,) = bench.all(e.GroupMissed)
    assert (missed.outcome, missed.num_learners) == ("refused", 3)
    assert reason in missed.reasons[0]


def test_sums_that_do_not_fit_the_budget_come_one_after_the_other() -> None:
    settings = spec(rounds=1, min_learners=5, evaluate=False, transfer=Transfer(upload_budget_bytes=1))
    bench = Bench(settings)
    joined(bench, "h", "h-0", "h-1")
    joined(bench)
    shares = [
        share(bench, "x", "g-0"),
        share(bench, "y", "h-0", "h-1", group="h"),
        share(bench, "z", "g-1", "g-2"),
    ]
    requests = []
    for one in shares:
        arrive(bench, one)
        requests.append([action.learner for action in bench.of(s.RequestUpload)])
    assert requests == [["g"], [], []]
    for one, following in zip((shares[0], shares[1], shares[2]), (["h"], ["g"], []), strict=True):
        fold(bench, one)
        assert [action.learner for action in bench.of(s.RequestUpload)] == following
    assert bench.of(s.Commit)


def test_shares_of_two_groups_that_have_drawn_the_same_id_are_both_folded() -> None:
    """Or a copy of another group's machine, or a hostile one, would leave the others' learners waiting."""
    bench = Bench(spec(rounds=1, min_learners=4, evaluate=False))
    joined(bench, "h", "h-0")
    joined(bench)
    shares = [share(bench, "x"), share(bench, "x", "h-0", group="h", num_examples=(5,))]
    for one in shares:
        arrive(bench, one)
    assert all(expects(bench, one) for one in shares)
    for one in shares:
        assert fold(bench, one)
    assert bench.of(s.Commit)
    assert {status(bench, learner) for learner in (*MEMBERS, "h-0")} == {"delivered"}


def test_a_member_counts_through_its_group_alone() -> None:
    bench = bench_of()
    task = bench.ref("g-0")
    assert not bench.job.expects("g-0", task)
    assert not bench.result("g-0")
    bench.members.leave_group("g", "1")
    bench.step(s.GroupDown("g", MEMBERS, "left"))
    bench.up("g-0")
    (sent,) = bench.of(s.SendTasks)
    assert (sent.learners, dict(sent.groups)) == (("g-0",), {})
    assert bench.job.expects("g-0", task)


def test_a_share_of_an_earlier_round_is_late_and_changes_nothing() -> None:
    bench = bench_of()
    one = share(bench, "x")
    late = share(bench, "y")
    arrive(bench, one)
    fold(bench, one)
    bench.stored()
    assert bench.job.state.round == 1
    arrive(bench, late)
    arrive(bench, late)
    (missed,) = bench.all(e.GroupMissed)
    assert (missed.outcome, missed.round, missed.num_learners) == ("late", 0, 3)
    assert {status(bench, learner) for learner in MEMBERS} == {Status.SENT}


def test_members_of_a_group_that_is_gone_are_lost_and_wanted_again_when_it_is_back() -> None:
    bench = bench_of(None, "a")
    bench.deliver("a")
    bench.members.leave_group("g", "1")
    bench.step(s.GroupDown("g", MEMBERS, "silent"))
    assert bench.of(s.Commit), "nobody else is waited for"
    bench = bench_of(spec(rounds=1, min_learners=3, evaluate=False))
    bench.members.leave_group("g", "1")
    bench.step(s.GroupDown("g", MEMBERS, "silent"))
    assert {status(bench, learner) for learner in MEMBERS} == {Status.LOST}
    joined(bench, session="2")
    (sent,) = bench.of(s.SendTasks)
    assert dict(sent.groups) == {"g": MEMBERS}


def test_a_failure_that_was_not_counted_while_its_group_was_lost_is_when_the_share_comes_again() -> None:
    """Without it the round would wait for that learner for ever: it is asked for the share it has sent."""
    bench = bench_of(None, "a")
    one = share(bench, "x", "g-0", "g-2", failed=("g-1",), reasons=("no memory",))
    bench.members.leave_group("g", "1")
    bench.step(s.GroupDown("g", MEMBERS, "silent"))
    arrive(bench, one)
    fold(bench, one)
    joined(bench)
    assert status(bench, "g-1") == Status.SENT
    arrive(bench, one)
    (missed,) = bench.all(e.GroupMissed)
    assert (missed.outcome, missed.learners) == ("failed", ("g-1",))
    bench.deliver("a")
    (sent,) = bench.of(s.SendTasks)
    assert (sent.task.attempt, dict(sent.groups)) == (1, {"g": ("g-1",)})
    assert not arrive(bench, one), "an earlier attempt's"
    again = share(bench, "y", "g-1")
    arrive(bench, again)
    fold(bench, again)
    assert bench.of(s.Commit)


def test_a_new_controller_asks_a_group_for_what_it_holds_and_sends_what_it_lacks() -> None:
    twin = bench_of().restarted()
    twin.step(s.TimePassed())
    held = TaskStatus(task=twin.ref("g-0"), phase="finished", num_learners=3)
    there = {name: Member(learner=name) for name in MEMBERS}
    twin.members = twin.job._members
    for name in MEMBERS:
        twin.members.leave(name, "1")
    twin.members.join_group(Group(group="g", session="1", members=there, last_seen=twin.now))
    twin.step(s.GroupUp("g", (held,)))
    assert [(one.learner, one.task) for one in twin.of(s.RequestUpload)] == [("g", held.task)]
    one = share(twin, "x")
    arrive(twin, one)
    assert expects(twin, one)


def test_a_group_is_reminded_less_and_less_often_and_not_while_it_works() -> None:
    bench = bench_of()
    task = bench.ref("g-0")
    at_work = TaskStatus(task=task, phase="training", num_learners=3)
    for _ in range(20):
        bench.now += 5.0
        assert not bench.step(s.GroupReported("g", (at_work,)))
    reminders = []
    for _ in range(40):
        bench.now += 5.0
        actions = bench.step(s.GroupReported("g", ()))
        if any(isinstance(action, s.SendTasks) for action in actions):
            reminders.append(bench.now)
    gaps = np.diff(reminders)
    assert len(reminders) >= 3
    assert (np.diff(gaps) > 0).all()


def test_means_over_columns_are_those_over_learners() -> None:
    draw = np.random.default_rng(1)
    values, weights = draw.standard_normal((2, 50)), draw.integers(0, 4, 50).astype(float)
    values[0, 3], values[1, 7] = np.nan, np.inf
    columns = Means()
    columns.add_columns({"a": values[0], "b": values[1]}, weights)
    by_learner = Means()
    for (a, b), weight in zip(values.T.tolist(), weights.tolist(), strict=True):
        by_learner.add({"a": a, "b": b}, weight)
    assert columns.means() == pytest.approx(by_learner.means())


def test_a_group_that_joins_again_and_again_gets_its_task_once_more_and_then_as_after_heartbeats() -> None:
    bench = bench_of()
    num_sent = 0
    for number in range(1_000):
        bench.now += 0.01
        joined(bench, session=str(number))
        num_sent += len(bench.of(s.SendTasks))
    assert num_sent == 1
