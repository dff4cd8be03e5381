"""Whole jobs that go as they should, on the memory transport."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from broker_fl.errors import BrokerUnavailable, RequestRefused
from broker_fl.interfaces import TaskContext
from broker_fl.model import DTYPES, Array, Arrays, Model
from broker_fl.wire import events as e
from broker_fl.wire.job import MetricTarget, Termination, Transfer
from broker_fl.wire.selectors import SelectRandom
from tests.unit.roles.stage import Adds, Halts, Stage, done, eventually, kinds, model_of, same, spec


@pytest.fixture
def stage(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Stage(tmp_path) as made:
        yield made


def test_the_final_model_is_the_one_computed_by_hand(stage: Stage) -> None:
    """Each round adds (1 × 1 + 3 × 3 + 4 × 0.25) / 8 = 1.375."""
    learners = {
        "a": Adds(1.0, num_examples=1),
        "b": Adds(3.0, num_examples=3),
        "c": Adds(0.25, num_examples=4),
    }
    job = stage.run(learners, rounds=4)
    finished = done(job)
    same(job.model(), model_of(4 * 1.375))
    assert (finished.version, finished.metrics) == (4, {"first": 5.5})
    assert [learner.num_trained for learner in learners.values()] == [4, 4, 4]


def test_events_are_complete_numbered_and_in_order(stage: Stage) -> None:
    job = stage.run({"a": Adds(1.0)}, rounds=2)
    seen = list(job.events())
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    assert seen == list(job.events(follow=False))
    assert isinstance(seen[0], e.JobSubmitted)
    assert isinstance(seen[-1], e.JobFinished)
    steps = [
        event.KIND for event in seen if event.KIND not in ("task_sent", "task_accepted", "learner_joined")
    ]
    one_round = ["round_started", "task_finished", "update_folded", "version_evaluated", "version_committed"]
    end = ["round_started", "task_finished", "version_evaluated", "job_finished"]
    assert [kind for kind in steps if kind != "job_waiting"] == [
        "job_submitted",
        *one_round,
        *one_round,
        *end,
    ]
    assert all(event.time_s > 1e9 for event in seen)


def test_every_type_of_tensor_gets_through(stage: Stage) -> None:
    model: dict[str, Array] = {name: np.full((2, 3), 1, dtype) for name, dtype in DTYPES.items()}
    model |= {
        "w": np.zeros(4, np.float32),
        "empty": np.zeros((0, 5), np.float32),
        "scalar": np.array(2, np.int64),
    }
    job = stage.run({"a": Adds(1.0), "b": Adds(3.0)}, model, rounds=2)
    done(job)
    final = job.model()
    for name in ("float16", "bfloat16", "float32", "float64"):
        np.testing.assert_array_equal(final[name].astype(np.float64), 5.0)
    for name in ("int8", "int16", "int32", "int64", "uint8"):
        np.testing.assert_array_equal(final[name], 3)
    assert final["bool"].all()
    assert final["scalar"] == 4
    assert final["empty"].shape == (0, 5)


@pytest.mark.parametrize("encoding", ["raw", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_models_of_many_chunks_in_every_encoding_with_uploads_at_once_or_in_turns(
    stage: Stage, encoding: str, budget: int
) -> None:
    transfer = Transfer(encoding=encoding, chunk_bytes=4096, upload_budget_bytes=budget)
    job = stage.run(
        {name: Adds(2.0) for name in "abc"}, model_of(1.0, size=10_007), rounds=3, transfer=transfer
    )
    done(job)
    same(job.model(), model_of(7.0, size=10_007))


def test_a_driver_fetches_any_version_that_is_kept_even_while_the_job_runs(stage: Stage) -> None:
    adds = Halts(1.0, after=3)
    job = stage.run({"a": adds}, rounds=6, keep_versions=4)
    for event in job.events():
        if isinstance(event, e.VersionCommitted) and event.version == 3:
            same(job.model(3), model_of(3.0))
            same(job.model(1), model_of(1.0))
            adds.go_on()
    same(job.model(), model_of(6.0))
    assert [version.version for version in job.versions()] == [3, 4, 5, 6]
    with pytest.raises(RequestRefused, match=r"no version 1; kept are: 3, 4, 5, 6"):
        job.model(1)


def test_two_jobs_at_once_do_not_mix(stage: Stage) -> None:
    learners = {"a": Adds(1.0), "b": Adds(1.0)}
    first = stage.run(learners, rounds=5)
    second = stage.submit(model_of(100.0, size=50), rounds=4)
    done(first)
    done(second)
    same(first.model(), model_of(5.0))
    same(second.model(), model_of(104.0, size=50))
    assert {summary.job for summary in stage.driver.jobs()} == {first.id, second.id}


def test_random_selection_takes_as_many_as_asked_and_not_always_the_same(stage: Stage) -> None:
    job = stage.run({name: Adds(1.0) for name in "abcd"}, rounds=6, selector=SelectRandom(count=2, seed=3))
    done(job)
    cohorts = [event.cohort for event in job.events(follow=False) if isinstance(event, e.RoundStarted)]
    assert {len(cohort) for cohort in cohorts} == {2}
    assert len(set(cohorts)) > 1
    same(job.model(), model_of(6.0))


def test_learners_let_go_of_what_they_hold_once_the_job_has_ended_without_them(tmp_path: Path) -> None:
    """A learner that was in the first cohort only would keep its update, as large as the model, for ever."""
    with Stage(tmp_path, heartbeat_s=0.2) as stage:
        job = stage.run(
            {name: Adds(1.0) for name in "abcd"}, rounds=5, selector=SelectRandom(count=1, seed=3)
        )
        done(job)
        seats = stage.hosts[0]._learners.parties
        eventually(lambda: not any(seat.statuses() for seat in seats), "letting go")


def test_a_target_ends_the_job_with_the_version_that_met_it(stage: Stage) -> None:
    target = MetricTarget(metric="first", value=3.0)
    job = stage.run({"a": Adds(1.0)}, termination=Termination(target=target))
    assert done(job).version == 3
    same(job.model(), model_of(3.0))


class Boasts(Adds):
    """Says that whatever it is given is perfect, by all the examples in the world."""

    def evaluate(self, model: Arrays, task: TaskContext) -> Mapping[str, float]:
        return {"first": 1e30, "num_examples": 10**15}


def test_one_learner_that_boasts_ends_no_job_before_the_others_meet_the_target(stage: Stage) -> None:
    target = MetricTarget(metric="first", value=3.0)
    learners = {"a": Adds(1.0), "b": Adds(1.0), "mallory": Boasts(1.0)}
    job = stage.run(learners, termination=Termination(target=target))
    assert done(job).version == 3


# ---------------------------------------------------------------- drivers


def test_several_threads_and_latecomers_see_the_same_events(stage: Stage) -> None:
    adds = Adds(1.0)
    adds.gate.clear()
    job = stage.run({"a": adds}, rounds=5)
    seen: dict[int, list[str]] = {}

    def watch(number: int) -> None:
        driver = stage.driver if number % 2 else stage.connect()
        seen[number] = [event.to_json() for event in driver.job(job.id).events()]

    threads = [threading.Thread(target=watch, args=(number,)) for number in range(4)]
    for thread in threads[:2]:
        thread.start()
    assert adds.at_work.wait(30)
    for thread in threads[2:]:
        thread.start()
    adds.gate.set()
    done(job)
    for thread in threads:
        thread.join(30)
    watch(4)
    assert len(seen) == 5
    assert len({tuple(events) for events in seen.values()}) == 1


def test_a_job_is_stopped_and_keeps_what_it_has(stage: Stage) -> None:
    adds = Adds(1.0)
    job = stage.run({"a": adds}, rounds=1_000_000)
    for event in job.events():
        if isinstance(event, e.VersionCommitted) and event.version == 2:
            adds.gate.clear()
            job.stop("that will do")
    finished = job.wait()
    assert (finished.state, finished.reason) == ("stopped", "that will do")
    same(job.model(), model_of(float(finished.version)))
    job.stop("once more changes nothing")
    assert job.wait() == finished
    assert kinds(job)[-1] == "job_finished", "no event follows the last one"


def test_questions_about_a_job_that_is_not_there_are_refused_with_its_name(stage: Stage) -> None:
    stage.controller()
    job = stage.driver.job("no-such-job")
    for ask in (job.model, job.stop, job.versions, job.wait, job.history):
        with pytest.raises(RequestRefused, match="no job 'no-such-job'"):
            ask()


def test_without_a_controller_a_request_says_what_to_look_for(stage: Stage) -> None:
    driver = stage.connect(timeout_s=0.2)
    with pytest.raises(BrokerUnavailable, match="is one running"):
        driver.jobs()
    with pytest.raises(BrokerUnavailable, match="controller"):
        driver.submit(spec(), model_of())


def test_a_request_sent_before_the_controller_was_there_is_answered(stage: Stage) -> None:
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(stage.driver.jobs()))
    thread.start()
    stage.controller()
    thread.join(30)
    assert answers == [()]


def test_a_model_without_elements_is_refused(stage: Stage) -> None:
    stage.controller()
    with pytest.raises(RequestRefused, match="no elements"):
        stage.submit({"a": np.zeros((0, 3), np.float32)})


def test_a_history_has_every_round(stage: Stage) -> None:
    job = stage.run({"a": Adds(1.0), "b": Adds(1.0)}, rounds=3)
    done(job)
    assert job.history() is not None
    assert len([kind for kind in kinds(job) if kind == "version_committed"]) == 3


# ---------------------------------------------------------------- coming and going


def test_a_learner_that_is_stopped_finishes_its_task_first(stage: Stage) -> None:
    stage.controller()
    adds = Adds(1.0)
    adds.gate.clear()
    host = stage.host({"a": adds})
    job = stage.submit(rounds=1, evaluate=False)
    assert adds.at_work.wait(30)
    stopping = threading.Thread(target=host.stop)
    stopping.start()
    adds.gate.set()
    stopping.join(30)
    done(job)
    same(job.model(), model_of(1.0))
    eventually(lambda: not stage.driver.learners(), "leaving")


def test_a_learner_that_is_stopped_while_it_receives_a_model_still_says_that_it_leaves(stage: Stage) -> None:
    stage.controller()
    host = stage.host({"a": Adds(1.0)})
    stage.submit(model_of(1.0, size=500_000), rounds=1, transfer=Transfer(chunk_bytes=4096))
    host.stop(drain_s=0.0)
    assert host.error is None
    eventually(lambda: not stage.driver.learners(), "leaving")


def test_a_learner_that_leaves_in_a_round_is_not_waited_for(stage: Stage) -> None:
    stage.controller()
    stays, leaves = Adds(1.0), Adds(5.0)
    leaves.gate.clear()
    stage.host({"stays": stays})
    host = stage.host({"leaves": leaves})
    job = stage.submit(rounds=2, min_learners=2)
    assert leaves.at_work.wait(30)
    host.stop(drain_s=0.0, reason="going home")
    eventually(lambda: "version_committed" in kinds(job), "the round")
    stage.host({"another": Adds(1.0)})
    done(job)
    same(job.model(), model_of(2.0))
    assert "learner_left" in kinds(job)


def test_a_saved_model_is_the_one_that_was_fetched(stage: Stage, tmp_path: Path) -> None:
    job = stage.run({"a": Adds(1.0)}, rounds=1)
    done(job)
    job.model().save(tmp_path / "final.safetensors")
    same(Model.load(tmp_path / "final.safetensors"), model_of(1.0))
