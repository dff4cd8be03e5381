"""Asynchronous jobs, pacing, pausing: what the history says of every task and of where versions come from."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker_fl.record.history import History
from broker_fl.record.tasks import Spread
from broker_fl.wire import events as ev
from broker_fl.wire.messages import VersionRef
from tests.unit.record.asynchronous import asynchronous_events, paced_events
from tests.unit.record.events import fake_events

ORDER = ("sent_s", "accepted_s", "started_s", "finished_s", "received_s", "folded_s", "committed_s")


@pytest.mark.parametrize("buffer", [1, 4])
def test_every_update_of_an_asynchronous_job_is_found_in_the_version_that_holds_it(buffer: int) -> None:
    events = asynchronous_events(buffer=buffer)
    history = History.of(events)
    commits = {event.version: event for event in events if isinstance(event, ev.VersionCommitted)}
    folds = [event for event in events if isinstance(event, ev.UpdateFolded)]
    for number, commit in commits.items():
        inside = folds[(number - 1) * buffer : number * buffer]
        rows = [history.rounds[fold.round].tasks[fold.learner] for fold in inside]
        assert {row.committed_version for row in rows} == {number}
        assert {row.committed_s for row in rows} == {commit.time_s}
        assert [row.staleness for row in rows] == [number - 1 - fold.round for fold in inside]
        version = history.versions[number]
        assert version.num_contributors == buffer
        assert version.mean_staleness == pytest.approx(np.mean([row.staleness for row in rows]))
        assert version.max_staleness == max(row.staleness or 0 for row in rows)
        spread = history.training_spread(version, "loss")
        values = [row.metrics["loss"] for row in rows]
        assert spread is None or (spread.min, spread.max) == (min(values), max(values))


@pytest.mark.parametrize("events", [fake_events(), asynchronous_events(), paced_events()])
def test_the_moments_of_a_task_are_in_order(events: list[ev.Event]) -> None:
    for record in History.of(events).rounds.values():
        for task in record.tasks:
            moments = [getattr(task, name) for name in ORDER]
            reached = [moment for moment in moments if moment is not None]
            assert all(later >= earlier - 1e-6 for earlier, later in pairwise(reached))
            assert task.outcome != "folded" or record.state == "unfinished" or len(reached) == len(ORDER)


def test_an_asynchronous_job_says_who_is_at_work() -> None:
    events = asynchronous_events(num_learners=5)
    history = History()
    states = set()
    for event in events:
        if isinstance(event, ev.TaskLate | ev.JobFinished):
            break
        history.add(event)
        states.add(history.state)
    assert history.asynchronous
    assert states == {"submitted", "running"}
    assert len(history.open) == 4, "the fifth has delivered the last update that was wanted"
    history = History.of(events)
    assert not history.open
    assert {record.state for record in history.rounds.values()} == {"committed"}


def test_a_task_that_is_given_again_at_the_same_version_does_not_hide_the_one_that_failed() -> None:
    history = History.of(asynchronous_events())
    tasks = history.rounds[0].tasks
    (failed,) = tasks.earlier
    assert (failed.learner, failed.outcome, failed.reason) == (
        "site-02", "failed", "RuntimeError: CUDA out of memory",
    )  # fmt: skip
    assert tasks["site-02"].attempt == 1
    rows = [row for row in history.to_rows("tasks") if row["round"] == 0 and row["learner"] == "site-02"]
    assert [row["attempt"] for row in rows] == [0, 1]
    frame = history.to_pandas("tasks")
    assert len(frame) == len(list(history.to_rows("tasks")))


def test_the_lineage_goes_back_to_the_version_that_the_job_began_with() -> None:
    about: Any = {"job": "j", "digest": "", "contributors": ("a",), "total_weight": 1.0}
    about |= {"round_s": 1.0, "aggregate_s": 0.0, "store_s": 0.0}
    events = fake_events(num_rounds=1)
    submitted = events[0].model_copy(update={"job": "j", "parent": VersionRef(job="older", version=7)})
    history = History.of(
        [
            submitted,
            ev.VersionCommitted(**about, round=0, version=1, parent=0, rule="fedavg"),
            ev.VersionCommitted(**about, round=1, version=2, parent=1, rule="fedadam"),
            ev.VersionCommitted(**about, round=2, version=3, parent=1, rule="median"),
        ]
    )
    assert [(version.version, version.rule) for version in history.lineage()] == [
        (3, "median"), (1, "fedavg"), (0, ""),
    ]  # fmt: skip
    assert [version.version for version in history.lineage(2)] == [2, 1, 0]
    assert history.parent == VersionRef(job="older", version=7)


def test_what_pacing_asked_for_and_what_was_done_are_told_apart() -> None:
    history = History.of(paced_events())
    slow, fast = history.rounds[3].tasks["site-03"], history.rounds[3].tasks["site-01"]
    assert (slow.workload, fast.workload) == ({"epochs": 1.0}, {"epochs": 4.0})
    assert fast.num_epochs == 2.0
    assert fast.train_s is not None
    assert fast.ms_per_epoch == pytest.approx(fast.train_s * 500)
    assert fast.ms_per_step == pytest.approx(fast.train_s * 50)
    assert fast.peak_memory_bytes == 212_000_000
    assert history.learners["site-01"].peak_memory_bytes == 248_000_000
    assert history.rounds[3].memory_bytes == 120_900_000


def test_bytes_go_to_each_learner_and_come_from_each() -> None:
    sent = ev.TaskSent(job="j", round=0, learners=("a", "b"), num_bytes=300, num_messages=4, send_s=0.1)
    folded = ev.UpdateFolded(job="j", round=0, learner="a", weight=1.0, num_bytes=120, num_messages=2)
    history = History.of([sent, folded])
    task = history.rounds[0].tasks["a"]
    assert (task.bytes_down, task.messages_down, task.bytes_up, task.messages_up) == (150, 2, 120, 2)
    assert (history.bytes_down, history.learners["b"].bytes_down, history.bytes_up) == (300, 150, 120)


def test_a_job_that_is_paused_says_so_until_it_goes_on() -> None:
    started = ev.RoundStarted(job="j", round=0, version=0, cohort=("a",))
    history = History.of([started, ev.JobPaused(job="j", reason="night")])
    assert (history.state, history.reason) == ("paused", "night")
    history.add(ev.TaskSent(job="j", round=0, learners=("a",), num_bytes=1, num_messages=1, send_s=0.0))
    assert history.state == "paused", "the open round is finished while the job is paused"
    history.add(ev.JobUnpaused(job="j", versions=1))
    assert (history.state, [incident.kind for incident in history.incidents]) == (
        "running", ["paused", "unpaused"],
    )  # fmt: skip


def test_a_round_that_the_end_of_the_job_cut_short_does_not_run_for_ever() -> None:
    finished = ev.JobFinished(
        job="j", state="stopped", reason="stopped by Ctrl-C", version=0, rounds=0, duration_s=1.0
    )
    history = History.of([ev.RoundStarted(job="j", round=0, version=0, cohort=("a",)), finished])
    assert history.rounds[0].state == "unfinished"


@given(st.lists(st.floats(), max_size=40))
@example([5e-324])
@example([5e-324] * 3)
@example([sys.float_info.max] * 3)
@settings(deadline=None)
def test_quartiles_and_mean_lie_between_the_ends(values: list[float]) -> None:
    spread = Spread.of(np.array(values, dtype=np.float64))
    finite = [value for value in values if math.isfinite(value)]
    assert (spread is None) == (not finite)
    if spread is not None:
        assert spread.min <= spread.lower <= spread.upper <= spread.max
        assert spread.min <= spread.mean <= spread.max
        assert spread.num_learners == len(finite)


def test_a_learner_whose_work_is_not_needed_any_more_is_not_counted_as_late() -> None:
    history = History.of(asynchronous_events(num_learners=5))
    assert (history.counts["cancelled"], history.counts["late"]) == (4, 0)
    assert not [incident for incident in history.incidents if "enough" in incident.reason]
    cancelled = [
        task for record in history.rounds.values() for task in record.tasks if task.outcome == "cancelled"
    ]
    assert {task.reason for task in cancelled} == {"the job has enough updates"}
    assert sum(learner.cancelled for learner in history.learners.values()) == 4


def test_running_evaluations_have_the_spread_over_every_learners_newest() -> None:
    about: Any = {"job": "j", "num_examples": 1}
    submitted = asynchronous_events(num_versions=1)[0].model_copy(update={"job": "j"})
    finished = [
        ev.TaskFinished(**about, round=number, learner=name, evaluation={"accuracy": value})
        for number, name, value in ((0, "a", 0.1), (0, "b", 0.3), (1, "a", 0.5))
    ]
    evaluated = ev.VersionEvaluated(**about, round=2, version=1, metrics={"accuracy": 0.4}, num_learners=2)
    history = History.of([submitted, *finished, evaluated])
    spread = history.evaluation_spread(history.versions[1], "accuracy")
    assert spread is not None
    assert (spread.min, spread.max, spread.num_learners) == (0.3, 0.5, 2)
    unseen = evaluated.model_copy(update={"num_learners": 3, "version": 2})
    history.add(unseen)
    assert history.evaluation_spread(history.versions[2], "accuracy") is None, "one evaluation was not seen"
