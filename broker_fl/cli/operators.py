"""What commands of an operator have in common: the management interface, and tidying up by the way."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast
from urllib.parse import unquote, urlsplit, urlunsplit

import click
from click.core import ParameterSource

from broker_fl.cli import options
from broker_fl.cli.access import broker_security
from broker_fl.cli.deeds import written_down
from broker_fl.errors import BrokerUnavailable, SettingError
from broker_fl.identity.granting import Granting
from broker_fl.identity.joinfile import without_account
from broker_fl.identity.management import ManagementApi
from broker_fl.identity.members import Members
from broker_fl.record.text import plural
from broker_fl.security.tls import is_loopback

F = TypeVar("F", bound=Callable[..., Any])
_UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


class Duration(click.ParamType):  # type: ignore[type-arg] # generic only in newer versions
    """``30m``, ``24h``, ``90d``, ``4w``, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read one."""
        if isinstance(value, float):
            return value
        number, unit = str(value)[:-1], str(value)[-1:]
        if not number.isdecimal() or not int(number) or unit not in _UNITS_S:
            self.fail(f"{value!r} is no duration such as 30m, 24h, 90d or 4w", param, ctx)
        return int(number) * _UNITS_S[unit]


def _not_typed(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Passwords come from the environment, a settings file or a prompt: everybody sees a command line."""
    is_secret = value is not None and (param.name != "management" or ":" in _account(value))
    if is_secret and ctx.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE:
        raise click.BadParameter(
            "a password on the command line is seen by everybody on this machine; give it as "
            "BROKER_FL_MANAGEMENT_PASSWORD, in the settings file, or at the prompt",
            ctx,
            param,
        )
    return value


def _account(url: str) -> str:
    return url.partition("://")[2].partition("/")[0].rpartition("@")[0]


AUDIT = click.option(
    "--audit",
    metavar="FILE",
    help="Where it is written down what is done (broker-fl audit show --file FILE).  "
    "[default: ~/.local/state/broker_fl/audit-<federation>.jsonl]",
)


def management(command: F) -> F:
    """What every command of an operator needs."""
    for option in (
        AUDIT,
        click.option(
            "--management-password",
            metavar="PASSWORD",
            callback=_not_typed,
            help="Never on the command line: BROKER_FL_MANAGEMENT_PASSWORD, or in the settings file.  "
            "[default: asked for]",
        ),
        click.option(
            "--management",
            metavar="URL",
            default="http://guest@127.0.0.1:15672",
            show_default=True,
            callback=_not_typed,
            help="RabbitMQ's management interface: http[s]://administrator@host[:port].",
        ),
    ):
        command = option(command)
    return options.broker_place(command)


def members_of(given: Mapping[str, Any]) -> Members:
    """The accounts of a federation, as the management interface has them.

    Raises:
        SettingError, AccessDenied: trying again changes nothing.
        BrokerUnavailable: the interface does not answer.
    """
    return Members(api_of(given), vhost=vhost_of(given), federation=given["federation"])


def vhost_of(given: Mapping[str, Any]) -> str:
    """The virtual host of the broker's URL."""
    path = without_account(given["broker"]).partition("://")[2].partition("/")[2]
    return unquote(path.partition("?")[0]) or "/"


def granting_of(given: Mapping[str, Any]) -> Granting:
    """Tokens and requests of a federation.

    Raises:
        SettingError, AccessDenied, BrokerUnavailable: as ``members_of``.
    """
    members = members_of(given)
    return Granting(api_of(given), members, vhost=vhost_of(given), federation=given["federation"])


def api_of(given: Mapping[str, Any]) -> ManagementApi:
    """The management interface, as the administrator of the given URL."""
    parts = urlsplit(given["management"])
    place = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    user = unquote(parts.username or "guest")
    password = given["management_password"] or (parts.password and unquote(parts.password))
    if not password:
        is_default = user == "guest" and is_loopback(parts.hostname or "")
        password = "guest" if is_default else _asked_for(user, place)
    return ManagementApi(place, user=user, password=password, security=broker_security(given))


def _asked_for(user: str, place: str) -> str:
    if not sys.stdin.isatty():
        raise SettingError(
            f"the password of {user} at {place} is needed: set BROKER_FL_MANAGEMENT_PASSWORD, or "
            "management_password in the settings file"
        )
    known = click.get_current_context().meta.setdefault("broker_fl.passwords", dict[str, str]())
    prompt = f"Password of {user} at {place}"
    if prompt not in known:  # a command asks the interface more than once, and its user once
        known[prompt] = click.prompt(prompt, hide_input=True, err=True)
    return str(known[prompt])


def tidied(command: F) -> F:
    """Before the command: tokens whose time is over are deleted, and accounts whose time is over are named.

    It is done by the way: where it cannot be written down, or the interface does not answer, it is not done,
    and the command is run, so that what became of that is in the audit log. A command that fails says why
    itself.
    """

    @functools.wraps(command)
    def tidied_first(*args: Any, **given: Any) -> Any:
        problem: Exception | None = None
        try:
            tidy(given)
        except (SettingError, BrokerUnavailable) as error:
            problem = error
        done = command(*args, **given)
        if problem is not None:
            said = f"Warning: tokens that are too old were not deleted: {problem}"
            click.secho(said, fg="yellow", err=True)
        return done

    return cast("F", tidied_first)


def tidy(given: Mapping[str, Any]) -> None:
    """Delete tokens whose time is over; say how many accounts are still there although theirs is.

    Raises:
        SettingError, AccessDenied, BrokerUnavailable: not all of it was done.
    """
    granting = granting_of(given)
    for account in granting.expired():
        with written_down("expire_token", account, given):
            granting.refuse(account)
    if late := members_of(given).expired():
        names = ", ".join(account.name for account in late[:5]) + (", …" if len(late) > 5 else "")
        click.secho(
            f"Warning: {plural(len(late), 'account')} can still log in although the time is over ({names}): "
            "broker-fl revoke --expired",
            fg="yellow",
            err=True,
        )
