"""A job as lines of a log file: one for each round, and for each thing that an operator wants to know."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from broker_fl.record.history import History
from broker_fl.record.records import Incident
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.text import count, number, one_line, plural, seconds
from broker_fl.wire import events as ev

MAX_METRICS = 4
MAX_INCIDENT_LINES = 5
"""Incidents of one round that are named one by one; of the others it is said how many there were."""
MISSED = ("failed", "late", "refused")


class PlainLog:
    """Says what each event means for a reader of the log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = 0
        self._in_round = 0
        self._reasons: set[tuple[str, str]] = set()

    def tell(self, history: History, event: ev.Event) -> None:
        """Say what this event, just folded, means."""
        self._incidents(history)
        match event:
            case ev.JobSubmitted():
                parameters = plural(event.num_parameters, "parameter")
                self._line(f"job {event.job} ({event.spec.name}): submitted, {parameters}")
            case ev.VersionCommitted() if history.asynchronous:
                self._version(history, event)
            case ev.VersionCommitted():
                self._round(history, history.rounds[event.round])
            case ev.VersionEvaluated() if not history.rounds[event.round].train:
                self._line(f"last evaluation: {_shown(history.metrics)}")
            case ev.JobFinished():
                self._summary(history)
            case _:
                pass

    def _round(self, history: History, record: RoundRecord) -> None:
        self._other_incidents("in this round")
        aim = goal(history)
        of = f" of {count(aim[2])}" if aim is not None and aim[0] == "rounds" else ""
        missed = "".join(f", {record.counts[kind]} {kind}" for kind in MISSED if record.counts[kind])
        metrics = _shown(record.evaluation or record.metrics)
        self._line(
            f"round {record.round + 1}{of}: {seconds(record.round_s)}, "
            f"{count(record.counts['folded'])} of {plural(record.num_learners, 'learner')}{missed}"
            + (f"; {metrics}" if metrics else ""),
        )

    def _version(self, history: History, event: ev.VersionCommitted) -> None:
        """Of asynchronous jobs, which make thousands: each to 99, then every tenth, every hundredth."""
        if event.version % 10 ** max(0, len(str(event.version)) - 2):
            return
        self._other_incidents("since the last line")
        record = history.versions[event.version]
        aim = goal(history)
        of = f" of {count(aim[2])}" if aim is not None and aim[0] == "versions" else ""
        after_s = event.time_s - (history.submitted_s or event.time_s)
        stale = "" if record.mean_staleness is None else f", staleness {record.mean_staleness:.3g}"
        missed = "".join(f", {history.counts[kind]} {kind}" for kind in MISSED if history.counts[kind])
        metrics = _shown(history.metrics or record.metrics)
        self._line(
            f"version {event.version}{of} after {seconds(after_s)}: "
            f"{plural(history.counts['folded'], 'update')}{stale}{missed}"
            + (f"; {metrics}" if metrics else ""),
        )

    def _other_incidents(self, when: str) -> None:
        if self._in_round > MAX_INCIDENT_LINES:
            self._line(f"and {plural(self._in_round - MAX_INCIDENT_LINES, 'more incident')} {when}")
        self._in_round = 0
        self._reasons.clear()

    def _incidents(self, history: History) -> None:
        for incident in history.incidents[self._told :]:
            self._in_round += 1
            if self._in_round <= MAX_INCIDENT_LINES:
                self._line(self._incident(history, incident))
        self._told = len(history.incidents)

    def _incident(self, history: History, incident: Incident) -> str:
        where = f" in {place(history, incident.round)}" if incident.round is not None else ""
        who = f" {one_line(incident.learner, 64)}" if incident.learner else ""
        said = (incident.kind, incident.reason) in self._reasons
        self._reasons.add((incident.kind, incident.reason))
        why = "for the same reason" if said and incident.reason else one_line(incident.reason)
        return f"{incident.kind}{who}{where}" + (f": {why}" if why else "")

    def _summary(self, history: History) -> None:
        end = f"{history.state} after {seconds(history.duration_s)}: {one_line(history.reason)}"
        metrics = _shown(history.metrics)
        self._line(f"job {history.job}: {end}" + (f"; {metrics}" if metrics else ""))

    def _line(self, text: str) -> None:
        # Not wrapped to a width that a file does not have, and nothing in it is markup.
        self._console.print(Text(text), soft_wrap=True, highlight=False)


def place(history: History, number: int) -> str:
    """How people count: ``round 1`` is the first; of an asynchronous job the version that was given."""
    return f"version {number}" if history.asynchronous else f"round {number + 1}"


def goal(history: History) -> tuple[str, int, int] | None:
    """What the job counts, how far it is and with what number it is done; None if it ends with none."""
    if history.spec is None:
        return None
    end = history.spec.termination
    versions = len(history.committed)
    counted = (
        ("rounds", versions, end.rounds),
        ("versions", versions, end.versions),
        ("updates", history.counts["folded"], end.updates),
    )
    return next(((noun, done, total) for noun, done, total in counted if total is not None), None)


def _shown(metrics: Mapping[str, float]) -> str:
    items = list(metrics.items())[:MAX_METRICS]
    return ", ".join(f"{one_line(name, 24)} {number(value)}" for name, value in items)
