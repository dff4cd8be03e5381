"""``broker-fl jobs``, ``learners`` and ``watch``."""

from __future__ import annotations

from typing import Any

import click

from broker_fl.cli import options
from broker_fl.cli.access import driver_of, find_job
from broker_fl.cli.command import Command, print_json
from broker_fl.cli.outcome import add_report, exit_code, show_files
from broker_fl.cli.tables import print_table, when
from broker_fl.cli.watching import watching
from broker_fl.errors import BrokerUnavailable
from broker_fl.model import Model
from broker_fl.record.runfolder import RunFolder
from broker_fl.record.text import one_line, seconds
from broker_fl.roles.driver import Job
from broker_fl.wire.events import Event, JobFinished, JobSubmitted
from broker_fl.wire.messages import LearnerSummary


@click.command(cls=Command)
@options.broker_access
@options.timeout
@options.as_json
def jobs(as_json: bool, **access: Any) -> None:
    """List the federation's jobs, oldest first."""
    with driver_of(access) as driver:
        found = driver.jobs()
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    if not found:
        click.echo(f"federation {access['federation']} has no jobs", err=True)
        return
    rows = [
        (one.job, one.state, str(one.round), str(one.version), when(one.submitted_at), one_line(one.reason))
        for one in found
    ]
    print_table(("job", "state", "round", "version", "submitted", "why"), rows, numbers=("round", "version"))


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
def watch(job: str, live: bool | None, as_json: bool, out: str | None, **access: Any) -> None:
    """Watch JOB from its beginning to its end: an id, a beginning of one, or `latest`.

    Ctrl-C stops watching, not the job. The exit code is 0 if the job is done, 1 if it failed or was stopped.
    """
    with driver_of(access) as driver:
        finished = watch_job(find_job(driver, job), live=live, as_json=as_json, out=out)
    raise click.exceptions.Exit(exit_code(finished.state, ""))


def watch_job(job: Job, *, live: bool | None, as_json: bool, out: str | None) -> JobFinished:
    """Show a job's events until its end; with ``out``, keep them in a run folder there."""
    folder = RunFolder.create(out, job.id) if out else None
    finished: JobFinished | None = None
    with watching(live=live, as_json=as_json) as show:
        for event in job.events():
            if folder is not None:
                _keep(folder, event)
            show(event)
            finished = event if isinstance(event, JobFinished) else finished
    if finished is None:
        raise BrokerUnavailable(f"job {job.id} ended without saying so")
    if folder is not None:
        _complete(folder, job.model())
    return finished


def _keep(folder: RunFolder, event: Event) -> None:
    folder.append(event)
    if isinstance(event, JobSubmitted):
        folder.write_settings(event.spec, job_id=event.job)


def _complete(folder: RunFolder, model: Model) -> None:
    folder.close()
    folder.save_model(model)
    add_report(folder)
    show_files(folder)


def _doing(one: LearnerSummary) -> str:
    return ", ".join(f"{task.phase} {task.progress:.0%} of {task.task}" for task in one.tasks) or "nothing"


def _attributes(one: LearnerSummary) -> str:
    return one_line(", ".join(f"{name}={value}" for name, value in sorted(one.attributes.items())))
