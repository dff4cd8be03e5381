"""The search for a peer's best setting."""

from __future__ import annotations

import math
import time

import pytest

from benchmarks.comparison import was_swept
from benchmarks.peers import PeerFailed
from benchmarks.sweep import SPARED_S, Setting, Tried, best, search

SETTINGS: list[Setting] = [
    {"layout": layout, "poll": poll} for layout in ("one", "several") for poll in (0.05, 0.3, 1.0)
]
ROUND_S = {
    ("one", 0.05): 2.0,
    ("one", 0.3): 4.0,
    ("one", 1.0): 5.0,
    ("several", 0.05): 3.0,
    ("several", 0.3): 1.5,
    ("several", 1.0): 1.0,
}


def measure(setting: Setting, _limit_s: float | None) -> Tried:
    median_s = ROUND_S[str(setting["layout"]), float(setting["poll"])]
    if math.isinf(median_s):
        raise PeerFailed(f"{setting} does not work")
    return {"setting": setting, "median_s": median_s}


def polls(tried: list[Tried]) -> list[tuple[object, object]]:
    return [(one["setting"]["layout"], one["setting"]["poll"]) for one in tried]


def test_each_option_is_searched_with_the_best_of_the_others() -> None:
    tried = search(SETTINGS, SETTINGS[1], measure, math.inf)
    assert polls(tried) == [("one", 0.3), ("several", 0.3), ("several", 0.05), ("several", 1.0)]
    assert best(tried) == {"layout": "several", "poll": 1.0}
    assert was_swept({"sweep": tried, "num_settings": 6}) == " (4 of 6 tried)"
    assert was_swept({"sweep": tried, "num_settings": 4}) == ""
    assert was_swept({"sweep": []}) == " (not swept)"


def test_options_that_go_together_are_all_tried() -> None:
    together: list[Setting] = [{"layout": "one", "poll": 0.3}, {"layout": "several", "poll": 1.0}]
    assert polls(search(together, together[1], measure, math.inf)) == [("several", 1.0), ("one", 0.3)]


def test_none_begins_after_the_end_but_until_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(search(SETTINGS, SETTINGS[4], measure, time.monotonic() - 1)) == 1
    monkeypatch.setitem(ROUND_S, ("several", 0.3), math.inf)
    tried = search(SETTINGS, SETTINGS[4], measure, time.monotonic() - 1)
    assert polls(tried) == [("several", 0.3), ("one", 0.3)]
    assert "does not work" in tried[0]["failed"]
    assert best(tried) == SETTINGS[1]


def test_of_a_peer_that_never_works_the_failures_are_told() -> None:
    def fail(_setting: Setting, _limit_s: float | None) -> Tried:
        raise PeerFailed("not installed")

    tried = search(SETTINGS, SETTINGS[0], fail, math.inf)
    assert {one["failed"] for one in tried} == {"not installed"}
    assert best(tried) is None


def test_what_is_much_slower_than_the_best_is_given_up() -> None:
    limits: list[float | None] = []

    def note(setting: Setting, limit_s: float | None) -> Tried:
        limits.append(limit_s)
        return measure(setting, limit_s)

    search(SETTINGS, SETTINGS[0], note, math.inf)
    assert limits[0] is None
    assert all(limit is not None and limit >= SPARED_S for limit in limits[1:])
