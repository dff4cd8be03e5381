"""Long answers in pages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker_fl.wire.pages import pages


@given(st.lists(st.binary(max_size=12)), st.integers(1, 30))
def test_pages_hold_everything_once_in_order_and_stay_below_the_limit(items: list[bytes], limit: int) -> None:
    found = list(pages(items, len, limit))
    assert [item for page, _ in found for item in page] == items
    assert [last for _, last in found] == [False] * (len(found) - 1) + [True]
    for page, _ in found:
        assert sum(map(len, page)) <= limit or len(page) == 1


def test_nothing_is_one_empty_page() -> None:
    assert list(pages([], len)) == [((), True)]
