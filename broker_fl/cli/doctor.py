"""``broker-fl doctor``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import click
from rich.console import Console

from broker_fl.cli import options
from broker_fl.cli.access import broker_security, store_security
from broker_fl.cli.command import Command, print_json
from broker_fl.doctor import Finding, check_redis
from broker_fl.doctor_broker import check_broker
from broker_fl.doctor_machine import check_machine
from broker_fl.identity.accounts import Account
from broker_fl.transports.rabbitmq.facts import Role
from broker_fl.workers.process import ExitCode

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}
_ABSENT = ("–", "green")


@click.command(cls=Command)
@options.broker_access
@options.store
@click.option(
    "--role",
    type=click.Choice(get_args(Role)),
    help="Whose needs to look at; only a controller needs Redis.  [default: as the join file; controller]",
)
@click.option(
    "--id",
    "learner_id",
    type=options.Identifier(),
    metavar="ID",
    help="With --role learner: whose mailbox to try.",
)
@options.as_json
def doctor(store: str, role: Role | None, learner_id: str | None, as_json: bool, **access: Any) -> None:
    """Check everything that a role of a federation needs, and say what to do about what is wrong.

    The exit code is 3 if a server does not answer, else 1 if something is an error.
    """
    federation, role = access["federation"], role or _role(access.get("joined"))
    sections = {"This machine": check_machine()}
    sections["Broker"] = check_broker(
        access["broker"],
        federation=federation,
        role=role,
        learner=learner_id or "",
        security=broker_security(access),
    )
    if role == "controller":
        sections["Redis"] = check_redis(store, federation=federation, security=store_security(access))
    if as_json:
        print_json(_rows(sections))
    else:
        _print(sections)
    if code := _exit_code(one for findings in sections.values() for one in findings):
        raise click.exceptions.Exit(code)


def _exit_code(findings: Iterable[Finding]) -> int:
    """As those of other commands: a server that is not there is nobody's setting."""
    wrong = [one for one in findings if one.level == "error"]
    if any(one.sort == "unreachable" for one in wrong):
        return ExitCode.UNAVAILABLE
    return ExitCode.FAILED if wrong else ExitCode.DONE


def _role(account: Account | None) -> Role:
    """As whom to look."""
    if account is None:
        return "controller"
    return "learner" if account.role == "group" else account.role


def _rows(sections: dict[str, list[Finding]]) -> list[dict[str, str]]:
    return [
        {"about": about, "level": one.level, "what": one.what, "advice": one.advice}
        for about, findings in sections.items()
        for one in findings
    ]


def _print(sections: dict[str, list[Finding]]) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for about, findings in sections.items():
        console.print(about, style="bold")
        for finding in findings:
            sign, style = _ABSENT if finding.sort == "absent" else _SIGNS[finding.level]
            console.print(f"  {sign} {finding.what}", style=None if finding.level == "ok" else style)
            if finding.advice:
                console.print(f"      {finding.advice}")
