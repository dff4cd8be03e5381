"""What a report says of one run in words and numbers: facts, figures, tables, settings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from broker_fl.record.history import History
from broker_fl.record.incidents import grouped, names_of
from broker_fl.record.records import LearnerRecord, VersionRecord
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.text import count, number, one_line, plural, seconds, size
from broker_fl.record.timeline import typical

MAX_TABLED_METRICS = 4
MAX_ROWS = 500
"""Rows of a table; the whole is in the history."""

Measured = RoundRecord | VersionRecord
MetricColumn = tuple[Literal["evaluation", "metrics"], str]
"""Where a column's numbers are from, and the metric's name; ``metrics`` are those of training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number that matters."""

    label: str
    value: str
    note: str = ""
    alarming: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table: its head, its rows, and what was left out of it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    num_text_columns: int = 1
    """Columns of words, on the left; the others hold numbers."""


def facts(history: History, software: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What the run is, by name."""
    yield "job", history.job or "–"
    if history.submitted_s is not None:
        yield "submitted", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(history.submitted_s))
    yield "duration", seconds(history.duration_s)
    yield "learners", count(len(history.learners))
    yield "model", f"{plural(history.num_parameters, 'parameter')}, {size(history.model_bytes)}"
    if spec := history.spec:
        pacing = "" if spec.pacing.name == "fixed" else f", {spec.pacing.name}"
        yield "protocol", f"{', '.join(protocol(history))}, selector “{spec.selector.name}”{pacing}"
    if history.num_resumed:
        yield "controller", f"resumed {plural(history.num_resumed, 'time')}"
    if history.parent is not None:
        which = (
            "the newest version" if history.parent.version is None else f"version {history.parent.version}"
        )
        yield "continues", f"{which} of {history.parent.job}"
    if software:
        shown = [f"{name} {software[name]}" for name in ("broker-fl", "python", "numpy") if name in software]
        yield "software", one_line(", ".join(shown))


def protocol(history: History) -> tuple[str, str]:
    """Names of protocol and rule."""
    if history.spec is None:
        return "–", "–"
    return history.spec.protocol.name.replace("_", "-"), history.spec.rule.name


def figures(history: History) -> Iterator[Figure]:
    """The numbers that matter."""
    first = _first_evaluation(history)
    for name, value in list(history.metrics.items())[:MAX_TABLED_METRICS]:
        note = f"first {number(first[name])}" if name in first else ""
        yield Figure(label=f"final {one_line(name, 40)}", value=number(value), note=note)
    yield _steps(history)
    cancelled = history.counts["cancelled"]
    yield Figure(
        label="updates folded",
        value=count(history.counts["folded"]),
        note=f"of {count(history.num_asked)} asked for"
        + (f", {count(cancelled)} not needed" if cancelled else ""),
    )
    yield _missed_figure(history)
    if history.asynchronous:
        yield from _staleness(history)
    yield Figure(label="sent", value=size(history.bytes_down), note="models, a copy for each learner")
    yield Figure(label="received", value=size(history.bytes_up), note="updates")


def _steps(history: History) -> Figure:
    middle = seconds(median_s(history))
    if history.asynchronous:
        return Figure(label="versions", value=count(len(history.committed)), note=f"median {middle} apart")
    return Figure(label="rounds", value=count(len(history.committed)), note=f"median {middle}")


def _missed_figure(history: History) -> Figure:
    counts = history.counts
    note = f"{counts['failed']} failed, {counts['late']} late, {counts['refused']} refused"
    return Figure(label="missed", value=count(missed(history)), note=note, alarming=missed(history) > 0)


def _staleness(history: History) -> Iterator[Figure]:
    folded = history.counts["folded"]
    if folded:
        total = sum(learner.staleness for learner in history.learners.values())
        most = max((version.max_staleness or 0 for version in history.versions.values()), default=0)
        yield Figure(label="mean staleness", value=f"{total / folded:.3g}", note=f"versions; at most {most}")


def _first_evaluation(history: History) -> Mapping[str, float]:
    evaluated = [version for version in history.versions.values() if version.evaluation]
    return min(evaluated, key=lambda version: version.version).evaluation if evaluated else {}


def missed(history: History) -> int:
    """Tasks that failed, were late, or whose update was refused."""
    return sum(history.counts[name] for name in ("failed", "late", "refused"))


def median_s(history: History) -> float | None:
    """Duration of the median round, or time between versions."""
    record = typical(history.committed)
    return record.round_s if record else None


def grids(history: History, names: Sequence[str]) -> list[Grid]:
    """The tables, with these metrics."""
    steps = _versions(history, names) if history.asynchronous else _rounds(history, names)
    return [steps, _learners(history), *_incidents(history)]


def _rounds(history: History, names: Sequence[str]) -> Grid:
    rounds = [history.rounds[key] for key in sorted(history.rounds)]
    shown = rounds[-MAX_ROWS:]
    columns = _metric_columns(rounds, names)
    return Grid(
        title="Rounds",
        head=("round", "cohort", "folded", "missed", "duration", *_heads(columns), "down", "up"),
        rows=[_round_row(record, columns) for record in shown],
        num_text_columns=1,
        note=_left_out(len(rounds), len(shown), "rounds", "the last")
        + "Metrics: of the evaluation of the version that the round began with; “training”: of its training.",
    )


def _metric_columns(records: Iterable[Measured], names: Sequence[str]) -> list[MetricColumn]:
    """Two columns for a metric that is both of evaluations and of training: they are not the same thing."""
    kinds: tuple[Literal["evaluation"], Literal["metrics"]] = ("evaluation", "metrics")
    known = {(kind, name) for record in records for kind in kinds for name in getattr(record, kind)}
    return [(kind, name) for name in names for kind in kinds if (kind, name) in known]


def _heads(columns: Sequence[MetricColumn]) -> list[str]:
    return [label(name if kind == "evaluation" else f"training {name}") for kind, name in columns]


def _metric_cells(record: Measured, columns: Sequence[MetricColumn]) -> list[str]:
    return [number(getattr(record, kind).get(name)) for kind, name in columns]


def _round_row(record: RoundRecord, columns: Sequence[MetricColumn]) -> list[str]:
    parts = [
        f"{record.counts[name]} {name}"
        for name in ("failed", "late", "refused", "retried")
        if record.counts[name]
    ]
    what = "" if record.train else " (evaluation)"
    what += " (unfinished)" if record.state == "unfinished" else ""
    return [
        f"{record.round + 1}{what}" if record.train else "evaluation",
        count(record.num_learners),
        count(record.counts["folded"]),
        ", ".join(parts) or "–",
        seconds(record.round_s),
        *_metric_cells(record, columns),
        size(record.bytes_down),
        size(record.bytes_up),
    ]


def _versions(history: History, names: Sequence[str]) -> Grid:
    versions = [history.versions[key] for key in sorted(history.versions)]
    shown = versions[-MAX_ROWS:]
    columns = _metric_columns(versions, names)
    return Grid(
        title="Versions",
        head=("version", "made by", "updates", "staleness", "after", "since the last", *_heads(columns)),
        rows=[_version_row(history, version, columns) for version in shown],
        num_text_columns=2,
        note=_left_out(len(versions), len(shown), "versions", "the last")
        + "Staleness: mean of the updates. Metrics: of the version’s evaluation, the mean over all learners’ "
        "newest when it was last renewed; “training”: of the training that made it.",
    )


def _used(version: VersionRecord) -> str:
    """How many of the updates are in the version, where the rule chose among them."""
    if not version.used:
        return ""
    return f", {sum(share > 0 for share in version.used.values())} used"


def _version_row(history: History, version: VersionRecord, columns: Sequence[MetricColumn]) -> list[str]:
    start_s, at_s = history.submitted_s, version.committed_s
    record = None if version.round is None else history.rounds.get(version.round)
    return [
        str(version.version),
        names_of(version.contributors) or "–",
        count(version.num_contributors) + _used(version),
        "–" if version.mean_staleness is None else f"{version.mean_staleness:.3g}",
        seconds(None if start_s is None or at_s is None else max(0.0, at_s - start_s)),
        seconds(record.round_s if record else None),
        *_metric_cells(version, columns),
    ]


def _learners(history: History) -> Grid:
    learners = sorted(
        history.learners.values(),
        key=lambda item: (-(item.failed + item.late + item.refused + item.lost), item.learner),
    )
    shown = learners[:MAX_ROWS]
    total = sum(learner.weight for learner in learners) or 1.0
    columns: dict[str, Callable[[LearnerRecord], str]] = {
        "learner": lambda item: one_line(item.learner, 64),
        "presence": lambda item: item.presence,
        "tasks": lambda item: count(item.tasks),
        "folded": lambda item: count(item.folded),
        "failed": lambda item: count(item.failed),
        "late": lambda item: count(item.late),
        "refused": lambda item: count(item.refused),
        "cancelled": lambda item: count(item.cancelled),
        "lost": lambda item: count(item.lost),
        "mean train": lambda item: seconds(item.mean_train_s),
        "epochs": lambda item: number(item.num_epochs),
        "examples": lambda item: count(item.num_examples),
        "staleness": lambda item: f"{item.staleness / item.folded:.3g}" if item.folded else "–",
        "weight": lambda item: f"{item.weight / total * 100:.1f} %",
        "memory": lambda item: size(item.peak_memory_bytes) if item.peak_memory_bytes else "–",
        "up": lambda item: size(item.bytes_up),
    }
    known = {
        "epochs": any(item.num_epochs for item in learners),
        "staleness": history.asynchronous,
        "cancelled": history.counts["cancelled"] > 0,
        "memory": any(item.peak_memory_bytes for item in learners),
    }
    columns = {name: cell for name, cell in columns.items() if known.get(name, True)}
    return Grid(
        title="Learners",
        head=list(columns),
        rows=[[cell(item) for cell in columns.values()] for item in shown],
        num_text_columns=2,
        note=_left_out(len(learners), len(shown), "learners", "those with the most trouble"),
    )


def _incidents(history: History) -> Iterator[Grid]:
    groups = grouped(item for item in history.incidents if item.kind != "waiting")
    if not groups:
        return
    start_s = history.submitted_s or 0.0
    shown = groups[-MAX_ROWS:]
    yield Grid(
        title="Incidents",
        head=("what", "learners", "reason", "version" if history.asynchronous else "round", "after"),
        rows=[
            (
                item.first.kind,
                names_of(item.learners) or "–",
                one_line(item.first.reason, 400) or "–",
                "–" if item.first.round is None else str(item.first.round + (not history.asynchronous)),
                seconds(max(0.0, item.first.time_s - start_s)),
            )
            for item in shown
        ],
        num_text_columns=3,
        note=_left_out(len(groups), len(shown), "incidents", "the last"),
    )


def settings_of(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings by their dotted names."""
    for key, value in settings.items():
        yield from _flattened(str(key), value)


def _flattened(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flattened(f"{key}.{name}", item)
    else:
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield one_line(key, 120), one_line(shown, 1_000)


def label(name: str) -> str:
    """A metric's name as the head of a column."""
    return one_line(name, 32)


def _left_out(total: int, shown: int, noun: str, which: str) -> str:
    return (
        f"{count(shown)} of {count(total)} {noun}, {which}; all are in the history. " if shown < total else ""
    )
