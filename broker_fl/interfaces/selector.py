"""Who takes part in a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from broker_fl.interfaces.learner import Metrics, Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A live learner, as a selector sees it."""

    learner: str
    attributes: Parameters = field(default_factory=dict)
    software: str = ""
    """What it runs, with the version: ``broker_fl 0.1.0``."""


@dataclass(slots=True, kw_only=True)
class Record:
    """What a job has seen of one learner so far. Times are means over its tasks, in which older ones fade."""

    num_tasks: int = 0
    """That it was given."""
    num_updates: int = 0
    """That counted."""
    num_failures: int = 0
    """In a row, up to now: failed, refused, late or lost."""
    last_round: int = -1
    """In which it was last given a task; -1 before the first."""
    num_examples: int = 0
    """That it said it trained on, last."""
    task_s: float = 0.0
    """Seconds from sending a task to having its update; 0 before the first."""
    step_s: float = 0.0
    """Seconds for an optimiser step; 0 where it counts none."""
    epoch_s: float = 0.0
    """Seconds for a pass over its data; 0 where it counts none."""
    evaluation: Metrics = field(default_factory=dict)
    """Its last: of the version that it was then given, on its data."""
    epochs: int = 0
    """Local epochs that it is given at present by pacing; 0 where pacing does not count in epochs."""


class Selector(Protocol):
    """Chooses a round's cohort."""

    def select(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        """Ids of the chosen, sorted; so are ``members``. The same arguments give the same answer.

        ``history`` has a record for each learner that was ever given a task of this job.
        """
        ...
