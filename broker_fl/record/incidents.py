"""Incidents that say the same, told once: a hundred learners that fail for one reason are one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from broker_fl.record.records import Incident
from broker_fl.record.text import count, one_line

MAX_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Incidents:
    """Incidents of one kind and round, with the same reason; of the lost, whatever their silence was."""

    first: Incident
    learners: tuple[str, ...]
    number: int


def grouped(incidents: Iterable[Incident]) -> list[Incidents]:
    """Those that say the same of different learners together, in the order of the first of each."""
    groups: dict[tuple[str, int | None, str], list[Incident]] = {}
    for incident in incidents:
        reason = "" if incident.kind == "lost" else incident.reason
        groups.setdefault((incident.kind, incident.round, reason), []).append(incident)
    return [
        Incidents(
            first=group[0],
            learners=tuple(dict.fromkeys(one.learner for one in group if one.learner)),
            number=len(group),
        )
        for group in groups.values()
    ]


def names_of(learners: Sequence[str]) -> str:
    """Some of them by name: ``a``, ``a, b``, ``a, b, c and 7 more``."""
    named = ", ".join(one_line(name, 64) for name in learners[:MAX_NAMED])
    more = len(learners) - MAX_NAMED
    return f"{named} and {count(more)} more" if more > 0 else named
