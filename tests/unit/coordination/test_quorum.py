"""Who has to be there and to deliver before a round is closed, and who is asked again."""

from __future__ import annotations

import pytest

from broker_fl.coordination import signals as s
from broker_fl.coordination.state import Phase
from broker_fl.wire import events as e
from broker_fl.wire.rules import Median
from broker_fl.wire.selectors import SelectAll, SelectRandom
from tests.unit.coordination.bench import Bench, holds, spec

# ---------------------------------------------------------------- who is there


def test_a_job_waits_for_its_minimum_of_learners_and_then_begins() -> None:
    bench = Bench(spec(min_learners=2), "a")
    (waiting,) = bench.all(e.JobWaiting)
    assert (waiting.num_learners, waiting.num_needed) == (1, 2)
    bench.wait(1e6)
    assert bench.phase == Phase.WAITING
    bench.up("b")
    assert bench.asked() == {"a", "b"}


def test_a_job_that_waits_too_long_fails_and_says_for_what() -> None:
    bench = Bench(spec(min_learners=3, max_wait_s=60.0), "a")
    assert bench.job.next_timer() == bench.now + 60.0
    bench.wait(59.9)
    assert bench.phase == Phase.WAITING
    bench.wait(0.2)
    (finished,) = bench.all(e.JobFinished)
    assert finished.state == "failed"
    assert "for 60 s: 1 learners are there, 3 are needed" in finished.reason


def test_a_quorum_that_is_a_count_is_waited_for_before_a_round_begins() -> None:
    bench = Bench(spec(quorum=3), "a", "b")
    assert bench.phase == Phase.WAITING
    bench.up("c")
    assert bench.asked() == {"a", "b", "c"}


def test_who_joins_during_a_round_takes_part_in_the_next_one() -> None:
    bench = Bench(spec(), "a")
    assert not bench.up("b")
    bench.play("a")
    assert bench.asked() == {"a", "b"}


def test_a_lost_learner_that_returns_gets_its_task_again() -> None:
    bench = Bench(spec(), "a", "b")
    bench.down("a")
    bench.up("a")
    assert bench.asked() == {"a"}
    bench.deliver("a", "b")
    assert bench.phase == Phase.COMMITTING


def test_a_returning_learner_that_has_finished_is_asked_for_its_update_only() -> None:
    bench = Bench(spec(), "a", "b")
    bench.down("a")
    bench.up("a", holds(bench, "a", "finished"))
    assert not bench.asked()
    assert [action.learner for action in bench.of(s.RequestUpload)] == ["a"]


# ---------------------------------------------------------------- quorum


@pytest.mark.parametrize(
    ("num", "lost", "delivered", "quorum", "commits"),
    [
        (44, 14, 30, 0.75, True),
        (44, 14, 23, 0.75, True),
        (44, 14, 22, 0.75, False),
        (44, 0, 33, 0.75, True),
        (44, 0, 32, 0.75, False),
        (10, 0, 3, 0.3, True),
        (10, 9, 1, 1.0, True),
        (5, 2, 3, 4, False),
        (5, 1, 4, 4, True),
        (3, 0, 1, 0.0001, True),
    ],
)
def test_a_share_is_of_the_live_cohort_and_a_count_is_a_count(
    num: int, lost: int, delivered: int, quorum: float, commits: bool
) -> None:
    learners = [f"l{index:02}" for index in range(num)]
    bench = Bench(spec(quorum=quorum, deadline_s=60.0, max_retries=0), *learners)
    for learner in learners[:lost]:
        bench.down(learner)
    bench.deliver(*learners[lost : lost + delivered])
    if bench.phase == Phase.TRAINING:
        bench.wait(60.0)
    assert (bench.phase == Phase.COMMITTING) is commits


def test_a_round_waits_for_everybody_who_is_there_until_its_deadline() -> None:
    bench = Bench(spec(quorum=0.5, deadline_s=60.0), "a", "b")
    bench.deliver("a")
    assert bench.phase == Phase.TRAINING
    assert bench.job.next_timer() == bench.now + 60.0
    bench.wait(60.0)
    assert bench.phase == Phase.COMMITTING
    assert [event.learner for event in bench.all(e.TaskLate)] == ["b"]
    assert [(action.learners) for action in bench.of(s.CancelTasks)] == [("b",)]


# ---------------------------------------------------------------- retries


def test_outsiders_replace_those_who_did_not_deliver_the_lost_first() -> None:
    settings = spec(selector=SelectRandom(count=2, seed=4), quorum=2, deadline_s=60.0)
    bench = Bench(settings, "a", "b", "c")
    (chosen,) = bench.of(s.SendTasks)
    (outsider,) = {"a", "b", "c"} - set(chosen.learners)
    lost, other = chosen.learners
    bench.down(lost)
    bench.deliver(other)
    (retried,) = bench.all(e.RoundRetried)
    assert retried.replacements == (outsider,)
    assert bench.asked() == {outsider}
    bench.deliver(outsider)
    assert bench.phase == Phase.COMMITTING


def test_a_count_that_the_cohort_cannot_reach_any_more_takes_in_whoever_comes() -> None:
    bench = Bench(spec(quorum=3), "a", "b", "c")
    bench.down("c")
    bench.deliver("a", "b")
    assert bench.phase == Phase.TRAINING
    bench.up("d")
    assert bench.asked() == {"d"}
    bench.deliver("d")
    assert bench.phase == Phase.COMMITTING


def test_a_learner_that_failed_is_asked_again_under_another_attempt() -> None:
    bench = Bench(spec(), "a", "b")
    bench.deliver("b")
    bench.fail("a")
    (again,) = bench.of(s.SendTasks)
    assert (again.learners, again.task.attempt) == (("a",), 1)
    bench.deliver("a")
    assert bench.phase == Phase.COMMITTING


def test_what_an_earlier_attempt_left_behind_changes_nothing() -> None:
    bench = Bench(spec(), "a", "b")
    first = bench.ref("a")
    bench.deliver("b")
    bench.refuse("a")
    assert bench.ref("a").attempt == 1
    assert not bench.result("a", first)
    assert not bench.step(s.UpdateWasRefused("a", first, "again"))
    assert not bench.step(s.TaskHasFailed("a", first, "again"))
    assert not bench.job.expects("a", first)
    bench.deliver("a")
    assert bench.phase == Phase.COMMITTING


def test_a_job_fails_when_retries_are_used_up_and_names_who_and_why() -> None:
    bench = Bench(spec(max_retries=1), "a", "b")
    bench.deliver("b")
    bench.fail("a", "out of memory")
    bench.fail("a", "out of memory")
    (finished,) = bench.all(e.JobFinished)
    assert finished.state == "failed"
    assert "round 1 missed its quorum 2 times" in finished.reason
    assert "a: out of memory" in finished.reason


def test_reasons_of_any_length_fit_into_what_the_job_says() -> None:
    learners = "abcde"
    bench = Bench(spec(max_retries=1), *learners)
    for _ in range(2):
        for learner in learners:
            bench.fail(learner, "x" * 4_000)
    assert [event.state for event in bench.all(e.JobFinished)] == ["failed"]
    assert len(bench.all(e.RoundRetried)) == 1
    bench.job.state.summary()


@pytest.mark.parametrize("end", ["fail", "refuse"])
def test_who_failed_and_is_gone_is_not_waited_for(end: str) -> None:
    bench = Bench(spec(), "a", "b", "c")
    getattr(bench, end)("c")
    bench.down("c")
    bench.deliver("a")
    assert bench.phase == Phase.TRAINING
    bench.deliver("b")
    assert bench.phase == Phase.COMMITTING


def test_a_round_with_everybody_lost_waits_without_a_timer_and_goes_on_when_one_returns() -> None:
    bench = Bench(spec(deadline_s=60.0, max_retries=0), "a")
    bench.down("a")
    bench.wait(100.0)
    assert bench.job.next_timer() is None, "a timer in the past would keep the loop spinning"
    bench.up("a")
    assert bench.phase == Phase.TRAINING
    assert bench.asked() == {"a"}
    assert bench.job.next_timer() == bench.now + 60.0
    bench.deliver("a")
    assert bench.phase == Phase.COMMITTING


def test_waiting_within_a_round_begins_anew_each_time_everybody_is_lost() -> None:
    bench = Bench(spec(max_wait_s=60.0), "a")
    bench.down("a")
    bench.wait(50.0)
    bench.up("a")
    bench.wait(50.0)
    bench.down("a")
    bench.wait(50.0)
    assert bench.phase == Phase.TRAINING
    bench.wait(11.0)
    assert [event.state for event in bench.all(e.JobFinished)] == ["failed"]


def test_an_evaluation_that_nobody_can_do_does_not_fail_a_job_whose_rounds_are_done() -> None:
    bench = Bench(spec(rounds=1, max_retries=1), "a")
    bench.play("a")
    bench.fail("a", "no test data")
    bench.fail("a", "no test data")
    (finished,) = bench.all(e.JobFinished)
    assert finished.state == "done"
    assert "not evaluated" in finished.reason
    assert "no test data" in finished.reason


def test_an_evaluation_is_done_with_whoever_delivered_by_the_deadline() -> None:
    bench = Bench(spec(rounds=1, deadline_s=60.0), "a", "b")
    bench.play("a", "b")
    bench.deliver("a", evaluation={"loss": 1.0})
    bench.wait(60.0)
    assert [event.metrics for event in bench.all(e.JobFinished)] == [{"loss": 1.0}]


# ---------------------------------------------------------------- more than are needed


def test_more_are_asked_than_are_needed_and_the_slow_ones_are_told_to_stop() -> None:
    settings = spec(over_selection=2, selector=SelectRandom(count=3, seed=1))
    bench = Bench(settings, *"abcdefgh")
    asked = sorted(bench.asked())
    assert len(asked) == 5
    assert bench.all(e.RoundStarted)[0].num_wanted == 3
    bench.deliver(*asked[:3])
    assert bench.of(s.Commit)
    assert [event.learner for event in bench.all(e.TaskLate)] == asked[3:]
    assert {event.reason for event in bench.all(e.TaskLate)} == {"enough others have delivered"}
    assert bench.of(s.CancelTasks)[0].learners == tuple(asked[3:])


def test_the_spare_make_up_for_the_lost() -> None:
    bench = Bench(spec(over_selection=2, selector=SelectRandom(count=3)), *"abcde")
    bench.down("a")
    bench.fail("b")
    bench.deliver("c", "d")
    assert not bench.of(s.Commit)
    bench.deliver("e")
    assert bench.of(s.Commit)


def test_a_quorum_is_a_share_of_those_who_are_needed() -> None:
    settings = spec(over_selection=5, selector=SelectRandom(count=4), quorum=0.5, deadline_s=10.0)
    bench = Bench(settings, *"abcdefghi")
    bench.deliver("a", "b")
    bench.wait(10.0)
    assert bench.of(s.Commit)


# ---------------------------------------------------------------- the late, and too few


def test_who_is_always_late_is_left_out_like_who_always_fails() -> None:
    selector = SelectAll(exclude_after=2, exclude_rounds=2)
    bench = Bench(spec(rounds=9, quorum=0.5, deadline_s=10.0, selector=selector, evaluate=False), "a", "late")
    asked = []
    for _ in range(6):
        asked.append("late" in bench.asked())
        bench.deliver("a")
        bench.wait(10.0)
        bench.stored()
    assert asked == [True, True, False, False, True, False]
    assert [(one.learner, one.round) for one in bench.all(e.LearnerExcluded)] == [("late", 1)]
    assert bench.job.state.records["late"].task_s == pytest.approx(10.0)


def test_a_round_is_not_closed_with_too_few_for_a_robust_rule() -> None:
    bench = Bench(spec(rule=Median(max_attackers=1), min_learners=3, quorum=1.0), "a", "b", "c")
    bench.deliver("a", "b")
    bench.down("c")
    assert not bench.of(s.Commit)
    bench.up("d")
    bench.deliver("d")
    assert bench.of(s.Commit)
