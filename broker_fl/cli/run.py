"""``broker-fl run``: an app as a federation in this process."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from pydantic import ValidationError

from broker_fl.apps import App, load_app
from broker_fl.cli import options
from broker_fl.cli.command import Embedded
from broker_fl.cli.outcome import add_report, exit_code, show_files
from broker_fl.cli.trackers import trackers, tracking
from broker_fl.cli.watching import Watcher, stopping_on_signal, watching
from broker_fl.jobfile import JobFile, make_spec, parse_job, read_fields
from broker_fl.model import Model
from broker_fl.simulation_run import AppRun, Run, Team
from broker_fl.wire.events import Event
from broker_fl.wire.job import JobSpec
from broker_fl.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What ``run`` and ``demo`` are told."""

    learners: int
    rounds: int | None
    job: str | None
    parameters: Mapping[str, Any]
    seed: int | None
    workers: int | None
    out: str
    live: bool | None
    tensorboard: str | None = None
    mlflow: str | None = None


@click.command(cls=Embedded)
@click.argument("app")
@click.option(
    "--learners", type=click.IntRange(1), default=10, show_default=True, metavar="N", help="How many."
)
@click.option(
    "--rounds", type=click.IntRange(1), metavar="R", help="Rounds.  [default: those of the job file, or 10]"
)
@click.option("--job", metavar="FILE", help="Job file (TOML) with protocol, rule, termination, ….")
@options.parameters("parameter", "-p", "Told to the learners with each task; may be given several times.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="Seeds numpy, random, selection, simulation, and the parameter `seed`.",
)
@options.workers
@options.out
@options.live
@trackers
def run(app: str, **given: Any) -> None:
    """Run APP as a federation in this process: no server is needed.

    APP is FILE.py:FACTORY, package.module:FACTORY, or FILE.py. With a table [simulation] in the job file,
    learners differ in speed and link, and fail.
    """
    chosen = RunOptions(**given)
    seed_generators(chosen.seed)
    finish(run_app(load_app(app), chosen))


def run_app(app: App, chosen: RunOptions) -> Run:
    """Run the app and write everything into the run folder."""
    team, job_file = _read_job(Team(num_learners=chosen.learners, num_workers=chosen.workers), chosen)
    spec = _spec(app, chosen, job_file)
    initial = Model.load(job_file.model_file) if job_file and job_file.model_file else None
    with tracking(tensorboard=chosen.tensorboard, mlflow=chosen.mlflow) as track:  # makes nothing, may refuse
        one = AppRun(app, spec, team=team, out=chosen.out, initial=initial)
        ran = _watched(one, track, chosen)
    add_report(ran.folder)
    return ran


def _watched(one: AppRun, track: Watcher, chosen: RunOptions) -> Run:
    with stopping_on_signal(one.stop), watching(live=chosen.live) as watch:

        def seen(event: Event) -> None:
            track(event)
            watch(event)

        return one.run(seen, seed=chosen.seed)


def finish(ran: Run) -> None:
    """Say where everything is, and end with the job's outcome as exit code."""
    show_files(ran.folder, ran.finished.version)
    raise click.exceptions.Exit(exit_code(ran.finished.state, ran.finished.reason))


def seed_generators(seed: int | None) -> None:
    """Before the app is loaded: its initial model may come from a global generator."""
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the app may use the old interface


def _read_job(team: Team, chosen: RunOptions) -> tuple[Team, JobFile | None]:
    """The team with its world, and the job file with what ``run`` says for it where it says nothing.

    That is put in before the file is checked: what contradicts a default of ``JobSpec`` is in order here.
    """
    if chosen.job is None:
        return replace(team, sets_min_learners=True), None
    fields = read_fields(chosen.job)
    world = fields.get("simulation")
    if chosen.seed is not None and isinstance(world, dict):
        fields["simulation"] = {"seed": chosen.seed, **world}
    protocol = fields.get("protocol", {})
    if isinstance(protocol, dict) and "min_learners" not in protocol:
        try:
            world = None if world is None else World.model_validate(fields["simulation"])
        except ValidationError:
            world = None  # told below, with whatever else is wrong
        team = replace(team, world=world, sets_min_learners=True)
        fields["protocol"] = {**protocol, "min_learners": team.num_lasting()}
    job_file = parse_job(fields, chosen.job)
    return replace(team, world=job_file.simulation), job_file


def _spec(app: App, chosen: RunOptions, job_file: JobFile | None) -> JobSpec:
    """The job file's settings, with what the command line says put over them."""
    fields: dict[str, Any] = (
        job_file.spec.model_dump()
        if job_file
        else {"name": app_name(app), "protocol": {"min_learners": chosen.learners}}
    )
    if chosen.rounds is not None:
        fields["termination"] = {**fields.get("termination", {}), "rounds": chosen.rounds}
    fields["parameters"] = {**fields.get("parameters", {}), **chosen.parameters}
    if chosen.seed is not None:
        fields["parameters"].setdefault("seed", chosen.seed)
        if "seed" in fields.get("selector", {}) and (
            job_file is None or "selector.seed" not in job_file.given
        ):
            fields["selector"]["seed"] = chosen.seed
    return make_spec(fields, "the job's settings")


def app_name(app: App) -> str:
    """A job's name made of the app's: ``digits`` of ``examples/digits.py:make_learner``."""
    stem = Path(app.target.partition(":")[0]).stem.rpartition(".")[2]
    name = "".join(char if char.isascii() and (char.isalnum() or char in "-_") else "-" for char in stem)
    return name[:40] or "job"
