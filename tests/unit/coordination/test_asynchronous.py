"""The asynchronous protocol, signal by signal; what faults do to it is in ``test_world.py``."""

from __future__ import annotations

import math

import pytest

from broker_fl.coordination import signals as s
from broker_fl.coordination.state import Phase
from broker_fl.wire import events as e
from broker_fl.wire.job import MetricTarget, Termination
from broker_fl.wire.messages import TaskRef, TaskStatus
from broker_fl.wire.pacing import Aimd
from broker_fl.wire.rules import FedBuff
from tests.unit.coordination.bench import Bench, asynchronous


def contributors(bench: Bench) -> list[tuple[str, ...]]:
    return [event.contributors for event in bench.all(e.VersionCommitted)]


def test_every_update_makes_a_version_and_its_learner_gets_it_at_once() -> None:
    bench = Bench(asynchronous(), "a", "b", "c")
    assert bench.asked() == {"a", "b", "c"}
    for learner in ("b", "b", "a"):
        bench.play(learner)
        (sent,) = bench.of(s.SendTasks)
        assert sent.learners == (learner,)
        assert sent.version == bench.job.state.version
    assert contributors(bench) == [("b",), ("b",), ("a",)]
    assert [event.staleness for event in bench.all(e.UpdateFolded)] == [0, 0, 2]
    assert [(event.parent, event.version) for event in bench.all(e.VersionCommitted)] == [
        (0, 1),
        (1, 2),
        (2, 3),
    ]


def test_a_buffer_takes_one_update_of_each_learner_who_then_waits_for_the_version() -> None:
    bench = Bench(asynchronous(rule=FedBuff(buffer_size=2), min_learners=2), "a", "b", "c")
    bench.deliver("a")
    assert bench.phase == Phase.TRAINING
    assert bench.asked() == set()
    bench.deliver("c")
    assert bench.of(s.Commit) == [s.Commit(1)]
    bench.stored()
    assert bench.asked() == {"a", "c"}
    assert contributors(bench) == [("a", "c")]


def test_no_more_than_the_limit_train_and_who_waited_longest_is_next() -> None:
    bench = Bench(asynchronous(max_concurrent=2), "a", "b", "c", "d")
    assert bench.asked() == {"a", "b"}
    order = []
    for learner in ("a", "c", "d", "a", "c"):
        bench.play(learner)
        order += sorted(bench.asked())
    assert order == ["c", "d", "a", "c", "d"]
    assert bench.job.state.cohort.num_open == 2


def test_the_fast_wait_for_the_slowest_when_they_are_too_far_ahead() -> None:
    bench = Bench(asynchronous(max_lead=2), "fast", "slow")
    bench.play("fast")
    bench.play("fast")
    assert bench.asked() == set()
    bench.play("slow")
    assert bench.asked() == {"fast", "slow"}


def test_who_comes_later_is_not_waited_for_until_it_has_caught_up() -> None:
    bench = Bench(asynchronous(max_lead=1), "a")
    for _ in range(5):
        bench.play("a")
        assert bench.asked() == {"a"}
    bench.up("b")
    bench.play("b")
    assert bench.asked() == set()
    bench.play("a")
    assert bench.asked() == {"a", "b"}


def test_an_update_that_is_too_old_is_refused_and_its_learner_gets_the_newest_version() -> None:
    bench = Bench(asynchronous(max_staleness=1), "a", "b")
    for _ in range(2):
        bench.play("a")
    late = bench.ref("b", round=0)
    bench.result("b", late)
    (refused,) = bench.all(e.UpdateRefused)
    assert refused.reason == "its version is 2 versions old; at most 1 are allowed"
    assert bench.asked() == {"b"}
    assert not bench.job.expects("b", late)
    assert bench.ref("b", round=2) == bench.of(s.SendTasks)[0].task


def test_an_update_that_grew_too_old_on_its_way_does_not_count_either() -> None:
    bench = Bench(asynchronous(max_staleness=0), "a", "b")
    bench.result("b", bench.ref("b", round=0))
    bench.play("a")
    old = bench.ref("b", round=0)
    assert bench.job.refusal(old) == "its version is 1 versions old; at most 0 are allowed"
    bench.step(s.UpdateWasRefused("b", old, "too old"))
    assert bench.asked() == {"b"}


def test_a_task_that_takes_too_long_is_taken_back() -> None:
    bench = Bench(asynchronous(deadline_s=10.0), "a", "b")
    old = bench.ref("a", round=0)
    bench.play("b")
    assert bench.job.next_timer() == bench.now + 10.0
    bench.wait(10.0)
    assert [event.learner for event in bench.all(e.TaskLate)] == ["a", "b"]
    assert {action.learners for action in bench.of(s.CancelTasks)} == {("a",), ("b",)}
    assert bench.asked() == {"a", "b"}
    assert not bench.job.expects("a", old)


def test_a_learner_that_keeps_failing_is_asked_no_more_until_it_joins_again() -> None:
    bench = Bench(asynchronous(max_failures=2), "a", "b")
    bench.fail("a")
    assert bench.asked() == {"a"}
    bench.fail("a", "no disk")
    assert bench.asked() == set()
    (excluded,) = bench.all(e.LearnerExcluded)
    assert (excluded.learner, excluded.num_failures, excluded.reason) == ("a", 2, "no disk")
    bench.play("b")
    assert bench.asked() == {"b"}
    bench.up("a")
    assert bench.asked() == {"a"}


def test_when_all_have_failed_too_often_the_job_fails_and_says_why() -> None:
    bench = Bench(asynchronous(max_failures=1), "a", "b")
    bench.fail("a", "no data")
    bench.fail("b", "no GPU")
    (finished,) = bench.all(e.JobFinished)
    assert finished.state == "failed"
    assert "2 learners failed 1 times in a row, at last b: no GPU" in finished.reason


def test_names_of_tasks_are_never_used_twice() -> None:
    bench = Bench(asynchronous(max_failures=9), "a", "b")
    seen = {action.task for action in bench.of(s.SendTasks)}
    for happens in (bench.fail, bench.refuse, bench.fail):
        happens("a")
        (sent,) = bench.of(s.SendTasks)
        assert sent.task not in seen
        seen.add(sent.task)


@pytest.mark.parametrize(
    ("termination", "reason"),
    [(Termination(versions=3), "3 versions"), (Termination(updates=3), "4 updates")],
)
def test_it_ends_by_versions_or_updates_and_the_last_version_is_evaluated(
    termination: Termination, reason: str
) -> None:
    rule = FedBuff(buffer_size=2)
    bench = Bench(asynchronous(termination=termination, rule=rule, min_learners=2), "a", "b")
    while bench.phase == Phase.TRAINING:
        bench.play("a", "b")
    assert bench.phase == Phase.EVALUATING
    assert bench.asked() == {"a", "b"}
    bench.deliver("a", "b", evaluation={"accuracy": 0.5}, evaluation_examples=1, update=None)
    (finished,) = bench.all(e.JobFinished)
    assert (finished.state, finished.reason, finished.metrics) == ("done", reason, {"accuracy": 0.5})
    assert bench.all(e.VersionEvaluated)[-1].version == finished.version


def test_the_wall_clock_ends_it_at_once() -> None:
    bench = Bench(asynchronous(termination=Termination(wall_clock_s=5.0)), "a", "b")
    bench.play("a")
    bench.wait(5.0)
    (finished,) = bench.all(e.JobFinished)
    assert (finished.state, finished.reason, finished.version) == ("done", "5 s have passed", 1)


def test_a_target_counts_once_everybody_has_evaluated() -> None:
    termination = Termination(target=MetricTarget(metric="accuracy", value=0.5))
    bench = Bench(asynchronous(termination=termination), "lucky", "other")
    bench.play("lucky", evaluation={"accuracy": 0.9}, evaluation_examples=1)
    assert bench.phase == Phase.TRAINING
    bench.play("other", evaluation={"accuracy": 0.5}, evaluation_examples=1)
    assert bench.phase == Phase.EVALUATING
    assert bench.all(e.VersionEvaluated)[-1].metrics == {"accuracy": pytest.approx(0.7)}


def test_a_target_does_not_wait_for_who_never_evaluates() -> None:
    termination = Termination(target=MetricTarget(metric="accuracy", value=0.5))
    bench = Bench(asynchronous(termination=termination, max_failures=1), "a", "broken", "mute")
    bench.fail("broken")
    bench.play("mute")
    bench.play("a", evaluation={"accuracy": 0.9}, evaluation_examples=1)
    assert bench.phase == Phase.EVALUATING


def test_a_target_that_nobody_reports_ends_the_job_once_everybody_has_evaluated() -> None:
    termination = Termination(target=MetricTarget(metric="acuracy", value=0.5))
    bench = Bench(asynchronous(termination=termination), "a", "b", "mute")
    bench.play("mute")
    bench.play("a", evaluation={"accuracy": 0.9}, evaluation_examples=1)
    assert bench.phase == Phase.TRAINING, "b may report it yet"
    bench.play("b", evaluation={"accuracy": 0.3, "loss": 1.0}, evaluation_examples=1)
    (finished,) = bench.all(e.JobFinished)
    assert finished.state == "failed"
    assert "'acuracy'" in finished.reason
    assert finished.reason.endswith("there are: accuracy, loss")


def test_a_target_that_is_not_finite_at_first_is_reported_all_the_same() -> None:
    termination = Termination(target=MetricTarget(metric="loss", value=0.5, mode="min"))
    bench = Bench(asynchronous(termination=termination), "a", "b")
    bench.play("a", evaluation={"loss": math.nan, "accuracy": 0.1}, evaluation_examples=1)
    bench.play("b", evaluation={"accuracy": 0.3}, evaluation_examples=1)
    assert bench.phase == Phase.TRAINING
    bench.play("a", evaluation={"loss": 0.4}, evaluation_examples=1)
    assert bench.phase == Phase.EVALUATING


def test_who_failed_too_often_is_asked_again_after_a_while() -> None:
    bench = Bench(asynchronous(max_failures=2, exclude_versions=3), "a", "b")
    bench.fail("b")
    bench.fail("b")
    for _ in range(2):
        bench.play("a")
        assert bench.asked() == {"a"}
    bench.play("a")
    assert bench.asked() == {"a", "b"}
    bench.fail("b")
    assert bench.asked() == set(), "one more, and it is left out again"


def test_another_controller_takes_over_what_is_not_in_a_version_yet() -> None:
    bench = Bench(asynchronous(), "counted", "working", "done")
    working, done = bench.ref("working", round=0), bench.ref("done", round=0)
    counted = bench.ref("counted", round=0)
    bench.play("counted")
    heir = bench.restarted()
    heir.up("counted", TaskStatus(task=counted, phase="finished"))
    assert heir.asked() == {"counted"}
    heir.up("working", TaskStatus(task=working, phase="training"))
    assert heir.asked() == set()
    heir.up("done", TaskStatus(task=done, phase="finished"))
    assert heir.of(s.RequestUpload) == [s.RequestUpload("done", done)]
    heir.result("done", done)
    heir.fold("done", done)
    heir.stored()
    assert [event.contributors for event in heir.all(e.VersionCommitted)] == [("done",)]
    assert heir.all(e.VersionCommitted)[0].version == 2


def test_an_update_that_is_in_a_version_is_never_taken_again() -> None:
    bench = Bench(asynchronous(), "a", "b")
    counted = bench.ref("a", round=0)
    bench.play("a")
    heir = bench.restarted()
    for _ in range(2):
        heir.up("a", TaskStatus(task=counted, phase="finished"))
        assert not heir.of(s.RequestUpload)
        assert not heir.job.expects("a", counted)
        assert not heir.result("a", counted)


def test_with_fewer_learners_than_it_needs_it_waits() -> None:
    bench = Bench(asynchronous(min_learners=2, max_wait_s=60.0), "a")
    assert bench.phase == Phase.WAITING
    bench.up("b")
    assert bench.asked() == {"a", "b"}
    bench.down("a")
    bench.down("b")
    assert [event.num_needed for event in bench.all(e.JobWaiting)] == [2, 1]
    bench.wait(61.0)
    assert [event.state for event in bench.all(e.JobFinished)] == ["failed"]


def test_aimd_gives_the_late_less_and_those_in_time_more() -> None:
    bench = Bench(asynchronous(pacing=Aimd(target_s=10.0), parameters={"epochs": 4}), "fast", "slow")
    assert {a.workload["epochs"] for a in bench.of(s.SendTasks)} == {4}
    bench.now += 5.0
    bench.play("fast")
    assert [a.workload for a in bench.of(s.SendTasks)] == [{"epochs": 5}]
    bench.now += 20.0
    bench.play("slow")
    assert [a.workload for a in bench.of(s.SendTasks)] == [{"epochs": 2}]


def test_a_paused_job_gives_no_task_and_takes_what_comes() -> None:
    bench = Bench(asynchronous(), "a", "b")
    bench.step(s.PauseWanted("lunch"))
    bench.play("a")
    assert bench.asked() == set()
    assert contributors(bench) == [("a",)]
    bench.step(s.ResumeWanted(versions=1))
    assert bench.asked() == set(), "what b has under way is the version that is wanted"
    bench.play("b")
    assert bench.job.state.is_paused
    bench.step(s.ResumeWanted(versions=1))
    assert len(bench.asked()) == 1
    bench.play(*bench.asked())
    assert (bench.job.state.version, bench.asked()) == (3, set())
    bench.step(s.ResumeWanted())
    assert bench.asked() == {"a", "b"}


def test_foreign_and_repeated_signals_change_nothing() -> None:
    bench = Bench(asynchronous(), "a", "b")
    task = bench.ref("a", round=0)
    bench.play("a")
    before = bench.job.state.pack()
    for signal in (
        s.TaskWasAccepted("a", task),
        s.TaskHasFailed("a", task, "late"),
        s.UpdateWasFolded(learner="a", task=task, weight=1.0),
        s.UpdateWasRefused("x", task, "who is x?"),
        s.TaskHasFailed("b", TaskRef(job="other", round=0), "another job's"),
        s.VersionWasStored(version=1, digest="", total_weight=1.0),
        s.CommitFailed("nothing is being committed"),
    ):
        assert bench.step(signal) == []
    assert bench.job.state.pack() == before
