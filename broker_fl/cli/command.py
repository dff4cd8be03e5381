"""What all commands share: where settings come from, how much is logged, how errors end a command."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from broker_fl.cli import settings
from broker_fl.errors import BrokerFLError
from broker_fl.workers import logs, process

F = TypeVar("F", bound=Any)
log = logging.getLogger(__name__)
ENVIRONMENT_PREFIX = "BROKER_FL_"

_SOURCES = {
    ParameterSource.ENVIRONMENT: "environment variable {envvar}",
    ParameterSource.DEFAULT_MAP: "{file}",
}


def fail(error: BaseException, *, with_traceback: bool) -> click.exceptions.Exit:
    """Print an error as one line; what comes back, to be raised, ends the command with its code."""
    if with_traceback:
        click.echo(logs.redacted("".join(traceback.format_exception(error))), err=True, nl=False)
    click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(logs.redacted(one_line(error)), err=True)
    return click.exceptions.Exit(process.exit_code(error))


def one_line(error: BaseException) -> str:
    """An error's text without line breaks; of one that nobody expected, what it is and how to see more."""
    text = " ".join(str(error).split())
    if isinstance(error, BrokerFLError):
        return text or type(error).__name__
    return f"unexpected {type(error).__name__}: {text} (this is a fault of broker-fl; -vv shows where)"


class Command(click.Command):
    """A command with ``--config`` and ``-v``, whose options also come from the environment and a file."""

    logs_at = "WARNING"
    """What is logged without ``-v``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for option in self.params:
            if name := settings.setting_name(option):
                option.envvar = ENVIRONMENT_PREFIX + name.upper()
        config_option(self)
        verbose_option(self)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; a wrong value that was not typed names the place it came from."""
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            raise _with_source(error, ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Do the command; whatever goes wrong becomes one line and an exit code."""
        verbosity = _verbosity(ctx)
        log_format = ctx.params.pop("log_format", "text")
        logs.configure_logging(self.logs_at, verbosity, log_format=log_format)
        ctx.params.pop("config", None)
        ctx.params.pop("verbose", None)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(err=True)
            raise click.exceptions.Exit(130) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if log_format == "json":
                log.error("%s", one_line(error), exc_info=error if verbosity >= 2 else None)
                raise click.exceptions.Exit(process.exit_code(error)) from error
            raise fail(error, with_traceback=verbosity >= 2) from error


class Family(Command, click.Group):
    """A command that does something by itself, and has others below it."""


class Embedded(Command):
    """A command whose view shows what the roles in its process would warn of."""

    logs_at = "ERROR"


class Daemon(Command):
    """A command that runs until it is told to end."""

    logs_at = "INFO"


def _with_source(error: click.BadParameter, ctx: click.Context) -> click.BadParameter:
    """The error, saying where the value is from if it was not typed."""
    option = error.param
    source = ctx.get_parameter_source(option.name) if option is not None and option.name else None
    if option is None or source not in _SOURCES:
        return error
    place = _SOURCES[source].format(envvar=option.envvar, file=ctx.meta.get(settings.FILE_KEY))
    return click.BadParameter(f"{error.message.rstrip('.')} (from {place})", ctx, option, error.param_hint)


def _use_settings(ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Read the settings file before the command's other options are looked at."""
    if isinstance(ctx.command, Command):
        given = value or ctx.find_root().params.get("config")
        try:
            settings.apply(ctx, Path(given) if given else None)
        except BrokerFLError as error:
            raise fail(error, with_traceback=_verbosity(ctx) >= 2) from error
    return value


def _verbosity(ctx: click.Context) -> int:
    levels = [int(ctx.params.get("verbose") or 0), int(ctx.find_root().params.get("verbose") or 0)]
    return max(levels)


def config_option(command: F) -> F:
    """``--config FILE``."""
    option = click.option(
        "--config",
        metavar="FILE",
        envvar=ENVIRONMENT_PREFIX + "CONFIG",
        is_eager=True,
        callback=_use_settings,
        help="Settings file (TOML).  [default: broker-fl.toml if there is one]",
    )
    return _add(option, command)


def verbose_option(command: F) -> F:
    """``-v``, ``-vv``."""
    option = click.option(
        "-v", "--verbose", count=True, is_eager=True, help="Log more; -vv: all, and tracebacks with errors."
    )
    return _add(option, command)


def _add(option: Any, command: F) -> F:
    """Decorate a function, or append to a command that is made already."""
    if not isinstance(command, click.Command):
        decorated: F = option(command)
        return decorated
    carrier = option(lambda: None)
    command.params += carrier.__click_params__
    return command


def print_json(rows: Any) -> None:
    """Machine-readable output."""
    json.dump(rows, sys.stdout, indent=2, ensure_ascii=False)
    click.echo()
