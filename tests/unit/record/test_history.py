"""The history that is folded from a job's events."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl.errors import SettingError
from broker_fl.record.history import History
from broker_fl.record.tasks import MAX_METRICS
from broker_fl.wire import events as ev
from broker_fl.wire.messages import Timings
from tests.unit.record.asynchronous import asynchronous_events
from tests.unit.record.events import MODEL_BYTES, fake_events

EVENTS = fake_events()
ASYNCHRONOUS = asynchronous_events(buffer=3)


@pytest.fixture
def history() -> History:
    return History.of(EVENTS)


def test_a_job_is_followed_from_its_submission_to_its_end() -> None:
    history = History()
    states: list[str] = []
    for event in EVENTS:
        history.add(event)
        if not states or states[-1] != history.state:
            states.append(history.state)
    assert states == ["submitted", "waiting", "running", "done"]
    assert history.reason == "20 rounds are done"
    assert history.duration_s == pytest.approx(EVENTS[-1].time_s - EVENTS[0].time_s)
    assert len(history.committed) == 20
    assert history.metrics["accuracy"] == pytest.approx(0.95, abs=0.01)


def test_a_task_has_its_times_sizes_and_metrics(history: History) -> None:
    task = history.rounds[4].tasks["site-07"]
    assert task.outcome == "folded"
    times = [task.sent_s, task.accepted_s, task.finished_s, task.folded_s]
    assert times == sorted(time_s for time_s in times if time_s)
    assert task.bytes_up == MODEL_BYTES
    assert task.weight == task.num_examples
    assert set(task.evaluation) == {"accuracy", "loss"}
    assert set(task.metrics) == {"loss"}


def test_what_went_wrong_is_kept_with_its_reason(history: History) -> None:
    failed = history.rounds[4].tasks["site-05"]
    refused = history.rounds[9].tasks["site-08"]
    late = history.rounds[0].tasks["site-03"]
    assert (failed.outcome, failed.reason) == ("failed", "RuntimeError: CUDA out of memory")
    assert (refused.outcome, refused.reason) == ("refused", "tensor 'dense.weight': 3 values are not finite")
    assert (late.outcome, late.ended_s) == ("late", late.finished_s)
    assert {incident.kind for incident in history.incidents} == {
        "failed", "late", "refused", "retried", "lost", "waiting",
    }  # fmt: skip
    assert history.counts == Counter(folded=190, late=7, failed=2, refused=1)
    assert history.learners["site-05"].failed == 2


def test_the_spread_over_learners_holds_the_mean(history: History) -> None:
    spread = history.rounds[3].evaluation_spread("accuracy")
    assert spread
    assert spread.min < spread.mean < spread.max
    assert spread.num_learners == 10
    assert history.rounds[3].evaluation_spread("no such metric") is None


def test_a_retried_round_begins_anew_but_forgets_no_failure(history: History) -> None:
    record = history.rounds[12]
    assert record.attempt == 1
    assert record.counts["sent"] == 10
    assert {task.attempt for task in record.tasks} == {1}
    assert {(task.attempt, task.learner) for task in record.tasks.earlier} == {
        (0, f"site-{index:02d}") for index in range(10)
    }
    assert record.messages_down == 4
    assert history.learners["site-01"].tasks == 22


def test_the_evaluation_after_the_last_round_makes_no_version(history: History) -> None:
    last = history.current
    assert last is not None
    assert (last.round, last.train, last.state) == (20, False, "evaluated")
    assert history.versions[20].evaluation == last.evaluation
    assert max(history.versions) == 20


def test_versions_know_their_round_and_contributors(history: History) -> None:
    version = history.versions[5]
    assert version.round == 4
    assert "site-05" not in version.contributors
    assert len(version.contributors) == 9
    assert version.num_evaluators == 10
    assert history.versions[0].evaluation["accuracy"] == pytest.approx(0.1)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_doubled_events_change_nothing(seed: int) -> None:
    draw = random.Random(seed)
    doubled: list[ev.Event] = []
    events = draw.choice((EVENTS, ASYNCHRONOUS))
    for event in events:
        doubled.append(event)
        if draw.random() < 0.3:
            doubled.append(draw.choice(doubled))
    assert History.of(doubled).to_json() == History.of(events).to_json()


def test_an_event_that_was_missed_is_folded_when_it_comes_after_all() -> None:
    index = next(i for i, event in enumerate(EVENTS) if isinstance(event, ev.TaskFailed))
    later = [*EVENTS[:index], *EVENTS[index + 1 :]]
    history = History.of(later)
    assert history.counts["failed"] == 1
    assert history.add(EVENTS[index])
    assert history.counts["failed"] == 2
    assert not history.add(EVENTS[index])


def test_events_of_another_job_are_left_out(history: History) -> None:
    before = history.to_json()
    assert not history.add(ev.LearnerJoined(job="another", learner="x", sequence=9_999))
    assert history.to_json() == before


def test_a_resumed_controller_sends_open_tasks_again_without_counting_them_twice() -> None:
    about: Any = {"job": "j", "round": 0}
    sent = ev.TaskSent(**about, time_s=2.0, learners=("a", "b"), num_bytes=100, num_messages=2, send_s=0.5)
    history = History.of(
        [
            ev.RoundStarted(**about, time_s=1.0, version=0, cohort=("a", "b")),
            sent,
            ev.TaskAccepted(**about, time_s=3.0, learner="a"),
            ev.JobResumed(**about, time_s=9.0, version=0, epoch=2),
            sent.stamped(0, 10.0),
            ev.TaskAccepted(**about, time_s=11.0, learner="a"),
        ],
    )
    record = history.rounds[0]
    assert (record.counts["sent"], record.counts["accepted"], record.bytes_down) == (2, 1, 200)
    assert record.tasks["a"].sent_s == 1.5
    assert record.tasks["a"].accepted_s == 3.0
    assert history.num_resumed == 1


def test_late_is_counted_once_for_a_learner_and_round() -> None:
    late = ev.TaskLate(job="j", round=0, learner="a", reason="the round had closed")
    history = History.of([late, late])
    assert history.counts["late"] == history.learners["a"].late == 1


def test_learners_cannot_fill_the_memory_with_names_of_metrics() -> None:
    history = History()
    for index in range(200):
        history.add(
            ev.TaskFinished(
                job="j",
                round=0,
                learner=f"l{index}",
                evaluation={f"m{index}": 1.0},
                timings=Timings(),
            ),
        )
    assert len(history.rounds[0].tasks.evaluation) == MAX_METRICS


def test_json_has_null_for_what_is_not_finite() -> None:
    metrics = {"loss": math.nan, "x": math.inf}
    event = ev.VersionEvaluated(job="j", round=0, version=0, metrics=metrics, num_learners=1, num_examples=1)
    history = History.of([event])
    assert json.loads(history.to_json())["metrics"] == {"loss": None, "x": None}


def test_json_holds_every_table(history: History) -> None:
    whole = json.loads(history.to_json())
    assert len(whole["tasks"]) == 210 + 10, "the round that was retried has two attempts"
    assert len(whole["rounds"]) == 21
    assert len(whole["versions"]) == 21
    assert len(whole["learners"]) == 10
    assert "tasks" not in json.loads(history.to_json(tasks=False))


def test_rows_of_one_table_have_the_same_keys(history: History) -> None:
    rows = list(history.to_rows("rounds"))
    assert set(rows[0]) == set(rows[19])
    assert rows[7]["evaluation.accuracy"] == history.rounds[7].evaluation["accuracy"]


def test_a_table_that_is_not_there_is_named(history: History) -> None:
    with pytest.raises(SettingError, match=r"no table 'round'.*rounds, tasks"):
        history.to_rows("round")  # type: ignore[arg-type]


def test_without_pandas_the_error_says_how_to_get_it(
    history: History,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SettingError, match="pip install pandas"):
        history.to_pandas()


def test_data_frames_hold_what_the_rows_hold(history: History) -> None:
    pytest.importorskip("pandas")
    tasks = history.to_pandas("tasks")
    rows = list(history.to_rows("tasks"))
    assert len(tasks) == len(rows)
    assert list(tasks["learner"]) == [row["learner"] for row in rows]
    assert list(tasks["evaluation.accuracy"].dropna()) == [
        row["evaluation.accuracy"] for row in rows if "evaluation.accuracy" in row
    ]
    assert list(history.to_pandas("learners")["learner"]) == sorted(history.learners)


def test_importing_the_record_imports_no_plotting() -> None:

    code = (
        "import sys, broker_fl.record.history, broker_fl.record.runfolder, broker_fl.record.report;"
        "print([m for m in ('matplotlib', 'jinja2', 'pandas', 'torch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
