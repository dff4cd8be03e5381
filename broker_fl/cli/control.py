"""``broker-fl pause``, ``resume`` and ``stop``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from broker_fl.cli import options
from broker_fl.cli.access import driver_of, find_job
from broker_fl.cli.command import Command
from broker_fl.roles.driver import Job


@click.command(cls=Command)
@click.argument("job")
@options.broker_access
@options.timeout
@click.option("--reason", default="paused by broker-fl pause", metavar="TEXT", help="Kept with the job.")
def pause(job: str, reason: str, **access: Any) -> None:
    """Let JOB (an id, a beginning of one, or `latest`) begin no new round; the open one is finished.

    An asynchronous job gives no new task; updates that are under way still count.
    """
    _tell(job, access, lambda found: found.pause(reason))


@click.command(cls=Command)
@click.argument("job")
@options.broker_access
@options.timeout
@click.option("--versions", type=click.IntRange(1), metavar="N", help="Pause again after N new versions.")
def resume(job: str, versions: int | None, **access: Any) -> None:
    """Let a paused JOB go on: to its end, or with --versions 1 step by step."""
    _tell(job, access, lambda found: found.resume(versions=versions))


@click.command(cls=Command)
@click.argument("job")
@options.broker_access
@options.timeout
@click.option("--reason", default="stopped by broker-fl stop", metavar="TEXT", help="Kept with the job.")
def stop(job: str, reason: str, **access: Any) -> None:
    """Stop JOB (an id, a beginning of one, or `latest`); the versions that it committed are kept."""
    _tell(job, access, lambda found: found.stop(reason))


def _tell(job: str, access: dict[str, Any], what: Callable[[Job], None]) -> None:
    with driver_of(access) as driver:
        found = find_job(driver, job)
        what(found)
    click.echo(found.id)
