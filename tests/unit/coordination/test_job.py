"""A job from its first round to its end, whoever controls it."""

from __future__ import annotations

import pytest

from broker_fl.coordination import signals as s
from broker_fl.coordination.cohort import Status
from broker_fl.coordination.state import JobState, Phase
from broker_fl.wire import events as e
from broker_fl.wire.job import MetricTarget, Termination, Transfer
from broker_fl.wire.messages import TaskRef
from tests.unit.coordination.bench import Bench, holds, spec

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


def test_a_target_that_nobody_measures_fails_the_job_after_its_first_evaluation() -> None:
    termination = Termination(target=MetricTarget(metric="acuracy", value=0.9))
    bench = Bench(spec(termination=termination), "a")
    bench.deliver("a", evaluation={"loss": 1.0, "accuracy": 0.5}, evaluation_examples=1)
    (finished,) = bench.all(e.JobFinished)
    assert finished.state == "failed"
    assert "no learner reports the metric 'acuracy'" in finished.reason
    assert "there are: accuracy, loss" in finished.reason


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
    after = JobState.unpack(packed, bench.now)
    assert (after.round, after.version, after.phase, len(after.cohort)) == (1, 1, Phase.IDLE, 0)


# ---------------------------------------------------------------- what goes with a version


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


def test_metrics_are_averaged_by_the_weights_that_the_rule_gave() -> None:
    bench = Bench(spec(), "honest", "boaster")
    bench.result("honest", num_examples=1, metrics={"loss": 1.0})
    bench.fold("honest")
    bench.result("boaster", num_examples=10**15, metrics={"loss": 9.0})
    bench.fold("boaster")
    bench.stored()
    assert bench.all(e.VersionCommitted)[0].metrics == {"loss": 5.0}
