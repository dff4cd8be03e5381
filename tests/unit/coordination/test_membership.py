from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.membership import (
    ALL_LOST_AFTER_HEARTBEATS,
    LOST_AFTER_HEARTBEATS,
    MAX_BEATS_PER_S,
    UNKNOWN_SESSION,
    Group,
    Lost,
    Membership,
)
from broker_fl.errors import FrameRefused
from broker_fl.interfaces import Member
from broker_fl.wire.messages import TaskRef, TaskStatus

BEAT_S = 5.0


def members(*learners: str, now: float = 0.0, session: str = "1") -> Membership:
    made = Membership(BEAT_S, now)
    for learner in learners:
        made.join(Member(learner=learner), session=session, software="", now=now)
    return made


def test_members_are_sorted_by_id_whatever_order_they_came_in() -> None:
    assert [member.learner for member in members("b", "c", "a").members()] == ["a", "b", "c"]


def test_a_silent_learner_is_lost_after_four_heartbeats_and_once() -> None:
    there = members("a", "b")
    now = 0.0
    lost: list[tuple[float, str]] = []
    while now < 60.0:
        now += BEAT_S
        there.heard("b", "1", (), now)
        lost += [(now, one.learner) for one in there.expire(now)]
    assert lost == [((LOST_AFTER_HEARTBEATS + 1) * BEAT_S, "a")]
    assert "a" not in there
    assert "b" in there


def test_silence_does_not_count_while_nobody_listened() -> None:
    there = members("a")
    assert not there.expire(5.0)
    assert not there.expire(1_000.0)
    assert there.heard("a", "1", (), 1_001.0)
    assert not there.expire(1_005.0)


def test_time_is_given_back_to_those_who_were_silent_only() -> None:
    """A standby that became active after hours must still notice who dies in its first minute."""
    there = Membership(BEAT_S, 0.0)
    for learner in ("a", "b"):
        there.join(Member(learner=learner), session="1", software="", now=36_000.0)
    now, lost = 36_000.0, list[Lost]()
    while not lost and now < 36_100.0:
        now += BEAT_S
        there.heard("b", "1", (), now)
        lost = there.expire(now)
    assert [one.learner for one in lost] == ["a"]
    assert now <= 36_000.0 + (LOST_AFTER_HEARTBEATS + 2) * BEAT_S


def test_all_who_fall_silent_at_once_are_waited_for_as_long_as_a_broker_takes_to_restart() -> None:
    """Or the first to be back would be the whole live cohort, and close the round by itself."""
    there, now = members("a", "b", "c"), 0.0
    while now < 60.0:
        now += BEAT_S
        assert not there.expire(now)
    assert there.heard("a", "1", (), now)
    while now < 75.0:
        now += BEAT_S
        there.heard("a", "1", (), now)
        assert not there.expire(now), "b and c are on their way back"
    there.heard("b", "1", (), now)
    lost = list[str]()
    while not lost:
        now += BEAT_S
        there.heard("a", "1", (), now)
        there.heard("b", "1", (), now)
        lost = [one.learner for one in there.expire(now)]
    assert lost == ["c"]


def test_nobody_is_lost_while_a_flood_holds_up_what_is_to_be_read_and_the_dead_are_soon_after_it() -> None:
    there, now = members("honest", "dead", "mallory"), 0.0
    while now < 200.0:
        now += BEAT_S
        there.heard("mallory", "1", (), now)
        assert not there.expire(now, lambda: True)
    lost, since = list[Lost](), now
    while not lost:
        now += BEAT_S
        for learner in ("mallory", "honest"):
            there.heard(learner, "1", (), now)
        lost = there.expire(now, lambda: False)
    assert [one.learner for one in lost] == ["dead"]
    assert now - since <= 2 * BEAT_S


def test_all_who_stay_silent_are_lost_in_the_end() -> None:
    there, now = members("a", "b"), 0.0
    lost = list[Lost]()
    while not lost:
        now += BEAT_S
        lost = there.expire(now)
    assert {one.learner for one in lost} == {"a", "b"}
    assert now == (ALL_LOST_AFTER_HEARTBEATS + 1) * BEAT_S


def test_another_session_has_to_join_first_and_the_old_one_cannot_sign_it_out() -> None:
    there = members("a", session="old")
    assert not there.heard("a", "new", (), 1.0)
    assert there.join(Member(learner="a"), session="new", software="", now=1.0)
    assert not there.join(Member(learner="a"), session="new", software="", now=2.0), (
        "joined again: nothing new"
    )
    assert not there.leave("a", "old")
    assert not there.heard("a", "old", (), 3.0)
    assert there.leave("a", "new")
    assert not there.leave("a", "new")
    assert not there.heard("a", "new", (), 4.0)


def test_a_heartbeat_says_what_the_learner_holds() -> None:
    there = members("a")
    status = TaskStatus(task=TaskRef(job="j", round=1), phase="training", progress=0.5)
    there.heard("a", "1", (status,), 1.0)
    (presence,) = there
    assert presence.tasks == (status,)


@given(st.lists(st.floats(0.1, 200.0), min_size=1, max_size=30))
def test_nobody_is_lost_without_having_been_silent_for_that_long(steps: list[float]) -> None:
    there, now = members("a"), 0.0
    for step in steps:
        now += step
        lost = there.expire(now)
        if lost:
            assert lost[0].silent_s > LOST_AFTER_HEARTBEATS * BEAT_S
            assert now > LOST_AFTER_HEARTBEATS * BEAT_S
            return
        assert all(presence.last_seen <= now for presence in there)


# ---------------------------------------------------------------- groups


def group(name: str, *learners: str, session: str = "1", now: float = 0.0) -> Group:
    there = {learner: Member(learner=learner) for learner in learners}
    return Group(group=name, session=session, members=there, last_seen=now)


def test_members_of_groups_are_members_like_all_others() -> None:
    there = members("b", "d")
    assert there.join_group(group("g", "c", "a")).is_new
    assert [one.learner for one in there.members()] == ["a", "b", "c", "d"]
    assert [one.learner for one in there.alone()] == ["b", "d"]
    assert len(there) == 4
    assert "c" in there
    assert (there.group_of("c"), there.group_of("b"), there.is_group("g")) == ("g", None, True)
    assert sorted(one.member.learner for one in there) == ["a", "b", "c", "d"]


def test_a_group_that_joins_again_keeps_those_it_names_and_loses_the_others() -> None:
    there = members()
    there.join_group(group("g", "a", "b"))
    assert not there.join_group(group("g", "a", "b")).is_new
    change = there.join_group(group("g", "b", "c", session="2"))
    assert (change.is_new, change.gone) == (True, ("a",))
    assert [one.learner for one in there.members()] == ["b", "c"]
    assert there.leave_group("g", "1") is None
    assert there.leave_group("g", "2") == ("b", "c")
    assert len(there) == 0


def test_a_silent_group_is_lost_as_a_whole() -> None:
    there = members("solo")
    there.join_group(group("g", "a", "b"))
    now, lost = 0.0, list[Lost]()
    while not lost and now < 100.0:
        now += BEAT_S
        there.heard("solo", "1", (), now)
        lost = there.expire(now)
    assert [(one.learner, one.members) for one in lost] == [("g", ("a", "b"))]
    assert [one.learner for one in there.members()] == ["solo"]
    assert not there.heard("g", "1", (), now)


@pytest.mark.parametrize(
    ("joining", "reason"),
    [
        (group("g", "x", "solo"), "learner 'solo' of group 'g' is there already, with a mailbox of its own"),
        (group("g", "x", "h-1"), "learner 'h-1' of group 'g' is there already, as one of group 'h'"),
        (group("solo", "x"), "'solo' is the name of a learner that is there"),
        (group("h-1", "x"), "'h-1' is the name of a learner that is there"),
        (group("x", "x"), "'x' is the name of a learner that is there"),
    ],
)
def test_an_id_is_one_learners_and_a_refused_group_changes_nothing(joining: Group, reason: str) -> None:
    there = members("solo")
    there.join_group(group("h", "h-1"))
    with pytest.raises(FrameRefused, match=re.escape(reason)):
        there.join_group(joining)
    assert [one.learner for one in there.members()] == ["h-1", "solo"]
    for taken in ("h-1", "h"):
        with pytest.raises(FrameRefused, match=r"group 'h'|name of a group"):
            there.join(Member(learner=taken), session="9", software="", now=1.0)


def test_learners_that_a_stored_cohort_names_may_come_back_in_a_group() -> None:
    there = members()
    for learner in ("a", "b"):
        there.join(Member(learner=learner), session=UNKNOWN_SESSION, software="", now=0.0)
    there.join_group(group("g", "a", "b"))
    assert len(there) == 2
    assert there.group_of("a") == "g"


def test_a_great_many_are_heard_of_less_often_and_the_time_shrinks_by_half_at_most() -> None:
    num = round(10 * BEAT_S * MAX_BEATS_PER_S)
    made = members(*(f"l{index}" for index in range(num)))
    assert made.pace() == made.heartbeat_s == 10 * BEAT_S
    assert made.pace() is None, "nothing has changed"
    assert made.expire(39 * BEAT_S) == [], "four of the new heartbeats have not passed"
    for index in range(num):
        made.leave(f"l{index}", "1")
    made.join(Member(learner="last"), session="1", software="", now=40 * BEAT_S)
    periods = [made.pace() for _ in range(5)]
    assert periods[:4] == [5 * BEAT_S, 2.5 * BEAT_S, 1.25 * BEAT_S, BEAT_S]
    assert made.heartbeat_s == BEAT_S
