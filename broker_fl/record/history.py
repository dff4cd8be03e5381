"""What happened to a job, folded from its events: rounds, tasks, versions, learners, incidents.

Each event is folded once (``folding.py``); asking costs what the answer is long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from broker_fl.record import export
from broker_fl.record.export import Table
from broker_fl.record.folding import Folding
from broker_fl.record.lineage import lineage
from broker_fl.record.records import VersionRecord
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.tasks import Spread
from broker_fl.wire import events as ev

MAX_GAP = 100_000
"""Event numbers that may be awaited after a gap; those of a greater gap are taken for lost."""


class History(Folding):
    """One job's history; not thread-safe.

    Events of other jobs, and events that were folded already, change nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last_sequence = 0
        self._missing: set[int] = set()

    @classmethod
    def of(cls, events: Iterable[ev.Event]) -> History:
        """Fold these events."""
        history = cls()
        for event in events:
            history.add(event)
        return history

    def add(self, event: ev.Event) -> bool:
        """Fold one event; False if it was there already or is another job's."""
        if self.job is not None and event.job != self.job:
            return False
        if not self._is_new(event.sequence):
            return False
        self.job = event.job
        self.last_event_s = max(event.time_s, self.last_event_s or 0.0)
        self._fold(event)
        return True

    def _is_new(self, sequence: int) -> bool:
        if sequence == 0:  # never numbered
            return True
        if sequence > self._last_sequence:
            if sequence - self._last_sequence <= MAX_GAP:
                self._missing.update(range(self._last_sequence + 1, sequence))
            self._last_sequence = sequence
            return True
        if sequence in self._missing:
            self._missing.remove(sequence)
            return True
        return False

    # ------------------------------------------------------------ asking

    @property
    def current(self) -> RoundRecord | None:
        """The newest round."""
        return self.rounds.get(self._newest_round)

    @property
    def committed(self) -> list[RoundRecord]:
        """The rounds that made a version, in order."""
        return [
            self.rounds[number] for number in sorted(self.rounds) if self.rounds[number].state == "committed"
        ]

    @property
    def newest_version(self) -> VersionRecord:
        """The newest version that is known of; an empty record before the first."""
        return self.versions.get(self._newest_version, VersionRecord(version=0))

    @property
    def metrics(self) -> Mapping[str, float]:
        """The newest evaluation of the model over a cohort; empty if there was none."""
        return self._metrics

    @property
    def evaluated_version(self) -> int | None:
        """The version that ``metrics`` are of; None if there was no evaluation."""
        return self._newest_evaluated if self._newest_evaluated >= 0 else None

    @property
    def duration_s(self) -> float | None:
        """From submission to the end, or to the newest event."""
        end = self.finished_s if self.finished_s is not None else self.last_event_s
        return None if self.submitted_s is None or end is None else max(0.0, end - self.submitted_s)

    @property
    def bytes_down(self) -> int:
        """Published for learners in all rounds."""
        return sum(record.bytes_down for record in self.rounds.values())

    @property
    def bytes_up(self) -> int:
        """Received as updates in all rounds."""
        return sum(record.bytes_up for record in self.rounds.values())

    def training_spread(self, version: VersionRecord, metric: str) -> Spread | None:
        """How a metric of the training that made a version lies over its contributors."""
        if self.asynchronous or version.round is None:
            return version.training_spreads.get(metric)
        return self.rounds[version.round].metric_spread(metric)

    def evaluation_spread(self, version: VersionRecord, metric: str) -> Spread | None:
        """How an evaluation metric of a version lies over the learners that evaluated it."""
        if metric in version.evaluation_spreads:
            return version.evaluation_spreads[metric]
        record = None if version.evaluated_in is None else self.rounds.get(version.evaluated_in)
        return None if record is None else record.evaluation_spread(metric)

    def lineage(self, version: int | None = None) -> list[VersionRecord]:
        """A version, by default the newest, the one that it was made from, and so on to the first known."""
        return lineage(self.versions, self._newest_version if version is None else version)

    def to_rows(self, table: Table = "rounds") -> Iterator[dict[str, Any]]:
        """A table's rows as flat dicts, in order; metrics are keys like ``evaluation.accuracy``.

        Raises:
            SettingError: there is no such table.
        """
        return export.rows(self, table)

    def to_pandas(self, table: Table = "rounds") -> Any:
        """A table as a pandas data frame.

        Raises:
            SettingError: pandas is not installed, or there is no such table.
        """
        return export.frame(self, table)

    def to_json(self, *, tasks: bool = True) -> str:
        """The whole history as one JSON object, NaN and infinity as null; small without ``tasks``."""
        return export.as_json(self, tasks=tasks)
