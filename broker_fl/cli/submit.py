"""``broker-fl submit``."""

from __future__ import annotations

from typing import Any

import click

from broker_fl.apps import load_app
from broker_fl.cli import options
from broker_fl.cli.access import driver_of, find_version
from broker_fl.cli.command import Command
from broker_fl.cli.jobs import watch_job
from broker_fl.cli.outcome import exit_code
from broker_fl.cli.trackers import trackers, tracking
from broker_fl.errors import SettingError
from broker_fl.jobfile import JobFile, read_job
from broker_fl.model import Model
from broker_fl.roles.driver import Driver
from broker_fl.wire.messages import VersionRef

_SOURCES = (("app", "app"), ("model", "model"), ("from", "parent"))
"""Options that name what a job starts from, and their names here."""


@click.command(cls=Command)
@click.argument("job_file", metavar="JOB.toml")
@options.broker_access
@options.timeout
@click.option("--app", metavar="APP", help="Start from this app's initial_model().")
@click.option("--model", metavar="FILE", help="Start from this safetensors file.")
@click.option(
    "--from", "parent", metavar="JOB[@V]", help="Go on from this job's newest version, or from its version V."
)
@click.option("--watch", is_flag=True, help="Watch the job until its end, as `broker-fl watch` does.")
@options.live
@click.option("--out", metavar="FOLDER", help="With --watch: also make a run folder in FOLDER.")
@trackers
def submit(job_file: str, watch: bool, **given: Any) -> None:
    """Submit the job that JOB.toml describes; its id is printed."""
    job = read_job(job_file)
    if job.simulation is not None:
        raise SettingError(
            f"{job_file} has a table [simulation], which only broker-fl run follows: real learners are as "
            f"fast as they are. Take it out, or use broker-fl run --job {job_file}"
        )
    named = [f"--{name}" for name, key in _SOURCES if given[key]]
    if len(named) > 1:
        raise SettingError(f"give one of {' and '.join(named)}: a job begins from one model")
    parent = given["parent"]
    initial = None if parent else initial_model(job, job_file, app=given["app"], file=given["model"])
    names = {name: given[name] if watch else None for name in ("tensorboard", "mlflow")}
    with tracking(**names) as track, driver_of(given) as driver:
        submitted = driver.submit(job.spec, initial or _stored(driver, parent))
        click.echo(submitted.id)
        if watch:
            finished = watch_job(submitted, track, live=given["live"], as_json=False, out=given["out"])
            raise click.exceptions.Exit(exit_code(finished.state, ""))


def _stored(driver: Driver, wanted: str) -> VersionRef:
    job, version = find_version(driver, wanted)
    return job.version(version)


def initial_model(job: JobFile, place: str, *, app: str | None, file: str | None) -> Model:
    """What the job starts from: what the command line names, else what the job file does.

    Raises:
        SettingError: none of them names anything, or it is not usable.
    """
    if not app and not file:
        app, file = job.app, str(job.model_file) if job.model_file else None
    if file:
        return Model.load(file)
    if app:
        return load_app(app).initial_model()
    raise SettingError(
        f"{place} names no initial model: add [model] with app or file, or give --app, --model or --from"
    )
