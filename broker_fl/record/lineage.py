"""Which updates and which version a version was made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from broker_fl.record.records import VersionRecord
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.tasks import Spread


def note_contributions(
    version: VersionRecord,
    contributions: Sequence[tuple[str, RoundRecord | None]],
    *,
    with_spreads: bool,
) -> None:
    """Note with each contributor's task that its update is in this version, and with the version how stale
    they are. A contributor's round is None if the fold was not seen. ``with_spreads`` also notes how their
    metrics lie, where they are not those of one round.
    """
    stalenesses: list[float] = []
    values: dict[str, list[float]] = {}
    for learner, record in contributions:
        if record is None:
            continue
        row = record.tasks.row(learner)
        record.tasks.set(row, "committed_s", version.committed_s or 0.0)
        record.tasks.set(row, "committed_version", version.version)
        stalenesses.append(record.tasks.get(row, "staleness"))
        if with_spreads:
            for name, value in record.tasks.record(row).metrics.items():
                values.setdefault(name, []).append(value)
    if stalenesses:
        version.mean_staleness, version.max_staleness = float(np.mean(stalenesses)), int(max(stalenesses))
    version.training_spreads = _spreads(values)


def spreads_of(metrics: Iterable[Mapping[str, float]]) -> dict[str, Spread]:
    """How each metric lies over learners."""
    values: dict[str, list[float]] = {}
    for one in metrics:
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    return _spreads(values)


def _spreads(values: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    found = {name: Spread.of(np.array(column)) for name, column in values.items()}
    return {name: spread for name, spread in found.items() if spread is not None}


def lineage(versions: Mapping[int, VersionRecord], newest: int) -> list[VersionRecord]:
    """See ``History.lineage``."""
    line: list[VersionRecord] = []
    number: int | None = newest
    while number is not None and number in versions and (not line or number < line[-1].version):
        line.append(versions[number])
        number = versions[number].parent
    return line
