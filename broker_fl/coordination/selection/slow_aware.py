"""Fair rotation in which slow learners get their turn together, in every ``slow_every``-th round.

A learner is slow while ``task_s``, its mean time from a task to its update, is more than ``slow_factor``
times the median of those that are measured. One that is not measured yet is not slow, and soon is measured.

A round lasts as long as its slowest member. Slow learners that were asked more rarely, but each at its own
time, would make every round a slow one; so they wait for the same rounds, number ``slow_every - 1``,
``2 slow_every - 1``, … In those, who has waited longest is next (``rotation``), and that is the slow. In all
others the slow are asked only if there are too few besides for ``count`` or ``fraction``, the fastest first.
So nobody is left out for ever, and one that has become faster shows it when it has its turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from broker_fl.coordination.selection.rotation import longest_waiting
from broker_fl.interfaces import Member, Record
from broker_fl.wire.selectors import SelectSlowAware


class SlowAware:
    """Whoever has waited longest and is not slow; in every ``slow_every``-th round whoever has waited."""

    def __init__(self, settings: SelectSlowAware, at_least: int = 1) -> None:
        """``at_least`` so many are chosen, where they are there, however slow."""
        self._settings = settings
        self._at_least = at_least

    def select(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        waiting = longest_waiting(members, history)
        size = self._settings.cohort_size(len(members))
        if (round + 1) % self._settings.slow_every == 0:
            return sorted(waiting[:size])
        slow = self._slow(waiting, history)
        others = [learner for learner in waiting if learner not in slow]
        if self._settings.fraction is None and self._settings.count is None:
            size = max(len(others), self._at_least)
        return sorted([*others, *slow][:size])

    def _slow(self, learners: Sequence[str], history: Mapping[str, Record]) -> dict[str, float]:
        """Seconds that slow learners take, the fastest of them first."""
        times = {
            learner: record.task_s
            for learner in learners
            if (record := history.get(learner)) is not None and record.task_s > 0
        }
        if not times:
            return {}
        limit_s = self._settings.slow_factor * statistics.median(times.values())
        slow = [(task_s, learner) for learner, task_s in times.items() if task_s > limit_s]
        return {learner: task_s for task_s, learner in sorted(slow)}
