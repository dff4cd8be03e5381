"""Which of the jobs that have ended a controller deletes by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker_fl.coordination.state import JobState

GRACE_S = 3600.0
MAX_AT_ONCE = 10
"""Deleted in one go: a backlog does not hold up the jobs that run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept of the jobs that have ended; by default all."""

    num_jobs: int | None = None
    """So many, those that ended last."""
    max_age_s: float | None = None
    """For so long after its end."""
    grace_s: float = GRACE_S
    """For so long a job is kept even if there are more than ``num_jobs``: who waited for it fetches its
    model.
    """

    def surplus(self, ended: Mapping[str, JobState], now: float) -> dict[str, str]:
        """Which go now, and why; those that ended first come first, at most ``MAX_AT_ONCE``."""
        by_end = sorted(ended.values(), key=lambda state: (state.ended_at, state.job))
        num_over = 0 if self.num_jobs is None else max(0, len(by_end) - self.num_jobs)
        found: dict[str, str] = {}
        for place, state in enumerate(by_end):
            age_s = now - state.ended_at
            if place < num_over and age_s >= self.grace_s:
                found[state.job] = f"the newest {self.num_jobs} jobs that have ended are kept"
            elif self.max_age_s is not None and age_s > self.max_age_s:
                found[state.job] = f"jobs are kept for {self.max_age_s / 86400:g} days after their end"
        return dict(list(found.items())[:MAX_AT_ONCE])
