from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.uploads import Uploads


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
