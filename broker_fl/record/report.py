"""The report of one run, or of several side by side: one HTML file that needs nothing else and no network.

Everything that came from a learner (ids, reasons, names of metrics) is shown as text and never as markup.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from broker_fl.errors import SettingError
from broker_fl.record.history import History
from broker_fl.record.runfolder import RunFolder, write_whole
from broker_fl.record.sections import (
    MAX_TABLED_METRICS,
    Figure,
    Grid,
    facts,
    figures,
    grids,
    label,
    median_s,
    missed,
    protocol,
    settings_of,
)
from broker_fl.record.text import count, number, one_line, seconds, size

if TYPE_CHECKING:
    from broker_fl.record.plots import Chart, Charts


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
class Section:
    """One run on the page."""

    name: str
    asynchronous: bool
    protocol: str
    state: str
    reason: str
    facts: Sequence[tuple[str, str]]
    figures: Sequence[Figure]
    charts: Sequence[Chart]
    whole_width: Sequence[Chart]
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

        from broker_fl.record import gallery
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
    names = gallery.metric_names(histories)[:MAX_TABLED_METRICS]
    return environment.get_template("template.html.j2").render(
        title=_title(runs),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        sections=[_section(run, charts, gallery) for run in runs],
        comparison=_comparison(runs, names) if len(runs) > 1 else None,
        overlays=gallery.overlays(histories, charts) if len(runs) > 1 else [],
    )


def _title(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs"
    spec = runs[0].history.spec
    return spec.name if spec else one_line(runs[0].name, 60)


# ---------------------------------------------------------------- several runs


def _comparison(runs: Sequence[Run], names: Sequence[str]) -> Grid:
    return Grid(
        title="Runs",
        head=(
            "run",
            "state",
            "protocol",
            "rule",
            *map(label, names),
            "versions",
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
                *protocol(run.history),
                *(number(run.history.metrics.get(name)) for name in names),
                count(len(run.history.committed)),
                seconds(run.history.duration_s),
                seconds(median_s(run.history)),
                count(missed(run.history)),
                size(run.history.bytes_down),
                size(run.history.bytes_up),
            )
            for run in runs
        ],
        num_text_columns=4,
        note="“median round”: of an asynchronous run, from version to version. “missed”: tasks that failed, "
        "were late, or whose update was refused.",
    )


# ---------------------------------------------------------------- one run


def _section(run: Run, charts: Charts, gallery: ModuleType) -> Section:
    history, settings = run.history, dict(run.settings)
    if "job" not in settings and history.spec is not None:
        settings["job"] = history.spec.model_dump(mode="json")
    return Section(
        name=one_line(run.name, 80),
        asynchronous=history.asynchronous,
        protocol=", ".join(protocol(history)),
        state=history.state,
        reason=one_line(history.reason, 400),
        facts=list(facts(history, settings.get("software", {}))),
        figures=list(figures(history)),
        charts=gallery.course(history, charts),
        whole_width=gallery.whole_width(history, charts),
        timelines=gallery.timelines(history, charts),
        grids=grids(history, gallery.metric_names([history])[:MAX_TABLED_METRICS]),
        settings=list(settings_of(settings)),
    )
