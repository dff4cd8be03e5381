from __future__ import annotations

import pytest

from broker_fl.coordination import signals as s
from broker_fl.coordination.cohort import Status
from broker_fl.coordination.state import JobState, Phase
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec, MetricTarget, Termination, Transfer
from broker_fl.wire.messages import TaskRef, TaskStatus
from broker_fl.wire.rules import Median
from broker_fl.wire.selectors import SelectAll, SelectRandom
from tests.unit.coordination.bench import Bench, asynchronous, spec


def holds(bench: Bench, learner: str, phase: str, progress: float = 0.0) -> TaskStatus:
    return TaskStatus(task=bench.ref(learner), phase=phase, progress=progress)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the way it should go


def test_rounds_follow_one_another_until_the_last_version_is_evaluated() -> None:
    bench = Bench(spec(rounds=2), "a", "b")
    assert bench.asked() == {"a", "b"}
    bench.play("a", "b")
    bench.play("a", "b")
    assert bench.phase == Phase.EVALUATING
    assert [action.train for action in bench.of(s.SendTasks)] == [False]
    bench.deliver("a", "b", evaluation={"accuracy": 0.5}, evaluation_examples=10)
    (finished,) = bench.all(e.JobFinished)
    assert (finished.state, finished.version, finished.rounds, finished.metrics) == (
        "done",
        2,
        2,
        {"accuracy": 0.5},
    )
    assert [event.version for event in bench.all(e.VersionCommitted)] == [1, 2]
    assert [event.contributors for event in bench.all(e.VersionCommitted)] == [("a", "b")] * 2


def test_without_evaluation_a_job_ends_with_its_last_round() -> None:
    bench = Bench(spec(rounds=1, evaluate=False), "a")
    bench.play("a")
    assert [event.state for event in bench.all(e.JobFinished)] == ["done"]
    assert len(bench.all(e.RoundStarted)) == 1


def test_the_state_is_saved_before_tasks_of_a_round_go_out() -> None:
    bench = Bench(spec(), "a")
    kinds = [type(action) for action in bench.actions]
    assert kinds.index(s.Save) < kinds.index(s.SendTasks)


def test_the_mean_of_an_evaluation_is_weighted_by_examples_and_leaves_out_nan() -> None:
    bench = Bench(spec(), "a", "b", "c")
    bench.deliver("a", evaluation={"loss": 1.0}, evaluation_examples=1)
    bench.deliver("b", evaluation={"loss": 4.0}, evaluation_examples=2)
    bench.deliver("c", evaluation={"loss": float("nan")}, evaluation_examples=100)
    (evaluated,) = bench.all(e.VersionEvaluated)
    assert evaluated.metrics == {"loss": pytest.approx(3.0)}
    assert evaluated.version == 0


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


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize(("mode", "value"), [("max", 0.95), ("min", 0.85)])
def test_the_final_version_is_the_one_that_met_the_target(mode: str, value: float) -> None:
    target = MetricTarget(metric="x", value=0.9, mode=mode)  # type: ignore[arg-type]
    bench = Bench(spec(termination=Termination(target=target)), "a")
    bench.play("a", evaluation={"x": 0.87 if mode == "max" else 0.93})
    bench.deliver("a", evaluation={"x": value})
    (finished,) = bench.all(e.JobFinished)
    assert (finished.state, finished.version) == ("done", 1)
    assert "x reached" in finished.reason
    assert not bench.of(s.Commit)


def test_a_target_that_is_nan_is_not_met() -> None:
    target = MetricTarget(metric="x", value=0.9, mode="min")
    bench = Bench(spec(termination=Termination(target=target)), "a")
    bench.deliver("a", evaluation={"x": float("nan")})
    assert bench.phase == Phase.COMMITTING


def test_the_wall_clock_ends_a_job_in_a_round_with_the_version_that_it_has() -> None:
    bench = Bench(spec(termination=Termination(wall_clock_s=100.0)), "a")
    bench.play("a")
    assert bench.job.next_timer() == 1_100.0
    bench.wait(100.0)
    (finished,) = bench.all(e.JobFinished)
    assert (finished.state, finished.version) == ("done", 1)
    assert bench.job.next_timer() is None, "it may be kept until the store takes its last events"


def test_the_wall_clock_does_not_cut_a_commit_short() -> None:
    bench = Bench(spec(termination=Termination(wall_clock_s=100.0)), "a")
    bench.deliver("a")
    assert not bench.wait(200.0)
    bench.stored()
    assert [event.version for event in bench.all(e.JobFinished)] == [1]


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.TRAINING, Phase.COMMITTING, Phase.EVALUATING])
def test_a_job_can_be_stopped_at_any_time(phase: Phase) -> None:
    bench = Bench(spec(rounds=1, min_learners=2), "a")
    if phase is not Phase.WAITING:
        bench.up("b")
    if phase in (Phase.COMMITTING, Phase.EVALUATING):
        bench.deliver("a", "b")
    if phase is Phase.EVALUATING:
        bench.stored()
    assert bench.phase == phase
    bench.step(s.StopWanted("enough"))
    assert [(event.state, event.reason) for event in bench.all(e.JobFinished)] == [("stopped", "enough")]
    assert bench.of(s.Finish)
    assert bench.job.next_timer() is None or bench.phase == Phase.ENDED


def test_a_failed_commit_ends_the_job_and_one_from_elsewhere_does_not() -> None:
    bench = Bench(spec(), "a")
    assert not bench.step(s.CommitFailed("overflow"))
    bench.deliver("a")
    bench.step(s.CommitFailed("overflow"))
    assert [event.reason for event in bench.all(e.JobFinished)] == ["overflow"]


# ---------------------------------------------------------------- late, foreign, repeated


def test_late_foreign_and_repeated_signals_change_nothing() -> None:
    bench = Bench(spec(), "a", "b")
    bench.play("a", "b")
    bench.deliver("a")
    foreign, old = TaskRef(job="other", round=1), bench.ref("a", round=0)
    future = bench.ref("a", round=7)
    before = bench.job.state.pack(), dict.fromkeys("ab")
    for task in (foreign, old, future):
        for learner in ("a", "b", "stranger"):
            bench.step(s.TaskWasAccepted(learner, task))
            bench.step(s.TaskHasFailed(learner, task, "?"))
            bench.fold(learner, task)
            bench.step(s.UpdateWasRefused(learner, task, "?"))
            assert not bench.actions
            bench.result(learner, task)
            assert all(
                isinstance(action, s.Emit) and isinstance(action.event, e.TaskLate)
                for action in bench.actions
            )
    for task in (bench.ref("a"), bench.ref("b")):
        assert not bench.result("stranger", task)
        assert not bench.fold("stranger", task)
    for signal in (s.UpdateWasRefused("a", bench.ref("a"), "?"), s.TaskHasFailed("a", bench.ref("a"), "?")):
        assert not bench.step(signal)
    assert not bench.fold("a")
    assert not bench.result("a")
    assert not bench.stored()
    assert (bench.job.state.pack(), dict.fromkeys("ab")) == before
    assert bench.job.state.cohort.count(Status.DELIVERED) == 1


def test_a_result_that_is_late_is_said_to_be_once_however_often_it_comes() -> None:
    bench = Bench(spec(rounds=9), "a", "b")
    bench.play("a", "b")
    bench.play("a", "b")
    bench.play("a", "b")
    for _ in range(10):
        for learner, round in (("a", 0), ("a", 2), ("stranger", 1), ("stranger", 0)):
            bench.result(learner, bench.ref(round=round))
            bench.result(learner, TaskRef(job="job", round=round, attempt=7))
    assert [(one.learner, one.round) for one in bench.all(e.TaskLate)] == [
        ("a", 0),
        ("a", 2),
        ("stranger", 1),
    ]


def test_nothing_follows_after_the_end() -> None:
    bench = Bench(spec(), "a")
    bench.step(s.StopWanted("enough"))
    for signal in (s.TimePassed(), s.StopWanted("again"), s.LearnerUp("a"), s.ControllerRestarted(9)):
        assert not bench.step(signal)


# ---------------------------------------------------------------- reminders


def test_a_learner_that_has_nothing_is_sent_its_task_again_ever_less_often() -> None:
    bench = Bench(spec(), "a")
    sent_at = []
    for _ in range(100):
        bench.now += 5.0
        bench.step(s.LearnerReported("a", ()))
        if bench.asked():
            sent_at.append(bench.now - 1_000.0)
    assert sent_at == [10.0, 30.0, 70.0, 150.0, 310.0]


@pytest.mark.parametrize(
    ("settings", "leaves"),
    [(spec(), False), (spec(), True), (asynchronous(), False)],
    ids=["rounds", "leaving between", "asynchronous"],
)
def test_joining_again_and_again_has_the_task_sent_once_more_and_then_as_after_heartbeats(
    settings: JobSpec, leaves: bool
) -> None:
    bench = Bench(settings, "a", "b")
    sent_at = []
    for _ in range(1_000):
        bench.now += 0.1
        if leaves:
            bench.down("a", "it left")
        bench.up("a")
        if "a" in bench.asked():
            sent_at.append(round(bench.now - 1_000.0, 1))
    assert sent_at[0] == 0.1, "what it lacks is sent at once"
    assert len(sent_at) <= 3


def test_a_learner_that_works_on_its_task_is_left_alone() -> None:
    bench = Bench(spec(), "a")
    for _ in range(100):
        bench.now += 5.0
        assert not bench.step(s.LearnerReported("a", (holds(bench, "a", "training"),)))


def test_nobody_is_reminded_of_a_task_that_is_on_its_way() -> None:
    bench = Bench(spec(), "a")
    for _ in range(100):
        bench.now += 5.0
        assert not bench.step(s.LearnerReported("a", (), receiving=True))


def test_a_learner_that_goes_on_receiving_is_left_alone_and_one_that_is_stuck_gets_the_model_again() -> None:
    bench = Bench(spec(), "a")
    for percent in range(1, 50):
        bench.now += 5.0
        assert not bench.step(s.LearnerReported("a", (holds(bench, "a", "receiving", percent / 100),)))
    for _ in range(4):
        bench.now += 5.0
        bench.step(s.LearnerReported("a", (holds(bench, "a", "receiving", 0.49),)))
        if bench.asked():
            return
    pytest.fail("parts of the model were lost, and nobody sent them again")


def test_a_finished_learner_whose_update_does_not_come_is_asked_for_it() -> None:
    bench = Bench(spec(), "a")
    bench.now += 11.0
    bench.step(s.LearnerReported("a", (holds(bench, "a", "finished"),)))
    assert [action.learner for action in bench.of(s.RequestUpload)] == ["a"]


# ---------------------------------------------------------------- turns for uploading

ONE_AT_A_TIME = Transfer(upload_budget_bytes=150)


def test_updates_that_do_not_fit_the_budget_are_asked_for_one_after_the_other() -> None:
    bench = Bench(spec(transfer=ONE_AT_A_TIME), "a", "b", "c")
    assert [action.upload_on_request for action in bench.of(s.SendTasks)] == [True]
    asked = []
    for learner in "abc":
        asked += [action.learner for action in bench.result(learner) if isinstance(action, s.RequestUpload)]
    assert asked == ["a"]
    for learner, then in (("a", ["b"]), ("b", ["c"])):
        bench.fold(learner)
        assert [action.learner for action in bench.of(s.RequestUpload)] == then
    bench.fold("c")
    assert bench.phase == Phase.COMMITTING


@pytest.mark.parametrize("way", ["down", "fail", "refuse"])
def test_a_turn_passes_on_when_who_had_it_is_gone(way: str) -> None:
    bench = Bench(spec(transfer=ONE_AT_A_TIME, quorum=0.3), "a", "b")
    bench.result("a")
    bench.result("b")
    getattr(bench, way)("a")
    assert [action.learner for action in bench.of(s.RequestUpload)] == ["b"]


def test_a_learner_started_anew_gives_its_turn_away_and_gets_another() -> None:
    bench = Bench(spec(transfer=ONE_AT_A_TIME), "a", "b")
    bench.result("a")
    bench.result("b")
    bench.up("a")
    assert bench.asked() == {"a"}
    assert [action.learner for action in bench.of(s.RequestUpload)] == ["b"]
    bench.fold("b")
    bench.result("a")
    assert [action.learner for action in bench.of(s.RequestUpload)] == ["a"]


@pytest.mark.parametrize("says", ["finished", "training"])
def test_a_turn_without_progress_passes_on_whatever_its_holder_says(says: str) -> None:
    bench = Bench(spec(transfer=ONE_AT_A_TIME), "a", "b")
    bench.result("a")
    bench.result("b")
    bench.now += 11.0
    bench.step(s.LearnerReported("a", (holds(bench, "a", says),)))
    assert [action.learner for action in bench.of(s.RequestUpload)] == ["b"]
    bench.fold("b")
    assert [action.learner for action in bench.of(s.RequestUpload)] == ["a"]


def test_who_uploads_for_ever_holds_up_nobody_for_ever_and_only_itself_is_late() -> None:
    bench = Bench(
        spec(transfer=ONE_AT_A_TIME, quorum=0.3, deadline_s=60.0, selector=SelectAll(exclude_after=1)),
        *("hog", "a", "b"),
    )
    for learner in ("hog", "a", "b"):
        bench.result(learner)
    asked, turns_end = list[str](), bench.now + 60.0
    while bench.now < turns_end - 5.0 and not asked:
        bench.now += 5.0
        bench.step(s.LearnerReported("hog", (holds(bench, "hog", "finished"),), receiving=True))
        bench.step(s.LearnerReported("a", (holds(bench, "a", "finished"),)))
        asked = [action.learner for action in bench.of(s.RequestUpload)]
    assert asked == ["a"]
    bench.fold("a")
    bench.now = turns_end
    bench.step(s.TimePassed())
    late = {event.learner: event.cancelled for event in bench.all(e.TaskLate)}
    assert (bench.phase, late) == (Phase.COMMITTING, {"hog": False, "b": True})
    assert [event.learner for event in bench.all(e.LearnerExcluded)] == ["hog"]


def test_a_turn_that_has_just_begun_is_not_taken_away_for_how_long_it_was_waited_for() -> None:
    bench = Bench(spec(transfer=ONE_AT_A_TIME), "a", "b", "c")
    for learner in ("a", "b", "c"):
        bench.result(learner)
    bench.now += 60.0  # a's upload takes long
    bench.step(s.LearnerReported("a", (holds(bench, "a", "finished"),), receiving=True))
    bench.fold("a")
    assert [action.learner for action in bench.of(s.RequestUpload)] == ["b"]
    bench.now += 0.1
    bench.step(s.LearnerReported("b", (holds(bench, "b", "finished"),)))  # it has not heard of it yet
    assert not bench.of(s.RequestUpload)
    bench.now += 60.0
    bench.step(s.LearnerReported("b", (holds(bench, "b", "finished"),)))  # it never will
    assert [action.learner for action in bench.of(s.RequestUpload)] == ["c"]


def test_results_of_an_evaluation_need_no_turn() -> None:
    bench = Bench(spec(rounds=1, transfer=ONE_AT_A_TIME), "a", "b")
    bench.play("a", "b")
    heir = bench.restarted()
    for learner in "ab":
        heir.up(learner, holds(heir, learner, "finished"))
        assert [action.learner for action in heir.of(s.RequestUpload)] == [learner]


# ---------------------------------------------------------------- another controller


def test_another_controller_goes_on_with_the_round_under_the_same_ids() -> None:
    bench = Bench(spec(deadline_s=60.0), "a", "b")
    bench.play("a", "b")
    bench.deliver("a")
    heir = bench.restarted()
    assert (heir.job.state.round, heir.job.state.version, heir.phase) == (1, 1, "training")
    heir.up("a", holds(heir, "a", "finished"))
    assert [action.learner for action in heir.of(s.RequestUpload)] == ["a"]
    heir.up("b", holds(heir, "b", "training"))
    assert not heir.actions
    heir.deliver("a", "b")
    assert heir.phase == Phase.COMMITTING


def test_a_controller_that_was_away_past_the_deadline_gives_the_round_its_time_again() -> None:
    bench = Bench(spec(deadline_s=60.0, max_retries=0), "a")
    bench.now += 1_000.0
    heir = bench.restarted()
    heir.wait(1.0)
    assert heir.phase == Phase.TRAINING
    heir.up("a", holds(heir, "a", "finished"))
    heir.deliver("a")
    assert heir.phase == Phase.COMMITTING


def test_a_failed_learner_stays_failed_for_the_next_controller_once_that_was_saved() -> None:
    bench = Bench(spec(), "a", "b")
    bench.fail("a")
    bench.fail("b")
    heir = bench.restarted()
    assert {heir.ref(learner).attempt for learner in "ab"} == {1}


def test_the_state_that_goes_with_a_version_begins_the_next_round() -> None:
    bench = Bench(spec(), "a")
    bench.deliver("a")
    packed = bench.after_commit()
    assert bench.phase == Phase.COMMITTING, "asking for it changes nothing"
    bench.stored()
    from broker_fl.coordination.state import JobState

    after = JobState.unpack(packed, bench.now)
    assert (after.round, after.version, after.phase, len(after.cohort)) == (1, 1, Phase.IDLE, 0)


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


# ---------------------------------------------------------------- pausing


def test_a_paused_job_finishes_its_round_and_begins_no_other() -> None:
    bench = Bench(spec(), "a")
    bench.step(s.PauseWanted("maintenance"))
    assert bench.all(e.JobPaused)[0].reason == "maintenance"
    bench.play("a")
    assert (bench.asked(), bench.phase, bench.job.state.version) == (set(), Phase.IDLE, 1)
    assert bench.job.state.summary().state == "paused"
    bench.wait(1e6)
    assert bench.asked() == set()
    bench.step(s.ResumeWanted())
    assert bench.asked() == {"a"}
    assert bench.job.state.summary().state == "running"


def test_a_job_is_stepped_a_round_at_a_time() -> None:
    bench = Bench(spec(rounds=3), "a")
    bench.step(s.PauseWanted(""))
    bench.play("a")
    for version in (2, 3):
        bench.step(s.ResumeWanted(versions=1))
        assert bench.asked() == {"a"}
        bench.play("a")
        assert (bench.asked(), bench.job.state.version) == (set(), version)
    bench.step(s.ResumeWanted(versions=1))
    assert bench.phase == Phase.EVALUATING


def test_a_pause_does_not_count_as_time_and_survives_the_controller() -> None:
    bench = Bench(spec(termination=Termination(wall_clock_s=100.0)), "a")
    bench.wait(40.0)
    bench.step(s.PauseWanted(""))
    bench.play("a")
    assert bench.job.next_timer() is None
    bench.wait(1_000.0)
    heir = bench.restarted()
    assert (heir.asked(), heir.job.state.is_paused) == (set(), True)
    heir.up("a")
    heir.step(s.ResumeWanted())
    assert heir.asked() == {"a"}
    assert heir.job.next_timer() == heir.now + 60.0


def test_a_paused_job_can_be_stopped() -> None:
    bench = Bench(spec(), "a")
    bench.step(s.PauseWanted(""))
    bench.play("a")
    bench.step(s.StopWanted("enough"))
    assert [event.state for event in bench.all(e.JobFinished)] == ["stopped"]


def test_a_job_with_residuals_stores_with_each_version_whose_updates_are_in_it() -> None:
    transfer = Transfer(encoding="int8")
    bench = Bench(spec(deadline_s=60.0, quorum=0.5, transfer=transfer), "a", "b")
    bench.play("a", "b")
    assert bench.job.state.counted == {"a": 0, "b": 0}
    bench.deliver("a")
    bench.wait(61.0)
    assert bench.phase == Phase.COMMITTING
    stored = JobState.unpack(bench.after_commit(), bench.now)
    assert stored.counted == {"a": 1, "b": 0}
    bench.stored()
    assert bench.job.state.counted == stored.counted
    lossless = Bench(spec(), "a")
    lossless.play("a")
    assert lossless.job.state.counted == {}


# ---------------------------------------------------------------- what the record says of the late


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


def test_metrics_are_averaged_by_the_weights_that_the_rule_gave() -> None:
    bench = Bench(spec(), "honest", "boaster")
    bench.result("honest", num_examples=1, metrics={"loss": 1.0})
    bench.fold("honest")
    bench.result("boaster", num_examples=10**15, metrics={"loss": 9.0})
    bench.fold("boaster")
    bench.stored()
    assert bench.all(e.VersionCommitted)[0].metrics == {"loss": 5.0}


def test_a_target_that_nobody_measures_fails_the_job_after_its_first_evaluation() -> None:
    termination = Termination(target=MetricTarget(metric="acuracy", value=0.9))
    bench = Bench(spec(termination=termination), "a")
    bench.deliver("a", evaluation={"loss": 1.0, "accuracy": 0.5}, evaluation_examples=1)
    (finished,) = bench.all(e.JobFinished)
    assert finished.state == "failed"
    assert "no learner reports the metric 'acuracy'" in finished.reason
    assert "there are: accuracy, loss" in finished.reason
