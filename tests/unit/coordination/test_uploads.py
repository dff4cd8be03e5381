from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.uploads import SLOWEST_BYTES_PER_S, Uploads


def test_with_room_for_all_nobody_has_to_ask() -> None:
    uploads = Uploads(100, 1_000)
    uploads.open(10)
    assert not uploads.on_request
    assert uploads.add("a") == []


def test_an_update_above_the_budget_still_gets_a_turn() -> None:
    uploads = Uploads(100, 1)
    uploads.open(2)
    assert uploads.add("a") == ["a"]
    assert uploads.add("b") == []
    assert uploads.is_waiting("b")
    assert uploads.release("a") == ["b"]


def test_a_turn_ends_sooner_the_less_the_others_needed_and_with_half_the_time_until_the_deadline() -> None:
    uploads = Uploads(100 * SLOWEST_BYTES_PER_S, 1)
    uploads.open(4)
    assert uploads.add("slow", 0.0) == ["slow"]
    assert not uploads.pass_on_overdue(1_000.0), "nobody waits"
    assert uploads.add("a", 1_000.0) == []
    assert uploads.pass_on_overdue(1_000.0) == ["a"], "100 s were enough for a slow line"
    assert uploads.delivered("a", 1_006.0) == ["slow"]
    uploads.add("b", 1_006.0)
    assert not uploads.pass_on_overdue(1_053.0), "it has twice the time when it is its turn again"
    assert uploads.pass_on_overdue(1_054.0) == ["b"], "4 times of what another took, doubled"
    uploads.open(4)
    uploads.add("c", 0.0, 20.0)
    uploads.add("d", 0.0, 20.0)
    assert not uploads.pass_on_overdue(9.9, 20.0)
    assert uploads.pass_on_overdue(10.0, 20.0) == ["d"]


def test_held_up_is_who_waits_for_others_and_not_who_let_its_turn_pass() -> None:
    uploads = Uploads(100, 1)
    uploads.open(3)
    uploads.add("hog")
    uploads.add("a")
    assert [one for one in ("hog", "a") if uploads.is_held_up(one)] == ["a"]
    assert uploads.pass_on("hog", 1.0) == ["a"]
    assert uploads.is_waiting("hog")
    assert [one for one in ("hog", "a") if uploads.is_held_up(one)] == ["a"]
    uploads.delivered("a", 2.0)
    assert not uploads.is_held_up("a")


@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.sampled_from(["add", "release"]), st.sampled_from("abcdefgh")), max_size=200),
)
def test_never_more_than_fit_and_nobody_waits_while_there_is_room(
    room: int, steps: list[tuple[str, str]]
) -> None:
    uploads = Uploads(10, 10 * room)
    uploads.open(1_000)
    uploading: set[str] = set()
    waiting: list[str] = []
    for what, learner in steps:
        if what == "add":
            if learner not in uploading and learner not in waiting:
                waiting.append(learner)
        else:
            uploading.discard(learner)
            waiting = [one for one in waiting if one != learner]
        granted = getattr(uploads, what)(learner)
        assert granted == waiting[: len(granted)], "first come, first served"
        waiting = waiting[len(granted) :]
        uploading |= set(granted)
        assert len(uploading) <= room
        assert not waiting or len(uploading) == room
        assert [one for one in "abcdefgh" if uploads.is_waiting(one)] == sorted(waiting)
