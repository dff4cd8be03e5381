from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.cohort import Assignment, Cohort, Status
from broker_fl.coordination.state import JobState, Phase
from broker_fl.errors import FrameRefused
from broker_fl.interfaces import Record
from broker_fl.wire.job import JobSpec, MetricTarget, Termination, Transfer
from broker_fl.wire.protocols import Synchronous
from broker_fl.wire.selectors import SelectRandom

SPECS = st.builds(
    JobSpec,
    protocol=st.builds(
        Synchronous,
        quorum=st.one_of(st.floats(0.01, 1.0), st.integers(1, 9)),
        deadline_s=st.one_of(st.none(), st.floats(0.1, 1e6)),
        max_wait_s=st.one_of(st.none(), st.floats(0.1, 1e6)),
    ),
    selector=st.builds(SelectRandom, count=st.integers(9, 20), seed=st.integers(0, 2**63 - 1)),
    termination=st.builds(
        Termination,
        rounds=st.just(3),
        target=st.builds(MetricTarget, metric=st.just("x"), value=st.floats(0, 1)),
    ),
    transfer=st.builds(Transfer, encoding=st.sampled_from(["raw", "bfloat16"])),
    parameters=st.dictionaries(
        st.text(min_size=1, max_size=5), st.one_of(st.none(), st.booleans(), st.floats(-1, 1)), max_size=3
    ),
)
COHORTS = st.dictionaries(
    st.text("abc", min_size=1),
    st.builds(Assignment, st.sampled_from(Status), st.floats(0, 1e9), st.integers(0, 9)),
    max_size=5,
)
STATES = st.builds(
    JobState,
    job=st.just("job"),
    spec=SPECS,
    driver=st.just("driver"),
    update_bytes=st.integers(0, 2**62),
    submitted_at=st.floats(0, 1e10),
    phase=st.sampled_from(Phase),
    waiting_since=st.one_of(st.none(), st.floats(0, 1e10)),
    round=st.integers(0, 2**31),
    version=st.integers(0, 2**31),
    retries=st.integers(0, 100),
    deadline_at=st.one_of(st.none(), st.floats(0, 1e10)),
    cohort=COHORTS.map(Cohort),
    evaluations=st.dictionaries(
        st.integers(0, 9), st.dictionaries(st.text(max_size=4), st.floats(allow_nan=False)), max_size=3
    ),
    reason=st.text(max_size=50),
)


@given(STATES)
def test_a_state_comes_back_as_it_was_but_for_what_a_crash_loses(state: JobState) -> None:
    back = JobState.unpack(state.pack(), 7.0)
    for name in JobState.__slots__:
        if name != "cohort":
            assert getattr(back, name) == getattr(state, name), name
    assert list(back.cohort) == list(state.cohort)
    for learner, part in state.cohort.items():
        again = back.cohort.get(learner)
        assert again is not None
        assert (again.attempt, again.reason, again.changed_at) == (part.attempt, part.reason, 7.0)
        lost = part.status in (Status.SENT, Status.ACCEPTED, Status.FINISHED, Status.DELIVERED)
        assert again.status is (Status.SENT if lost else part.status)
    assert back.pack() == JobState.unpack(back.pack(), 8.0).pack()
    state.summary()


def test_fields_that_another_release_has_more_or_less_are_left_out_or_have_their_defaults() -> None:
    state = JobState(
        job="j", spec=JobSpec(termination=Termination(rounds=3)), driver="d", update_bytes=1, submitted_at=0.0
    )
    state.records["a"] = Record(num_tasks=2, num_updates=1)
    state.round = 2
    fields = msgpack.unpackb(state.pack(), strict_map_key=False)
    newer = fields | {"colour": "red", "records": {"a": [*fields["records"]["a"], "more"]}}
    assert JobState.unpack(msgpack.packb(newer), 0.0).pack() == state.pack()
    older = {name: value for name, value in fields.items() if name not in ("unsaid", "ended_at")}
    older |= {"state": 2, "records": {"a": fields["records"]["a"][:-1]}}
    assert JobState.unpack(msgpack.packb(older), 0.0).pack() == state.pack()


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"termination": {"rounds": 3}, "rule": {"name": "of tomorrow"}}},
        {"phase": "dreaming"},
        {"cohort": [["a", 0]]},
        {"driver": None, "records": 7},
    ],
    ids="+".join,
)
def test_what_cannot_be_read_is_refused_and_does_not_end_the_controller(change: dict[str, Any]) -> None:
    state = JobState(
        job="j", spec=JobSpec(termination=Termination(rounds=3)), driver="d", update_bytes=1, submitted_at=0.0
    )
    fields = msgpack.unpackb(state.pack(), strict_map_key=False) | change
    with pytest.raises(FrameRefused, match="not readable here"):
        JobState.unpack(msgpack.packb(fields), 0.0)
    with pytest.raises(FrameRefused, match="not readable here"):
        JobState.unpack(state.pack()[:-3], 0.0)


def test_a_state_of_another_version_is_refused_by_name() -> None:
    with pytest.raises(FrameRefused, match="version 99"):
        JobState.unpack(msgpack.packb({"state": 99}), 0.0)
