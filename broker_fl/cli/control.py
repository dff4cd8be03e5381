"""``broker-fl pause``, ``resume`` and ``stop``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from broker_fl.cli import options
from broker_fl.cli.access import driver_of, find_summary
from broker_fl.cli.command import Command
from broker_fl.errors import RequestRefused
from broker_fl.record.text import one_line, plural, size
from broker_fl.roles.driver import Job
from broker_fl.wire.messages import JobSummary

_ENDED = ("done", "stopped", "failed")


@click.command(cls=Command)
@click.argument("job")
@options.broker_access
@options.timeout
@click.option("--reason", default="paused by broker-fl pause", metavar="TEXT", help="Kept with the job.")
def pause(job: str, reason: str, **access: Any) -> None:
    """Let JOB (an id, a beginning of one, or `latest`) begin no new round; the open one is finished.

    An asynchronous job gives no new task; updates that are under way still count.
    """
    _tell(job, access, lambda found: found.pause(reason), _paused)


@click.command(cls=Command)
@click.argument("job")
@options.broker_access
@options.timeout
@click.option("--versions", type=click.IntRange(1), metavar="N", help="Pause again after N new versions.")
def resume(job: str, versions: int | None, **access: Any) -> None:
    """Let a paused JOB go on: to its end, or with --versions 1 step by step."""
    _tell(
        job, access, lambda found: found.resume(versions=versions), lambda before: _resumed(before, versions)
    )


@click.command(cls=Command)
@click.argument("job")
@options.broker_access
@options.timeout
@click.option("--reason", default="stopped by broker-fl stop", metavar="TEXT", help="Kept with the job.")
def stop(job: str, reason: str, **access: Any) -> None:
    """Stop JOB (an id, a beginning of one, or `latest`); the versions that it committed are kept."""
    _tell(job, access, lambda found: found.stop(reason), _stopped)


@click.command(cls=Command)
@click.argument("job")
@options.broker_access
@options.timeout
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--reason", default="", metavar="TEXT", help="For the audit log.")
def delete(job: str, yes: bool, reason: str, **access: Any) -> None:
    """Delete JOB (an id, a beginning of one, or `latest`), which has ended: for good, with all its models."""
    with driver_of(access) as driver:
        found = find_summary(driver, job)
        versions = driver.job(found.job).versions()
        held = f"{plural(len(versions), 'model version')} ({size(sum(one.num_bytes for one in versions))})"
        if found.state not in _ENDED:
            raise RequestRefused(f"job {found.job} has not ended, it is {found.state}: stop it first")
        if not yes:
            click.echo(
                f"job {found.job}, {found.state}: {held} and its record of events are deleted for good, and "
                "nobody can go on from it. To keep them: broker-fl models export, broker-fl watch --out"
            )
            _confirm()
        driver.job(found.job).delete(reason)
    click.echo(f"{found.job}: deleted, with {held} and its events")


def _confirm() -> None:
    """Ask whether to delete.

    Raises:
        Abort: no.
        UsageError: there is nobody to ask.
    """
    try:
        is_sure = click.confirm("Delete it?")
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo(err=True)
        raise click.UsageError(
            "nothing was deleted: there is no terminal to ask on; --yes deletes without asking"
        ) from None
    if not is_sure:
        raise click.Abort


def _tell(
    job: str, access: dict[str, Any], what: Callable[[Job], None], said: Callable[[JobSummary], str]
) -> None:
    """Do it, and say what came of it, which depends on what the job was like before."""
    with driver_of(access) as driver:
        before = find_summary(driver, job)
        what(driver.job(before.job))
    click.echo(f"{before.job}: {said(before)}")


def _paused(before: JobSummary) -> str:
    if before.state == "paused":
        return f"was paused already ({one_line(before.reason)})" if before.reason else "was paused already"
    return "paused; what is under way (the open round) is finished first"


def _resumed(before: JobSummary, versions: int | None) -> str:
    until = f", and pauses after {plural(versions, 'new version')}" if versions else ""
    return f"goes on{until}" if before.state == "paused" else f"was not paused; goes on{until}"


def _stopped(before: JobSummary) -> str:
    if before.state in _ENDED:
        why = f", {one_line(before.reason)}" if before.reason else ""
        return f"has ended already: {before.state}{why}"
    return "stopped; the versions that it committed are kept"
