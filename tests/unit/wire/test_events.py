"""Events: packed and as lines of JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.errors import FrameRefused
from broker_fl.wire import events as e
from broker_fl.wire.events import EVENT_KINDS, Event, UnknownEvent, decode_event, event_from_json
from broker_fl.wire.examples import examples
from broker_fl.wire.fields import MAX_LISTED, MAX_METRICS, MAX_PARAMETERS, MAX_TEXT_CHARS
from broker_fl.wire.frames import pack
from broker_fl.wire.job import JobSpec
from broker_fl.wire.messages import Rejoin, parse
from broker_fl.wire.pages import PAGE_BYTES

EVENTS = {name: event for name, event in examples().items() if isinstance(event, Event)}


def evaluated(metrics: dict[str, Any]) -> e.VersionEvaluated:
    return e.VersionEvaluated(job="j", round=0, version=0, metrics=metrics, num_learners=1, num_examples=1)


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_comes_back_packed_and_as_json(name: str) -> None:
    event = EVENTS[name]
    assert decode_event(event.pack()) == event
    line = event.to_json()
    assert "\n" not in line
    assert json.loads(line)["kind"] == event.KIND
    assert event_from_json(line) == event


def test_there_is_an_example_of_every_event() -> None:
    assert set(EVENTS) == set(EVENT_KINDS)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), st.floats(), max_size=4
    )
)
def test_metrics_that_json_cannot_carry_are_null_there_and_nan_after(metrics: dict[str, float]) -> None:
    event = evaluated(metrics)
    line = event.to_json()
    assert json.loads(line, parse_constant=pytest.fail)["metrics"].keys() == metrics.keys()
    again = event_from_json(line)
    assert isinstance(again, e.VersionEvaluated)
    for name, value in metrics.items():
        assert again.metrics[name] == value or (math.isnan(again.metrics[name]) and not math.isfinite(value))
    packed = decode_event(event.pack())
    assert isinstance(packed, e.VersionEvaluated)
    assert str(packed.metrics) == str(event.metrics)


def test_a_stamp_changes_number_and_time_only() -> None:
    event = evaluated({"x": 1.0})
    assert event.stamped(7, 1.5) == evaluated({"x": 1.0}).model_copy(update={"sequence": 7, "time_s": 1.5})
    assert event.sequence == 0


def ids(count: int) -> tuple[str, ...]:
    return tuple(f"{i:0>64}" for i in range(count))


@pytest.mark.parametrize(
    "make",
    [
        lambda names: e.RoundStarted(job="j", round=0, version=0, cohort=names),
        lambda names: e.VersionCommitted(
            job="j",
            round=0,
            version=1,
            digest="",
            contributors=names,
            total_weight=1.0,
            round_s=0,
            aggregate_s=0,
            store_s=0,
        ),
    ],
    ids=["round_started", "version_committed"],
)
def test_a_hundred_thousand_learners_are_counted_and_partly_named(make: Any) -> None:
    event = make(ids(100_000))
    assert event.num_learners == 100_000
    assert len(event.pack()) < PAGE_BYTES
    assert decode_event(event.pack()) == event
    assert event_from_json(event.to_json()) == event
    assert make(ids(3)).num_learners == 3


def test_no_event_outgrows_a_page_whatever_it_is_filled_with() -> None:
    wide = "\U0001f600"
    metrics = {f"{i:03}{wide * 125}": 1.0 for i in range(MAX_METRICS)}
    parameters: dict[str, Any] = {f"{i:03}{wide * 125}": wide * MAX_TEXT_CHARS for i in range(MAX_PARAMETERS)}
    reason, names = wide * MAX_TEXT_CHARS, ids(MAX_LISTED + 1)
    largest: list[Event] = [
        e.JobSubmitted(
            job="j", driver="d", spec=JobSpec(parameters=parameters), num_parameters=1, model_bytes=1
        ),
        e.LearnerJoined(job="j", learner="l", attributes=parameters),
        e.TaskFinished(job="j", round=0, learner="l", metrics=metrics, evaluation=metrics),
        e.RoundRetried(job="j", round=0, attempt=1, reason=reason, replacements=names),
        e.TaskSent(job="j", round=0, learners=names, num_bytes=1, num_messages=1, send_s=0.0),
        e.VersionCommitted(
            job="j",
            round=0,
            version=1,
            digest="",
            contributors=names,
            metrics=metrics,
            total_weight=1.0,
            round_s=0.0,
            aggregate_s=0.0,
            store_s=0.0,
        ),
    ]
    for event in largest:
        assert len(event.pack()) < PAGE_BYTES, event.KIND


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_is_positive_and_finite(weight: float) -> None:
    fields = {"v": 1, "kind": "update_folded", **EVENTS["update_folded"].model_dump(), "weight": weight}
    with pytest.raises(FrameRefused, match="wrong field 'weight'"):
        parse(fields, EVENT_KINDS)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "not json",
        "null",
        "[]",
        '"job_resumed"',
        "{}",
        '{"kind": 5}',
        '{"kind": ["job_resumed"]}',
        '{"kind": "rejoin"}',
        '{"kind": "job_resumed"}',
        '{"kind": "job_resumed", "job": "j", "round": "x", "version": 0, "epoch": 1}',
        '{"kind": "job_resumed", "job": "j", "round": NaN, "version": 0, "epoch": 1}',
        '{"kind": "job_resumed", "job": "j", "round": 0, "version": 0, "epoch": 1',
        "[" * 100_000,
        '{"kind": ' + "[" * 100_000,
    ],
    ids=lambda line: line[:40],
)
def test_a_line_that_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(FrameRefused) as caught:
        event_from_json(line)
    assert len(str(caught.value)) < 500


def test_a_message_is_not_an_event() -> None:
    with pytest.raises(FrameRefused, match="'rejoin' are not known here"):
        decode_event(Rejoin().pack())
    with pytest.raises(FrameRefused, match="is not an event"):
        decode_event(EVENTS["job_resumed"].pack() + b"\xc4\x00")


@given(st.sampled_from(sorted(EVENTS)), st.data())
def test_damaged_events_are_read_or_refused_and_nothing_else(name: str, data: st.DataObject) -> None:
    line = EVENTS[name].to_json()
    place = data.draw(st.integers(0, len(line) - 1))
    damaged = (
        line[:place]
        + data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=3))
        + line[place + 1 :]
    )
    try:
        event = event_from_json(damaged)
    except FrameRefused:
        return
    assert event_from_json(event.to_json()).KIND == event.KIND


def test_an_event_of_a_newer_controller_keeps_its_number_and_time() -> None:
    body = pack("learner_promoted", {"job": "j", "sequence": 7, "time_s": 1.5, "rank": "captain"})
    event = decode_event(body)
    assert isinstance(event, UnknownEvent)
    assert (event.kind, event.job, event.sequence, event.time_s) == ("learner_promoted", "j", 7, 1.5)
