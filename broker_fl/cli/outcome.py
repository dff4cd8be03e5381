"""How a job that was watched ends: its exit code, its report page, the files it left."""

from __future__ import annotations

import click

from broker_fl.errors import SettingError, StoreUnavailable
from broker_fl.record.runfolder import MODEL, REPORT, RunFolder

STOPPED_BY = {"stopped by Ctrl-C": 130, "stopped by SIGTERM": 143}


def exit_code(state: str, reason: str) -> int:
    """0 for a job that is done, 130 or 143 if a signal stopped it, else 1."""
    if state == "done":
        return 0
    return STOPPED_BY.get(reason, 1) if state == "stopped" else 1


def show_files(folder: RunFolder, version: int) -> None:
    """Name the run folder and what is in it; ``version`` is that of the model."""
    click.echo(f"\n{folder.path}/")
    for path in sorted(folder.path.iterdir()):
        if path.name == MODEL:
            click.echo(f"  {path.name} ({_which(version)})")
        elif ".sqlite" not in path.name:
            click.echo(f"  {path.name}")


def _which(version: int) -> str:
    return f"version {version}" if version else "the initial model: no version was made from it"


def add_report(folder: RunFolder) -> None:
    """The report page. A run is not lost for want of one: the packages that it needs may be missing."""
    click.echo(f"writing {REPORT} …", err=True)
    from broker_fl.record.report import write_report  # with jinja2 and matplotlib: takes seconds itself

    try:
        write_report([folder], folder.path / REPORT)
    except (SettingError, StoreUnavailable) as error:
        click.echo(f"no report page: {error}", err=True)
        click.echo(f"later: broker-fl report {folder.path}", err=True)
