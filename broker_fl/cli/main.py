"""``broker-fl``: the group of all commands. A command's file is imported when the command is called."""

from __future__ import annotations

import importlib
from typing import Any

import click

import broker_fl
from broker_fl.cli.command import config_option, verbose_option
from broker_fl.workers.process import end_despite_work

_FAMILIES = {
    "Run on this machine, no server needed": {
        "run": ("run", "Run an app as a federation in this process."),
        "demo": ("demo", "Run the digits example, and compare it with training alone."),
    },
    "Daemons": {
        "controller": ("daemons", "Run the controller of a federation."),
        "learner": ("daemons", "Run one learner, or several, of a federation."),
    },
    "Jobs": {
        "submit": ("submit", "Submit a job."),
        "jobs": ("jobs", "List jobs; `jobs delete` deletes one that has ended."),
        "watch": ("jobs", "Watch a job until it ends."),
        "pause": ("control", "Let a job begin no new round."),
        "resume": ("control", "Let a paused job go on, to its end or for some versions."),
        "stop": ("control", "Stop a job; what it committed is kept."),
        "learners": ("jobs", "List the learners that are there."),
        "models": ("models", "List and fetch model versions."),
        "report": ("report", "Make a report page of one run or several."),
    },
    "A cluster on this machine": {
        "up": ("cluster", "Start RabbitMQ, Redis, a controller and learners."),
        "status": ("cluster", "Show what `up` started."),
        "down": ("cluster", "End what `up` started."),
    },
    "Daemons on several machines": {
        "fleet": ("fleet", "Deploy, start, watch and stop daemons over SSH."),
    },
    "Who may come in": {
        "enroll": ("identity", "Make an account, and the join file that is all a site needs."),
        "token": ("tokens", "Make a token with which a site may ask to be enrolled."),
        "join": ("tokens", "Ask to be enrolled: the password is drawn here and stays here."),
        "accept": ("tokens", "Enrol who asks with a token."),
        "rotate": ("identity", "Give an account a new password."),
        "revoke": ("identity", "Take an account out."),
        "members": ("identity", "List accounts: last seen, connections, expiry."),
        "ca": ("authority", "Make a private certificate authority, and certificates."),
        "audit": ("audit", "Show and verify the log of who did what."),
    },
    "Finding faults": {
        "dead": ("dead", "List, read, send again or drop messages that were refused."),
        "doctor": ("doctor", "Check broker, permissions, Redis, clocks and versions."),
    },
}
_COMMANDS = {name: entry for family in _FAMILIES.values() for name, entry in family.items()}


class LazyGroup(click.Group):
    """Knows names and summaries of its commands; the rest of each is in its file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the help page."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"broker_fl.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help page's list of commands, family by family."""
        for family, commands in _FAMILIES.items():
            with formatter.section(family):
                formatter.write_dl([(name, summary) for name, (_, summary) in commands.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Each option of a command may also be given as environment variable BROKER_FL_<OPTION>, or in a "
    "settings file: --config FILE, or broker-fl.toml in the working directory. A flag wins over the "
    "environment, the environment over the file.\n\n"
    "Exit codes: 0 done; 1 failed; 2 a setting is wrong; 3 a server is not available; 4 another "
    "controller took over; 130 and 143 ended at once by a signal.",
)
@click.version_option(broker_fl.__version__, "-V", "--version", message="broker-fl %(version)s")
@config_option
@verbose_option
def commands(**_: Any) -> None:
    """Federated learning over a message broker."""


def main() -> None:
    """What the console script calls."""
    try:
        commands(prog_name="broker-fl")
    except SystemExit as ended:
        end_despite_work(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise
