"""Which pictures a report has: those that say something about the run. It imports matplotlib: import late."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from broker_fl.record.curves import memory_lines
from broker_fl.record.history import History
from broker_fl.record.plots import Chart, Charts
from broker_fl.record.timeline import typical, windows

MAX_CHARTED_METRICS = 12
MIN_MAPPED = 2
"""Rounds, and learners, from which on a map of learners and rounds shows more than a timeline."""


def metric_names(histories: Iterable[History]) -> list[str]:
    """Evaluation metrics first, in the order in which they came."""
    versions = [version for history in histories for version in history.versions.values()]
    names = dict.fromkeys(name for version in versions for name in version.evaluation)
    return list(names | dict.fromkeys(name for version in versions for name in version.metrics))


def course(history: History, charts: Charts) -> list[Chart]:
    """Half a page wide each."""
    names = metric_names([history])[:MAX_CHARTED_METRICS]
    drawn = [charts.metric([history], name) for name in names]
    if history.asynchronous:
        drawn += [charts.metric_by_time([history], name) for name in names if _evaluated(history, name)]
    if history.committed:
        drawn += _of_versions(history, charts) if history.asynchronous else _of_rounds(history, charts)
    if any(learner.weight for learner in history.learners.values()):
        drawn.append(charts.contribution(history))
    workloads = dict.fromkeys(name for record in history.rounds.values() for name in record.tasks.workload)
    drawn += [charts.workload(history, name) for name in list(workloads)[:MAX_CHARTED_METRICS]]
    if lines := memory_lines(history):
        drawn.append(charts.memory(lines))
    return drawn


def whole_width(history: History, charts: Charts) -> list[Chart]:
    """As wide as the page."""
    trained = [record for record in history.rounds.values() if record.train and len(record.tasks)]
    if min(len(trained), len(history.learners)) < MIN_MAPPED:
        return []
    return [charts.round_trips(history)]


def timelines(history: History, charts: Charts) -> list[tuple[str, Chart]]:
    """Some rounds, or some time, with a lane for each learner."""
    if history.asynchronous:
        return [(label, charts.window(history, window)) for label, window in windows(history).items()]
    rounds = [record for record in history.committed if len(record.tasks)]
    median = typical(rounds)
    if median is None:
        return []
    chosen = {"median round": median, "first round": rounds[0], "last round": rounds[-1]}
    return [(f"{label}: {record.round + 1}", charts.timeline(record)) for label, record in chosen.items()]


def overlays(histories: Sequence[History], charts: Charts) -> list[Chart]:
    """Several runs, laid over one another."""
    drawn = []
    for name in metric_names(histories)[:MAX_CHARTED_METRICS]:
        if any(_evaluated(history, name) for history in histories):
            drawn += [charts.metric(histories, name), charts.metric_by_time(histories, name)]
    return [*drawn, charts.durations(histories)]


def _evaluated(history: History, name: str) -> bool:
    return any(name in version.evaluation for version in history.versions.values())


def _of_rounds(history: History, charts: Charts) -> list[Chart]:
    rounds = history.committed
    started = [history.rounds[key] for key in sorted(history.rounds) if history.rounds[key].train]
    return [charts.breakdown(rounds), charts.task_times(rounds), charts.outcomes(started)]


def _of_versions(history: History, charts: Charts) -> list[Chart]:
    columns = [record.tasks.column("staleness") for record in history.rounds.values()]
    stalenesses = np.concatenate([column[np.isfinite(column)] for column in columns])
    return [
        charts.staleness(stalenesses.tolist()),
        charts.learner_outcomes(history),
        charts.durations([history]),
    ]
