"""Long answers in pages, each of which fits into one frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

PAGE_BYTES = 3_000_000
"""More than any one event or list entry has at its limits (``fields.py``), and less than
``MAX_BODY_BYTES``.
"""


def pages(
    items: Iterable[T], num_bytes: Callable[[T], int], limit: int = PAGE_BYTES
) -> Iterator[tuple[tuple[T, ...], bool]]:
    """Cut ``items`` into pages of up to ``limit`` bytes, in order; with each comes whether it is the last.

    There is always a page, and an item that is larger than the limit has one to itself.
    """
    page: list[T] = []
    size = 0
    for item in items:
        length = num_bytes(item)
        if page and size + length > limit:
            yield tuple(page), False
            page, size = [], 0
        page.append(item)
        size += length
    yield tuple(page), True
