"""Which of a peer's settings is its best in a cell: a search along one option after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.peers import PeerFailed

Setting = dict[str, str | float]
"""A peer's, by the names of its options."""
Tried = dict[str, Any]
"""A ``setting`` and ``took_s``, its start included; ``median_s`` and ``rounds_s``, or how it ``failed``."""
SLOWER = 1.5
"""A setting is given up when it takes so much longer, start and all, than the best so far."""
SPARED_S = 20.0
"""By which it may be longer in any case."""


def search(
    settings: Sequence[Setting],
    first: Setting,
    measure: Callable[[Setting, float | None], Tried],
    end_at: float,
) -> list[Tried]:
    """What was tried: ``first``; then along each option all of its values, with the best of the others.

    Args:
        settings: all combinations of the options' values; if they are not all, each is tried.
        first: one of them.
        measure: tries a setting, for at most so many seconds.
        end_at: none begins later (``time.monotonic``) once one has worked.

    Those that failed are among what was tried; it may be all.
    """
    tried: list[Tried] = []
    for setting in _in_order(settings, first, tried):
        working = [one for one in tried if "median_s" in one]
        if working and time.monotonic() > end_at:
            break
        limit_s = SPARED_S + SLOWER * min(one["took_s"] for one in working) if working else None
        began = time.monotonic()
        try:
            found = measure(setting, limit_s)
        except PeerFailed as error:
            found = {"setting": setting, "failed": str(error)[:500]}
        tried.append({**found, "took_s": time.monotonic() - began})
    return tried


def _in_order(settings: Sequence[Setting], first: Setting, tried: Sequence[Tried]) -> Iterator[Setting]:
    """What to try next, going by what ``tried`` has when it is asked for."""
    yield first
    values = {name: {setting[name] for setting in settings} for name in first}
    if math.prod(map(len, values.values())) != len(settings):  # options that go together
        yield from (setting for setting in settings if setting != first)
        return
    for name in first:
        middle = best(tried) or first
        for setting in settings:
            others_alike = all(setting[one] == middle[one] for one in setting if one != name)
            if others_alike and all(one["setting"] != setting for one in tried):
                yield setting


def best(tried: Sequence[Tried]) -> Setting | None:
    """The setting with the shortest rounds; None if none worked."""
    working = [one for one in tried if "median_s" in one]
    return min(working, key=lambda one: float(one["median_s"]))["setting"] if working else None
