"""What all commands share: where settings come from, how much is logged, how errors end a command."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import IO, Any, TypeVar

import click
from click.core import ParameterSource

from broker_fl.cli import settings
from broker_fl.errors import BrokerFLError
from broker_fl.workers import process

F = TypeVar("F", bound=Any)
ENVIRONMENT_PREFIX = "BROKER_FL_"

_SOURCES = {
    ParameterSource.ENVIRONMENT: "environment variable {envvar}",
    ParameterSource.DEFAULT_MAP: "{file}",
}


class Failure(click.ClickException):
    """An error as the command line shows it: one line, and an exit code that says of what sort it is."""

    def __init__(self, error: BaseException, *, with_traceback: bool) -> None:
        super().__init__(one_line(error))
        self.exit_code = process.exit_code(error)
        self._traceback = "".join(traceback.format_exception(error)) if with_traceback else ""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it to standard error."""
        if self._traceback:
            click.echo(self._traceback, file=file, err=file is None, nl=False)
        click.secho("Error: ", fg="red", bold=True, nl=False, file=file, err=file is None)
        click.echo(self.message, file=file, err=file is None)


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
        for option in self.options:
            option.envvar = option.envvar or ENVIRONMENT_PREFIX + str(option.name).upper()
        config_option(self)
        verbose_option(self)

    @property
    def options(self) -> list[click.Option]:
        """Those that may stand in a settings file."""
        return [one for one in self.params if isinstance(one, click.Option) and not one.is_eager]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; a wrong value that was not typed names the place it came from."""
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            if error.param is not None and error.param.name is not None:
                source = ctx.get_parameter_source(error.param.name)
                if source in _SOURCES:
                    file = ctx.meta.get(settings.FILE_KEY)
                    error.message += (
                        f" (from {_SOURCES[source].format(envvar=error.param.envvar, file=file)})"
                    )
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Do the command; whatever goes wrong becomes one line and an exit code."""
        verbosity = _verbosity(ctx)
        process.configure_logging(self.logs_at, verbosity)
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
            raise Failure(error, with_traceback=verbosity >= 2) from error


class Daemon(Command):
    """A command that runs until it is told to end."""

    logs_at = "INFO"


def _use_settings(ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Read the settings file before the command's other options are looked at."""
    if isinstance(ctx.command, Command):
        given = value or ctx.find_root().params.get("config")
        try:
            settings.apply(ctx, Path(given) if given else None)
        except BrokerFLError as error:
            raise Failure(error, with_traceback=False) from error
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
