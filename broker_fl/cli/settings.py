"""The settings file: options by name for all commands that have them, and a table for those of one command.

::

    broker = "amqps://site-1@broker.example.org/fl"      # every command that has --broker
    federation = "hospitals"

    [learner]                                            # broker-fl learner
    workers = 2
    attribute = { region = "eu" }
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from broker_fl.errors import SettingError
from broker_fl.identity.private_file import is_open
from broker_fl.suggestion import expected_one_of, nearest
from broker_fl.toml_file import read_toml

DEFAULT_FILE = "broker-fl.toml"
FILE_KEY = "broker_fl.settings_file"
"""In a context's ``meta``: where its settings came from."""

_MAX_LISTED = 40
"""Names in an error message."""
_ACCOUNT = re.compile(r"://[^/?#@:]*:[^@]+@")

CommandPath = tuple[str, ...]
"""``("models", "export")``: a command's names from the group's on."""


def apply(ctx: click.Context, path: Path | None) -> None:
    """Make the file's settings the defaults of the context's command; without a path, the default file's.

    Raises:
        SettingError: the file cannot be read, or something in it is not known.
    """
    if path is None:
        path = Path(DEFAULT_FILE)
        if not path.is_file():
            return
    settings = read_toml(path, "settings file")
    root = ctx.find_root()
    known = _options_of(root.command, root, ())
    problems = _problems(settings, known)
    if problems:
        raise SettingError(f"{path}: " + "; ".join(problems))
    if _has_password(settings) and is_open(path):
        click.echo(
            f"Warning: {path} holds a password, and others on this machine may read it: chmod 600 it",
            err=True,
        )
    ctx.meta[FILE_KEY] = str(path)
    values = _values(settings, _path(ctx))
    ctx.default_map = {
        str(option.name): values[name]
        for option in ctx.command.params
        if (name := setting_name(option)) in values
    }


def _has_password(settings: Mapping[str, Any]) -> bool:
    """Whether one stands in it, by itself or in a URL; RabbitMQ's public guest:guest is none."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            if _has_password(value):
                return True
        elif isinstance(value, str) and (name.endswith("password") or _is_url_with_password(value)):
            return True
    return False


def _is_url_with_password(value: str) -> bool:
    found = _ACCOUNT.search(value)
    return found is not None and found[0] != "://guest:guest@"


def setting_name(option: click.Parameter) -> str:
    """An option in a settings file: ``connect_timeout`` for ``--connect-timeout``; empty for others."""
    if not isinstance(option, click.Option) or option.is_eager:
        return ""
    return max(option.opts, key=len).lstrip("-").replace("-", "_")


def _path(ctx: click.Context) -> CommandPath:
    """``("models", "export")`` of the context of that command."""
    names: list[str] = []
    while ctx.parent is not None:
        names.insert(0, ctx.info_name or "")
        ctx = ctx.parent
    return tuple(names)


def _options_of(command: click.Command, ctx: click.Context, path: CommandPath) -> dict[CommandPath, set[str]]:
    own = {name for one in command.params if (name := setting_name(one))}
    if isinstance(command, click.Group):
        found = {path: own} if own else {}
        for name in command.list_commands(ctx):
            inner = command.get_command(ctx, name)
            if inner is not None:
                found |= _options_of(inner, ctx, (*path, name))
        return found
    return {path: own}


def _problems(settings: Mapping[str, Any], known: Mapping[CommandPath, set[str]]) -> list[str]:
    """What is not known, in words; commands are tables, everything else must be some command's option."""
    commands = {path[:end] for path in known for end in range(1, len(path) + 1)}
    anywhere = set().union(*known.values())
    problems: list[str] = []

    def look(table: Mapping[str, Any], path: CommandPath, allowed: set[str]) -> None:
        for key, value in table.items():
            inner = (*path, key)
            if inner in commands and isinstance(value, Mapping):
                below = {names for names in known if names[: len(inner)] == inner}
                look(value, inner, set().union(*(known[names] for names in below)))
            elif key not in allowed:
                tables = {name[-1] for name in commands if name[:-1] == path}
                problems.append(f"unknown setting {'.'.join(inner)!r}: {_meant(key, allowed, tables)}")

    look(settings, (), anywhere)
    return problems


def _meant(key: str, allowed: set[str], tables: set[str]) -> str:
    """What it may be instead; where that is an option of any command, they are too many to be listed."""
    near = nearest(key.replace("-", "_"), allowed | tables)
    if near is not None:
        return f"did you mean {near!r}?"
    if len(allowed) > _MAX_LISTED:
        return "no command has an option of that name (broker-fl COMMAND --help lists them)"
    return expected_one_of(key, allowed | tables)


def _values(settings: Mapping[str, Any], path: CommandPath) -> dict[str, Any]:
    """Settings of one command: those for all, then those of its tables, outermost first."""
    found: dict[str, Any] = {}
    table: Any = settings
    for name in ("", *path):
        table = table.get(name) if name else table
        if not isinstance(table, Mapping):
            break
        found |= table
    return found
