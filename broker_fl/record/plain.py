"""A job as lines of a log file: one for each round, and for each thing that an operator wants to know."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from broker_fl.record.history import History
from broker_fl.record.incidents import Incidents, grouped, names_of
from broker_fl.record.records import Incident
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.text import count, number, one_line, plural, seconds, size
from broker_fl.wire import events as ev
from broker_fl.wire.fields import MAX_TEXT_CHARS

MAX_METRICS = 4
MAX_INCIDENT_LINES = 5
"""Of one round, about learners; of the other incidents it is said how many there were."""
MISSED = ("failed", "late", "refused")
_HAVE_CAUSES = ("failed", "refused")
OF_LEARNERS = (*MISSED, "lost", "left")
"""Kinds of incidents of which there may be one for each learner; the others are always told."""


class PlainLog:
    """Says what each event means for a reader of the log.

    What goes wrong is told at once; that it went wrong for others in the same way, in one line for all of
    them before the next line about something else. What made learners fail is told once a round, however
    often that is tried, and whole with the job's end.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen = 0
        self._num_told = self._num_untold = 0
        self._held: list[Incident] = []
        self._reasons: set[tuple[str, str]] = set()
        self._told: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._version_told = 0

    def tell(self, history: History, event: ev.Event) -> None:
        """Say what this event, just folded, means."""
        self._incidents(history, event)
        match event:
            case ev.JobSubmitted():
                parameters = plural(event.num_parameters, "parameter")
                self._line(f"job {event.job} ({event.spec.name}): submitted, {parameters}")
            case ev.VersionCommitted() if history.asynchronous:
                self._version(history, event)
            case ev.VersionCommitted():
                self._round(history, history.rounds[event.round])
            case ev.TransferProgress():
                self._line(f"{place(history, event.round)}: {under_way(history.rounds[event.round])}")
            case ev.VersionEvaluated() if not history.rounds[event.round].train:
                self.flush(history)
                self._line(f"last evaluation: {shown(history.metrics)}{of_version(history)}")
            case ev.JobFinished():
                self.flush(history)
                self._summary(history)
            case _:
                pass

    def flush(self, history: History) -> None:
        """Say what is held back: what happened to several in the same way, and how much was not told."""
        self._tell_held(history)
        if self._num_untold:
            self._line(f"and {plural(self._num_untold, 'more incident')}")
        self._num_told = self._num_untold = 0
        self._reasons.clear()

    def _round(self, history: History, record: RoundRecord) -> None:
        self.flush(history)
        self._told.clear()
        aim = goal(history)
        of = f" of {count(aim[2])}" if aim is not None and aim[0] == "rounds" else ""
        self._line(
            f"round {record.round + 1}{of}: {seconds(record.round_s)}, "
            f"{count(record.counts['folded'])} of {plural(record.num_learners, 'learner')}"
            f"{_missed(record.counts)}{_evaluated(record.evaluation, record.metrics)}"
        )

    def _version(self, history: History, event: ev.VersionCommitted) -> None:
        """Of asynchronous jobs, which make thousands: each to 99, then every tenth, every hundredth."""
        if event.version % 10 ** max(0, len(str(event.version)) - 2):
            return
        self.flush(history)
        self._told.clear()
        record = history.versions[event.version]
        aim = goal(history)
        of = f" of {count(aim[2])}" if aim is not None and aim[0] == "versions" else ""
        after_s = event.time_s - (history.submitted_s or event.time_s)
        since = f" since version {self._version_told}" if event.version - self._version_told > 1 else ""
        news = history.counts - self._counts
        self._counts, self._version_told = history.counts.copy(), event.version
        stale = "" if record.mean_staleness is None else f", staleness {record.mean_staleness:.3g}"
        self._line(
            f"version {event.version}{of} after {seconds(after_s)}: {plural(news['folded'], 'update')}"
            f"{_missed(news)}{since}{stale}"
            f"{_evaluated(history.metrics, record.metrics)}{of_version(history)}"
        )

    def _incidents(self, history: History, event: ev.Event) -> None:
        new = history.incidents[self._seen :]
        self._seen = len(history.incidents)
        if not new and not isinstance(event, ev.TaskLate):  # all that are late are so at the same moment
            self._tell_late(history)
        for incident in new:
            if incident.kind in OF_LEARNERS:
                self._of_learner(history, incident)
            else:
                self.flush(history)
                self._tell(history, grouped([incident])[0])

    def _of_learner(self, history: History, incident: Incident) -> None:
        if incident.kind == "late" or self._is_said(incident):
            self._held.append(incident)
        else:
            self._tell(history, grouped([incident])[0])

    def _tell_late(self, history: History) -> None:
        late = [one for one in self._held if _what(one) not in self._reasons]
        self._held = [one for one in self._held if _what(one) in self._reasons]
        for group in grouped(late):
            self._tell(history, group)

    def _tell_held(self, history: History) -> None:
        held, self._held = self._held, []
        if history.asynchronous and len(held) > 1:  # each was given a version of its own
            held = [replace(one, round=None) for one in held]
        for group in grouped(held):
            self._tell(history, group)

    def _tell(self, history: History, group: Incidents) -> None:
        incident = group.first
        if incident.kind in OF_LEARNERS:
            if self._num_told >= MAX_INCIDENT_LINES:
                self._num_untold += group.number
                return
            self._num_told += 1
        where = f" in {place(history, incident.round)}" if incident.round is not None else ""
        who = f" {names_of(group.learners)}" if group.learners else ""
        said = self._is_said(incident)
        self._reasons.add(_what(incident))
        why = "for the same reason" if said and incident.reason else one_line(self._with_news(incident))
        self._line(f"{incident.kind}{who}{where}" + (f": {why}" if why else ""))

    def _with_news(self, incident: Incident) -> str:
        """The reason, without those of learners that stand above; of a learner's, remember that it does."""
        reason = incident.reason
        if incident.kind in _HAVE_CAUSES:
            self._told.add(reason)
            return reason
        for told in self._told - {""}:  # in a list of learners, in parentheses
            reason = re.sub(rf": {re.escape(told)}(?=[;)]| …\))", ": as above", reason)
        return reason

    def _is_said(self, incident: Incident) -> bool:
        return _what(incident) in self._reasons or incident.reason in self._told

    def _summary(self, history: History) -> None:
        end = (
            f"{history.state} after {seconds(history.duration_s)}: {one_line(history.reason, MAX_TEXT_CHARS)}"
        )
        metrics = shown(history.metrics)
        self._line(f"job {history.job}: {end}" + (f"; {metrics}" if metrics else ""))

    def _line(self, text: str) -> None:
        # Not wrapped to a width that a file does not have, and nothing in it is markup.
        self._console.print(Text(text), soft_wrap=True, highlight=False)


def place(history: History, number: int) -> str:
    """How people count: ``round 1`` is the first; of an asynchronous job the version that was given."""
    return f"version {number}" if history.asynchronous else f"round {number + 1}"


def under_way(record: RoundRecord) -> str:
    """How far large transfers are: ``sent 300 MB of 1 GB, received 2.1 GB of 10 GB``."""
    words = {"down": "sent", "up": "received"}
    return ", ".join(
        f"{words[direction]} {size(num_bytes)} of {size(total_bytes)}"
        for direction, (num_bytes, total_bytes) in sorted(record.under_way.items())
    )


def of_version(history: History) -> str:
    """What an asynchronous job's evaluation is of: the mean over each learner's newest, of versions older
    than the newest; the last one is of one version.
    """
    version = history.evaluated_version
    if not history.asynchronous or not history.metrics or version is None:
        return ""
    record = history.versions[version]
    last = record.evaluated_in is not None and not history.rounds[record.evaluated_in].train
    what = f" of version {version}" if last or version == 0 else f" of versions up to {version}"
    return f"{what}, by {plural(record.num_evaluators, 'learner')}"


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


def _what(incident: Incident) -> tuple[str, str]:
    return incident.kind, "" if incident.kind == "lost" else incident.reason


def _missed(counts: Mapping[str, int]) -> str:
    return "".join(f", {count(counts[kind])} {kind}" for kind in MISSED if counts[kind])


def _evaluated(evaluation: Mapping[str, float], training: Mapping[str, float]) -> str:
    """The evaluation, never the training in its place: a ``–`` says that there is none yet."""
    if evaluation:
        return f"; {shown(evaluation)}"
    return (
        f"; {', '.join(f'{one_line(name, 24)} –' for name in list(training)[:MAX_METRICS])}"
        if training
        else ""
    )


def shown(metrics: Mapping[str, float]) -> str:
    """A few metrics in words."""
    items = list(metrics.items())[:MAX_METRICS]
    return ", ".join(f"{one_line(name, 24)} {number(value)}" for name, value in items)
