"""``broker-fl up``, ``status`` and ``down``: a cluster on this machine."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from broker_fl.apps import load_app
from broker_fl.cli import options
from broker_fl.cli.command import Command
from broker_fl.cli.demo import find_example
from broker_fl.cli.tables import print_table
from broker_fl.extensions import OwnClasses
from broker_fl.workers.cluster import Cluster

folder_option = click.option(
    "--folder",
    default=".cluster",
    show_default=True,
    metavar="FOLDER",
    help="Everything of the cluster is in it.",
)


@click.command(cls=Command)
@click.option(
    "--learners", type=click.IntRange(0, 1000), default=5, show_default=True, metavar="N", help="How many."
)
@click.option("--app", metavar="APP", help="What they run.  [default: examples/digits.py of a checkout]")
@options.federation
@folder_option
def up(learners: int, app: str | None, federation: str, folder: str) -> None:
    """Start RabbitMQ, Redis, a controller and N learners on free ports, on loopback only.

    It needs rabbitmq-server and redis-server installed, and no rights. `broker-fl down` ends what it started.
    """
    target = absolute_app(app or str(find_example()))
    loaded = load_app(target)
    has_own_rules = bool(OwnClasses.of_module(loaded.module, loaded.code).classes)
    cluster = Cluster(folder, federation=federation)
    with _ending_on_sigterm():
        cluster.up(target, learners, _tell, has_own_rules=has_own_rules)
    click.echo(f"\nRunning, with {learners} learners. Settings (with passwords): {folder}/broker-fl.toml\n")
    example = Path(target).parent / "job.toml" if app is None else None
    for command in (f"submit {example or 'JOB.toml'} --watch", "learners", "jobs"):
        click.echo(f"  broker-fl --config {folder}/broker-fl.toml {command}")
    click.echo(f"  broker-fl down --folder {folder}")


@click.command(cls=Command)
@folder_option
@click.option("--delete", is_flag=True, help="Delete the folder too, with all jobs and models.")
def down(folder: str, delete: bool) -> None:
    """End exactly what `broker-fl up` started; data and logs stay in the folder."""
    is_there = Path(folder).is_dir()
    num_ended = Cluster(folder).down(tell=_tell, delete=delete)
    if not is_there:
        click.echo(f"there is no folder {folder}: nothing was ended")
        return
    what = "1 process" if num_ended == 1 else f"{num_ended or 'no'} processes"
    rest = f"data and logs stay in {folder}" if Path(folder).exists() else f"{folder} is deleted"
    click.echo(f"{what} ended; {rest}")


@click.command(cls=Command)
@folder_option
def status(folder: str) -> None:
    """Show the processes of a cluster; the exit code is 1 if one has ended by itself."""
    parts = Cluster(folder).parts()
    if not parts:
        click.echo(f"nothing runs in {folder}")
        return
    rows = [(part.name, str(part.pid or "ended"), str(part.log)) for part in parts]
    print_table(("process", "id", "log"), rows, numbers=("id",))
    if any(part.pid is None for part in parts):
        raise click.exceptions.Exit(1)


def absolute_app(target: str) -> str:
    """The same app for a process in any working directory."""
    place, colon, factory = target.partition(":")
    return f"{Path(place).absolute()}{colon}{factory}" if place.endswith(".py") else target


def _tell(what: str) -> None:
    click.echo(what, err=True)


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM cleans up as Ctrl-C does."""

    def handle(number: int, _frame: FrameType | None) -> None:
        raise click.exceptions.Exit(128 + number)

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
