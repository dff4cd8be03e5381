"""``broker-fl report``."""

from __future__ import annotations

from pathlib import Path

import click

from broker_fl.cli.command import Command
from broker_fl.record.report import write_report
from broker_fl.record.runfolder import REPORT, RunFolder


@click.command(cls=Command)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--out", metavar="FILE", help="Where to.  [default: report.html in the run folder; of several, here]"
)
def report(runs: tuple[str, ...], out: str | None) -> None:
    """Make the report page of a run folder; of several, one page that compares them."""
    folders = [RunFolder.open(run) for run in runs]
    default = folders[0].path / REPORT if len(folders) == 1 else Path(REPORT)
    click.echo(write_report(folders, out or default))
