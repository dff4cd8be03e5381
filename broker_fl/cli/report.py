"""``broker-fl report``."""

from __future__ import annotations

from pathlib import Path

import click

from broker_fl.cli.command import Command
from broker_fl.record.report import write_report
from broker_fl.record.runfolder import REPORT, RunFolder, write_whole


@click.command(cls=Command)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--out", metavar="FILE", help="Where to.  [default: report.html in the run folder; of several, here]"
)
@click.option("--json", "as_json", is_flag=True, help="The history as JSON, one line a run, instead.")
def report(runs: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Make the report page of a run folder; of several, one page that compares them."""
    folders = [RunFolder.open(run) for run in runs]
    if as_json:
        _print_histories(folders, out)
        return
    default = folders[0].path / REPORT if len(folders) == 1 else Path(REPORT)
    click.echo(write_report(folders, out or default))


def _print_histories(folders: list[RunFolder], out: str | None) -> None:
    lines = [folder.history().to_json() for folder in folders]
    if out is None:
        for line in lines:
            click.echo(line)
        return
    write_whole(Path(out), "".join(f"{line}\n" for line in lines).encode())
    click.echo(out)
