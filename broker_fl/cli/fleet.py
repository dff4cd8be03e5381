"""``broker-fl fleet deploy``, ``start``, ``status`` and ``stop``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from broker_fl.cli import options
from broker_fl.cli.command import Command, print_json
from broker_fl.cli.tables import print_table
from broker_fl.fleet.fleet import Fleet, Outcome

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def fleet() -> None:
    """Controllers and learners on several machines, over SSH.

    INVENTORY is a TOML file of hosts and of the daemons on each (docs/operations.md). Host keys are always
    verified. Exit codes: 0 all is as wished; 1 something is not, for some daemon; 2 the inventory is wrong.
    """


def _common(command: F) -> F:
    only = click.option(
        "--only",
        multiple=True,
        metavar="NAME",
        help="This daemon, or all of this host; may be given several times.",
    )
    inventory = click.argument("inventory", type=click.Path(path_type=Path))
    return inventory(only(options.as_json(command)))


@fleet.command(cls=Command)
@_common
def deploy(inventory: Path, only: tuple[str, ...], *, as_json: bool) -> None:
    """Bring the package and the daemons' files to their hosts.

    What is there already is not sent again; daemons that run go on as they are until `start --restart`.
    """
    _show(Fleet(inventory, only).deploy(), as_json=as_json)


@fleet.command(cls=Command)
@_common
@click.option("--restart", is_flag=True, help="Restart those that run as they were deployed before.")
def start(inventory: Path, only: tuple[str, ...], *, as_json: bool, restart: bool) -> None:
    """Start what does not run. Daemons go on when the connection ends."""
    _show(Fleet(inventory, only).start(restart=restart), as_json=as_json)


@fleet.command(cls=Command)
@_common
def status(inventory: Path, only: tuple[str, ...], *, as_json: bool) -> None:
    """Show what runs; exit code 1 if something does not."""
    _show(Fleet(inventory, only).status(), as_json=as_json)


@fleet.command(cls=Command)
@_common
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a daemon may take to finish its task; then it is killed.",
)
def stop(inventory: Path, only: tuple[str, ...], *, as_json: bool, timeout_s: float) -> None:
    """Have daemons finish and leave."""
    _show(Fleet(inventory, only).stop(timeout_s), as_json=as_json)


def _show(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    if as_json:
        print_json([asdict(one) for one in outcomes])
    else:
        rows = [(one.name, one.host, one.state, one.detail) for one in outcomes]
        print_table(("daemon", "host", "state", ""), rows)
    if not all(one.is_good for one in outcomes):
        raise click.exceptions.Exit(1)
