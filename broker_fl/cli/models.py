"""``broker-fl models list`` and ``models export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from broker_fl.cli import options
from broker_fl.cli.access import driver_of, find_job, find_version
from broker_fl.cli.command import Command, print_json
from broker_fl.cli.tables import print_table, when
from broker_fl.errors import SettingError
from broker_fl.record.text import count, number, one_line, plural, size


@click.group()
def models() -> None:
    """List and fetch model versions."""


@models.command("list", cls=Command)
@click.argument("job")
@options.broker_access
@options.timeout
@options.as_json
def list_versions(job: str, as_json: bool, **access: Any) -> None:
    """List the versions of JOB that are kept, oldest first."""
    with driver_of(access) as driver:
        found = find_job(driver, job).versions()
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    if not found:
        click.echo(f"job {job} has no version yet", err=True)
        return
    rows = [
        (
            str(one.version),
            count(one.num_parameters),
            size(one.num_bytes),
            when(one.committed_at),
            one.digest[:12],
            ", ".join(f"{one_line(name, 40)} {number(value)}" for name, value in one.metrics.items()),
        )
        for one in found
    ]
    columns = ("version", "parameters", "size", "committed", "digest", "metrics")
    print_table(columns, rows, numbers=("version", "parameters", "size"), last_below=True)


@models.command("export", cls=Command)
@click.argument("job", metavar="JOB[@V]")
@options.broker_access
@options.timeout
@click.option("--version", type=click.IntRange(0), metavar="V", help="As JOB@V.  [default: the newest]")
@click.option("--out", default="model.safetensors", show_default=True, metavar="FILE", help="Where to.")
def export(job: str, version: int | None, out: str, **access: Any) -> None:
    """Write the newest model version of JOB, or its version V, to a safetensors file."""
    _make_folder(Path(out).parent)
    with driver_of(access) as driver:
        found, named = find_version(driver, job)
        if None not in (named, version) and named != version:
            raise SettingError(f"{job} and --version {version} are two versions: give one of them")
        fetched, model = driver.download(found.id, version if named is None else named)
    model.save(out)
    click.echo(f"{out}: version {fetched} of {found.id}, {plural(model.spec.num_elements, 'parameter')}")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"the folder {path} cannot be made: {error.strerror or error}") from error
