"""``broker-fl jobs``, ``learners`` and ``watch``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.core import ParameterSource

from broker_fl.cli import options
from broker_fl.cli.access import driver_of, find_job
from broker_fl.cli.command import Command, Family, print_json
from broker_fl.cli.control import delete
from broker_fl.cli.outcome import add_report, exit_code, show_files
from broker_fl.cli.tables import print_table, when
from broker_fl.cli.trackers import trackers, tracking
from broker_fl.cli.watching import Watcher, watching
from broker_fl.errors import BrokerUnavailable
from broker_fl.model import Model
from broker_fl.record.runfolder import RunFolder
from broker_fl.record.text import one_line, seconds
from broker_fl.roles.driver import Job
from broker_fl.wire.events import Event, JobFinished, JobSubmitted
from broker_fl.wire.fields import MAX_TEXT_CHARS
from broker_fl.wire.messages import LearnerSummary, TaskRef


@click.group(cls=Family, invoke_without_command=True)
@options.broker_access
@options.timeout
@options.as_json
@click.pass_context
def jobs(ctx: click.Context, /, as_json: bool, **access: Any) -> None:
    """List the federation's jobs, oldest first; or delete one."""
    if ctx.invoked_subcommand is not None:
        _refuse_options_before(ctx)
        return
    with driver_of(access) as driver:
        found = driver.jobs()
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    if not found:
        click.echo(f"federation {access['federation']} has no jobs", err=True)
        return
    rows = [
        (one.job, one.state, str(one.version), when(one.submitted_at), one_line(one.reason, MAX_TEXT_CHARS))
        for one in found
    ]
    columns = ("job", "state", "version", "submitted", "why")
    print_table(columns, rows, numbers=("version",), last_below=True)


def _refuse_options_before(ctx: click.Context) -> None:
    """Those of the list are not those of what is done to a job, and must not seem to be."""
    typed = [
        option.opts[0]
        for option in ctx.command.params
        if option.name and ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]
    if typed:
        raise click.UsageError(f"give {', '.join(typed)} after {ctx.invoked_subcommand!r}, not before it")


jobs.add_command(delete)


@click.command(cls=Command)
@options.broker_access
@options.timeout
@options.as_json
def learners(as_json: bool, **access: Any) -> None:
    """List the learners that are there, and what they do."""
    with driver_of(access) as driver:
        found = driver.learners()
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    if not found:
        click.echo(f"federation {access['federation']} has no learners", err=True)
        return
    rows = [
        (
            one.learner,
            _doing(one),
            seconds(one.last_seen_s) + " ago",
            _attributes(one),
            one_line(one.software),
        )
        for one in sorted(found, key=lambda one: one.learner)
    ]
    print_table(("learner", "does", "heard of", "attributes", "software"), rows)


@click.command(cls=Command)
@click.argument("job")
@options.broker_access
@options.timeout
@options.live
@options.as_json
@click.option(
    "--out", metavar="FOLDER", help="Also make a run folder in FOLDER: events, final model, report."
)
@trackers
def watch(job: str, live: bool | None, as_json: bool, out: str | None, **access: Any) -> None:
    """Watch JOB from its beginning to its end: an id, a beginning of one, or `latest`.

    Ctrl-C stops watching, not the job. The exit code is 0 if the job is done, 1 if it failed or was stopped.
    """
    names = {name: access.pop(name) for name in ("tensorboard", "mlflow")}
    with tracking(**names) as track, driver_of(access) as driver:
        finished = watch_job(find_job(driver, job), track, live=live, as_json=as_json, out=out)
    raise click.exceptions.Exit(exit_code(finished.state, ""))


def watch_job(job: Job, track: Watcher, *, live: bool | None, as_json: bool, out: str | None) -> JobFinished:
    """Show a job's events until its end, and ``track`` them; with ``out``, keep them in a run folder."""
    folder = RunFolder.create(out, job.id) if out else None
    finished: JobFinished | None = None
    with _goes_on(job), watching(live=live, as_json=as_json) as show:
        for event in job.events():
            if folder is not None:
                _keep(folder, event)
            track(event)
            show(event)
            finished = event if isinstance(event, JobFinished) else finished
    if finished is None:
        raise BrokerUnavailable(f"job {job.id} ended without saying so")
    if folder is not None:
        _complete(folder, job.model(), finished.version)
    return finished


@contextmanager
def _goes_on(job: Job) -> Iterator[None]:
    """Whoever ends watching is told that the job does not end with it."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            f"\njob {job.id} goes on: `broker-fl watch {job.id}` shows it again, "
            f"`broker-fl stop {job.id}` ends it",
            err=True,
        )
        raise click.exceptions.Exit(130) from None


def _keep(folder: RunFolder, event: Event) -> None:
    folder.append(event)
    if isinstance(event, JobSubmitted):
        folder.write_settings(event.spec, job_id=event.job)


def _complete(folder: RunFolder, model: Model, version: int) -> None:
    folder.close()
    folder.save_model(model)
    add_report(folder)
    show_files(folder, version)


def _doing(one: LearnerSummary) -> str:
    return (
        ", ".join(f"{task.phase} {task.progress:.0%} of {_task(task.task)}" for task in one.tasks)
        or "nothing"
    )


def _task(task: TaskRef) -> str:
    attempt = f", attempt {task.attempt + 1}" if task.attempt else ""
    return f"{task.job}/{task.round + 1}{attempt}"


def _attributes(one: LearnerSummary) -> str:
    return one_line(", ".join(f"{name}={value}" for name, value in sorted(one.attributes.items())))
