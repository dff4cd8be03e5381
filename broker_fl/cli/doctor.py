"""``broker-fl doctor``."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from broker_fl.cli import options
from broker_fl.cli.command import Command
from broker_fl.doctor import Finding, check_redis

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


@click.command(cls=Command)
@options.broker_access
@options.store
def doctor(store: str, **access: Any) -> None:
    """Check everything that a federation needs, and say what to do about what is wrong."""
    sections = {"Redis": check_redis(store, federation=access["federation"])}
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for title, findings in sections.items():
        console.print(title, style="bold")
        for finding in findings:
            _show(console, finding)
    if any(finding.level == "error" for findings in sections.values() for finding in findings):
        raise click.exceptions.Exit(1)


def _show(console: Console, finding: Finding) -> None:
    sign, style = _SIGNS[finding.level]
    console.print(f"  {sign} {finding.what}", style=style if finding.level != "ok" else None)
    if finding.advice:
        console.print(f"    → {finding.advice}")
