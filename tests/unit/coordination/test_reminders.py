"""What is sent again, and whose turn it is to upload."""

from __future__ import annotations

import pytest

from broker_fl.coordination import signals as s
from broker_fl.coordination.state import Phase
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec, Transfer
from broker_fl.wire.selectors import SelectAll
from tests.unit.coordination.bench import Bench, asynchronous, holds, spec

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
