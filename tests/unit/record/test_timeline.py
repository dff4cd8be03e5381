"""Where the time of a round went."""

from __future__ import annotations

import math
from typing import Any

import pytest

from broker_fl.record.history import History
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.timeline import ROUND_PHASES, breakdown, lanes, typical
from broker_fl.wire import events as ev
from broker_fl.wire.messages import Timings
from tests.unit.record.events import fake_events


@pytest.fixture(scope="module")
def history() -> History:
    return History.of(fake_events())


def test_the_phases_of_a_round_add_up_to_its_duration(history: History) -> None:
    for record in history.committed:
        spent = breakdown(record)
        assert tuple(spent) == ROUND_PHASES
        assert min(spent.values()) >= 0
        assert sum(spent.values()) == pytest.approx(record.round_s)


def test_waiting_for_a_learner_that_is_late_is_told_apart_from_work(history: History) -> None:
    late, whole = breakdown(history.rounds[0]), breakdown(history.rounds[1])
    assert late["wait"] > 0.3
    assert whole["wait"] < 0.05


def test_the_phases_of_a_lane_do_not_overlap(history: History) -> None:
    for record in history.committed:
        for lane in lanes(record, 40):
            end = 0.0
            for segment in lane.segments:
                assert segment.start_s >= end - 1e-6
                end = segment.start_s + segment.duration_s
            assert lane.end_s == pytest.approx(end)


def test_the_slow_and_the_late_are_stragglers(history: History) -> None:
    assert [lane.learner for lane in lanes(history.rounds[0], 40) if lane.marks] == ["site-03"]
    assert [lane.learner for lane in lanes(history.rounds[1], 40) if lane.marks] == ["site-03"]


def test_of_many_learners_the_fastest_and_the_slowest_are_shown() -> None:
    record = History.of(fake_events(num_learners=500, num_rounds=1)).rounds[0]
    shown = lanes(record, 40)
    ends = [lane.end_s for lane in shown]
    everyone = [lane.end_s for lane in lanes(record, 500)]
    assert len({lane.learner for lane in shown}) == 40
    assert (ends[0], ends[-1]) == (everyone[0], everyone[-1])


def test_a_learner_that_never_answered_is_shown_without_times_and_last() -> None:
    history = History.of(
        [
            ev.RoundStarted(job="j", round=0, version=0, cohort=("a", "b"), time_s=10),
            ev.TaskSent(
                job="j",
                round=0,
                learners=("a", "b"),
                num_bytes=1,
                num_messages=1,
                send_s=0.1,
                time_s=10.1,
            ),
            ev.TaskAccepted(job="j", round=0, learner="b", time_s=11),
            ev.TaskFinished(job="j", round=0, learner="b", time_s=12, timings=Timings(train_s=0.5)),
        ],
    )
    first, last = lanes(history.rounds[0], 10)
    assert (first.learner, [segment.phase for segment in first.segments]) == ("b", ["download", "train"])
    assert (last.learner, last.segments, last.end_s) == ("a", (), 0.0)
    assert sum(breakdown(history.rounds[0]).values()) == pytest.approx(0.1)


def test_work_that_took_longer_than_its_acceptance_lets_it_is_drawn_before_its_end() -> None:
    about: Any = {"job": "j", "round": 0}
    history = History.of(
        [
            ev.TaskSent(**about, learners=("a",), num_bytes=1, num_messages=1, send_s=0, time_s=10),
            ev.TaskAccepted(**about, learner="a", time_s=14),
            ev.TaskFinished(**about, learner="a", time_s=14, timings=Timings(train_s=3)),
        ],
    )
    (lane,) = lanes(history.rounds[0], 10)
    assert [(s.phase, s.start_s, s.duration_s) for s in lane.segments] == [
        ("download", 10, 1),
        ("train", 11, 3),
    ]


def test_the_typical_round_is_the_median(history: History) -> None:
    record = typical(history.committed)
    assert record is not None
    times = sorted(other.round_s or math.nan for other in history.committed)
    assert record.round_s == times[10]
    assert typical([]) is None
    assert typical([RoundRecord(round=0)]) is None
