"""The report of one run, or of several side by side: one HTML file that needs nothing else and no network.

Everything that came from a learner (ids, reasons, names of metrics) is shown as text and never as markup.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker_fl.errors import SettingError
from broker_fl.record.history import History
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.runfolder import RunFolder, write_whole
from broker_fl.record.text import count, number, one_line, plural, seconds, size
from broker_fl.record.timeline import typical

if TYPE_CHECKING:
    from broker_fl.record.plots import Chart, Charts

MAX_CHARTED_METRICS = 12
MAX_TABLED_METRICS = 4
MAX_ROWS = 500
"""Rows of a table; the whole is in the history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a report says something about."""

    name: str
    history: History
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: RunFolder) -> Run:
        """The run in a folder.

        Raises:
            SettingError: its files cannot be read.
        """
        return cls(name=folder.name, history=folder.history(), settings=folder.settings())


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One run on the page."""

    name: str
    state: str
    reason: str
    facts: Sequence[tuple[str, str]]
    figures: Sequence[Figure]
    charts: Sequence[Chart]
    timelines: Sequence[tuple[str, Chart]]
    grids: Sequence[Grid]
    settings: Sequence[tuple[str, str]]


def write_report(runs: Sequence[RunFolder | Run], path: str | Path) -> Path:
    """Write the report of these runs to ``path``, whole or not at all; several are laid over one another.

    Raises:
        SettingError: no run was given, a run cannot be read, or jinja2 or matplotlib is not installed.
        StoreUnavailable: the file cannot be written.
    """
    page = render([run if isinstance(run, Run) else Run.of(run) for run in runs])
    write_whole(Path(path), page.encode("utf-8", "replace"))
    return Path(path)


def render(runs: Sequence[Run]) -> str:
    """The report as HTML.

    Raises:
        SettingError: no run was given, or jinja2 or matplotlib is not installed.
    """
    if not runs:
        raise SettingError("a report needs at least one run")
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        from broker_fl.record.plots import Charts
    except ImportError as error:
        raise SettingError(
            f"the report needs {error.name}, which is not installed: pip install 'broker-fl[report]'",
        ) from error
    charts = Charts()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    histories = [run.history for run in runs]
    return environment.get_template("template.html.j2").render(
        title=_title(runs),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        sections=[_section(run, charts) for run in runs],
        comparison=_comparison(runs) if len(runs) > 1 else None,
        overlays=_overlays(histories, charts) if len(runs) > 1 else [],
    )


def _title(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs"
    spec = runs[0].history.spec
    return spec.name if spec else one_line(runs[0].name, 60)


def _metric_names(histories: Iterable[History]) -> list[str]:
    """Evaluation metrics first, in the order in which they came."""
    versions = [version for history in histories for version in history.versions.values()]
    names = dict.fromkeys(name for version in versions for name in version.evaluation)
    return list(names | dict.fromkeys(name for version in versions for name in version.metrics))


# ---------------------------------------------------------------- several runs


def _overlays(histories: Sequence[History], charts: Charts) -> list[Chart]:
    drawn = []
    for name in _metric_names(histories)[:MAX_CHARTED_METRICS]:
        if any(name in version.evaluation for history in histories for version in history.versions.values()):
            drawn += [charts.metric(histories, name), charts.metric_by_time(histories, name)]
    return [*drawn, charts.durations(histories)]


def _comparison(runs: Sequence[Run]) -> Grid:
    names = _metric_names(run.history for run in runs)[:MAX_TABLED_METRICS]
    return Grid(
        title="Runs",
        head=(
            "run",
            "state",
            *map(_label, names),
            "rounds",
            "duration",
            "median round",
            "missed",
            "down",
            "up",
        ),
        rows=[
            (
                one_line(run.name, 60),
                run.history.state,
                *(number(run.history.metrics.get(name)) for name in names),
                count(len(run.history.committed)),
                seconds(run.history.duration_s),
                seconds(_median_s(run.history)),
                count(_missed(run.history)),
                size(run.history.bytes_down),
                size(run.history.bytes_up),
            )
            for run in runs
        ],
        num_text_columns=2,
        note="“missed”: tasks that failed, were late, or whose update was refused.",
    )


# ---------------------------------------------------------------- one run


def _section(run: Run, charts: Charts) -> Section:
    history = run.history
    return Section(
        name=one_line(run.name, 80),
        state=history.state,
        reason=one_line(history.reason, 400),
        facts=list(_facts(run)),
        figures=list(_figures(history)),
        charts=_charts(history, charts),
        timelines=_timelines(history, charts),
        grids=[_rounds(history), _learners(history), *_incidents(history)],
        settings=list(_settings(run)),
    )


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    history = run.history
    yield "job", history.job or "–"
    if history.submitted_s is not None:
        yield "submitted", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(history.submitted_s))
    yield "duration", seconds(history.duration_s)
    yield "learners", count(len(history.learners))
    yield "model", f"{plural(history.num_parameters, 'parameter')}, {size(history.model_bytes)}"
    if spec := history.spec:
        yield "protocol", f"{spec.protocol.name}, {spec.rule.name}, selector “{spec.selector.name}”"
    if history.num_resumed:
        yield "controller", f"resumed {plural(history.num_resumed, 'time')}"
    if software := run.settings.get("software"):
        shown = [f"{name} {software[name]}" for name in ("broker-fl", "python", "numpy") if name in software]
        yield "software", one_line(", ".join(shown))


def _figures(history: History) -> Iterator[Figure]:
    first = _first_evaluation(history)
    for name, value in list(history.metrics.items())[:MAX_TABLED_METRICS]:
        note = f"first {number(first[name])}" if name in first else ""
        yield Figure(label=f"final {one_line(name, 40)}", value=number(value), note=note)
    yield Figure(
        label="rounds",
        value=count(len(history.committed)),
        note=f"median {seconds(_median_s(history))}",
    )
    counts = history.counts
    yield Figure(
        label="updates folded",
        value=count(counts["folded"]),
        note=f"of {count(_asked(history))} asked for",
    )
    yield Figure(
        label="missed",
        value=count(_missed(history)),
        note=f"{counts['failed']} failed, {counts['late']} late, {counts['refused']} refused",
        alarming=_missed(history) > 0,
    )
    yield Figure(
        label="published",
        value=size(history.bytes_down),
        note="to learners, before the broker’s copies",
    )
    yield Figure(label="received", value=size(history.bytes_up), note="updates")


def _first_evaluation(history: History) -> Mapping[str, float]:
    evaluated = [version for version in history.versions.values() if version.evaluation]
    return min(evaluated, key=lambda version: version.version).evaluation if evaluated else {}


def _asked(history: History) -> int:
    """Updates; the evaluation after the last round asks for none."""
    return sum(len(record.tasks) for record in history.rounds.values() if record.train)


def _missed(history: History) -> int:
    return sum(history.counts[name] for name in ("failed", "late", "refused"))


def _median_s(history: History) -> float | None:
    record = typical(history.committed)
    return record.round_s if record else None


def _charts(history: History, charts: Charts) -> list[Chart]:
    drawn = [charts.metric([history], name) for name in _metric_names([history])[:MAX_CHARTED_METRICS]]
    rounds = history.committed
    if rounds:
        started = [history.rounds[key] for key in sorted(history.rounds) if history.rounds[key].train]
        drawn += [charts.breakdown(rounds), charts.task_times(rounds), charts.outcomes(started)]
    if any(learner.weight for learner in history.learners.values()):
        drawn.append(charts.contribution(history))
    return drawn


def _timelines(history: History, charts: Charts) -> list[tuple[str, Chart]]:
    rounds = [record for record in history.committed if len(record.tasks)]
    median = typical(rounds)
    if median is None:
        return []
    chosen = {"median round": median, "first round": rounds[0], "last round": rounds[-1]}
    return [(f"{label}: {record.round}", charts.timeline(record)) for label, record in chosen.items()]


def _rounds(history: History) -> Grid:
    rounds = [history.rounds[key] for key in sorted(history.rounds)]
    names = _metric_names([history])[:MAX_TABLED_METRICS]
    shown = rounds[-MAX_ROWS:]
    return Grid(
        title="Rounds",
        head=("round", "cohort", "folded", "missed", "duration", *map(_label, names), "down", "up"),
        rows=[_round_row(record, names) for record in shown],
        num_text_columns=1,
        note=_left_out(len(rounds), len(shown), "rounds", "the last")
        + "Metrics: of the evaluation of the version that the round began with, or else of its training.",
    )


def _round_row(record: RoundRecord, names: Sequence[str]) -> list[str]:
    missed = [
        f"{record.counts[name]} {name}"
        for name in ("failed", "late", "refused", "retried")
        if record.counts[name]
    ]
    return [
        str(record.round) if record.train else f"{record.round} (evaluation)",
        count(record.num_learners),
        count(record.counts["folded"]),
        ", ".join(missed) or "–",
        seconds(record.round_s),
        *(number(record.evaluation.get(name, record.metrics.get(name))) for name in names),
        size(record.bytes_down),
        size(record.bytes_up),
    ]


def _learners(history: History) -> Grid:
    learners = sorted(
        history.learners.values(),
        key=lambda item: (-(item.failed + item.late + item.refused + item.lost), item.learner),
    )
    shown = learners[:MAX_ROWS]
    total = sum(learner.weight for learner in learners) or 1.0
    head = (
        "learner",
        "",
        "tasks",
        "folded",
        "failed",
        "late",
        "refused",
        "lost",
        "mean train",
        "examples",
        "weight",
        "up",
    )
    rows = [
        (
            one_line(item.learner, 64),
            item.presence,
            *map(count, (item.tasks, item.folded, item.failed, item.late, item.refused, item.lost)),
            seconds(item.mean_train_s),
            count(item.num_examples),
            f"{item.weight / total * 100:.1f} %",
            size(item.bytes_up),
        )
        for item in shown
    ]
    note = _left_out(len(learners), len(shown), "learners", "those with the most trouble")
    return Grid(title="Learners", head=head, rows=rows, num_text_columns=2, note=note)


def _incidents(history: History) -> Iterator[Grid]:
    incidents = [item for item in history.incidents if item.kind != "waiting"]
    if not incidents:
        return
    start_s = history.submitted_s or 0.0
    shown = incidents[-MAX_ROWS:]
    yield Grid(
        title="Incidents",
        head=("what", "learner", "reason", "round", "after"),
        rows=[
            (
                item.kind,
                one_line(item.learner or "–", 64),
                one_line(item.reason, 400),
                "–" if item.round is None else str(item.round),
                seconds(max(0.0, item.time_s - start_s)),
            )
            for item in shown
        ],
        num_text_columns=3,
        note=_left_out(len(incidents), len(shown), "incidents", "the last"),
    )


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    settings = dict(run.settings)
    if "job" not in settings and run.history.spec is not None:
        settings["job"] = run.history.spec.model_dump(mode="json")
    for key, value in settings.items():
        yield from _flattened(str(key), value)


def _flattened(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flattened(f"{key}.{name}", item)
    else:
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield one_line(key, 120), one_line(shown, 1_000)


def _label(name: str) -> str:
    return one_line(name, 32)


def _left_out(total: int, shown: int, noun: str, which: str) -> str:
    return (
        f"{count(shown)} of {count(total)} {noun}, {which}; all are in the history. " if shown < total else ""
    )
