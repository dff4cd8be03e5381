"""Options that several commands have, and the types of their values."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource
from pydantic import TypeAdapter, ValidationError

from broker_fl.wire import fields

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_BROKER = "amqp://guest:guest@127.0.0.1:5672/"
DEFAULT_STORE = "redis://127.0.0.1:6379/0"


class NamedValue(click.ParamType):  # type: ignore[type-arg] # generic only in newer versions
    """``NAME=VALUE``; a value that is TOML (2, 0.1, true, "text") is read as such, others are texts."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Read one of them."""
        if isinstance(value, tuple):
            return value
        name, sign, text = str(value).partition("=")
        if not name or not sign:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name.strip(), _toml_value(text)


class NamedValues(click.Option):
    """An option that may be given several times, and becomes a dict; in a settings file it may be a table."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Read them."""
        return super().type_cast_value(ctx, list(value.items()) if isinstance(value, dict) else value)

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Make a dict of them."""
        return dict(super().process_value(ctx, value) or ())


class Identifier(click.ParamType):  # type: ignore[type-arg] # generic only in newer versions
    """A name that is safe in queue names."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check one."""
        try:
            return TypeAdapter(fields.Identifier).validate_python(value)
        except ValidationError:
            self.fail(f"{value!r} must be 1 to 64 letters, digits, '-' or '_'", param, ctx)


def _toml_value(text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return value if isinstance(value, str | int | float | bool) else text


_PASSWORD = re.compile(r"^(?:\w+://)?[^/?#]*:(?!//)[^@]+@([^/?#]*)|[?&]password=")
"""In a URL, also one without a scheme; then its hosts. Redis's driver takes one from the options, too."""


def not_on_the_command_line(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse a password that every user of the machine could read as long as the process runs; one for a
    server on this machine, as in trials, is only warned of.

    Raises:
        BadParameter: the URL was typed, has a password, and leads to another machine.
    """
    typed = ctx.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE
    found = _PASSWORD.search(value) if typed and value is not None else None
    if value is None or found is None:
        return value
    name = str(param.name)
    words = "the password in it can be read by everybody on this machine"
    instead = f"give the URL as BROKER_FL_{name.upper()}, or in a settings file of mode 0600 (--config FILE)"
    if name == "broker" and any(one.name == "join" for one in ctx.command.params):
        instead += ", or a join file (--join FILE)"
    if not _is_of_this_machine(value):
        raise click.BadParameter(f"{words}; {instead}", ctx, param)
    click.echo(f"Warning: --{name}: {words}; {instead}", err=True)
    return value


def _is_of_this_machine(url: str) -> bool:
    """Whether all hosts of a URL are; one without a host is a socket of this machine, or no URL at all."""
    from broker_fl.security.tls import is_loopback

    authority = re.split(r"[/?#]", url.partition("://")[2] or url, maxsplit=1)[0].rpartition("@")[2]
    hosts = (host if host.endswith("]") else host.rpartition(":")[0] or host for host in authority.split(","))
    return all(not host or is_loopback(host) for host in hosts)


# ---------------------------------------------------------------- shared options

broker = click.option(
    "--broker",
    metavar="URL",
    default=DEFAULT_BROKER,
    show_default=True,
    callback=not_on_the_command_line,
    help="RabbitMQ: amqp:// or amqps://.",
)
_STORE = click.option(
    "--store",
    metavar="URL",
    default=DEFAULT_STORE,
    show_default=True,
    callback=not_on_the_command_line,
    help="Redis: redis:// or rediss://.",
)
federation = click.option(
    "--federation", type=Identifier(), default="default", show_default=True, help="Its name."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
live = click.option(
    "--live/--no-live",
    default=None,
    help="A live view, or a line for each round.  [default: live on a terminal]",
)
out = click.option(
    "--out", metavar="FOLDER", default="runs", show_default=True, help="Where run folders are made."
)
workers = click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Learners that compute at the same time.  [default: number of CPUs]",
)
connect_timeout = click.option(
    "--connect-timeout",
    "connect_timeout_s",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a server that is not there; 0: for ever.",
)
timeout = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for an answer of the controller.",
)
log_format = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: an object a line, with federation, job, round and learner where they apply.",
)
_METRICS = (
    click.option(
        "--metrics-port",
        type=click.IntRange(0, 65_535),
        metavar="PORT",
        help="Serve /metrics, /healthz and /readyz; 0: on any free port.  [default: they are not served]",
    ),
    click.option(
        "--metrics-addr",
        metavar="ADDRESS",
        default="127.0.0.1",
        show_default=True,
        help="Of this machine; who can reach it can read them.",
    ),
)
_TLS = (
    click.option(
        "--tls-ca", metavar="FILE", help="PEM: authorities that the broker's certificate may be from (amqps)."
    ),
    click.option(
        "--tls-cert",
        metavar="FILE",
        help="PEM: certificate to show to the broker (amqps). Without a password in the URL, the account is "
        "the one that it names.",
    ),
    click.option("--tls-key", metavar="FILE", help="PEM: its key."),
    click.option(
        "--proxy",
        metavar="URL",
        callback=not_on_the_command_line,
        help="http://[user:password@]host:port, an HTTP proxy on the way to the broker; none: no proxy.  "
        "[default: for amqps, HTTPS_PROXY and NO_PROXY]",
    ),
    click.option(
        "--insecure-plaintext",
        is_flag=True,
        help="Go to servers on other machines without TLS, passwords included.",
    ),
)
_STORE_TLS = (
    click.option("--store-tls-ca", metavar="FILE", help="PEM: authorities for Redis (rediss)."),
    click.option("--store-tls-cert", metavar="FILE", help="PEM: certificate to show to Redis (rediss)."),
    click.option("--store-tls-key", metavar="FILE", help="PEM: its key."),
)


def parameters(name: str, short: str, what: str) -> Callable[[Any], Any]:
    """An option of names and values."""
    return click.option(
        short,
        f"--{name}",
        f"{name}s",
        cls=NamedValues,
        type=NamedValue(),
        multiple=True,
        metavar="NAME=VALUE",
        help=what,
    )


def checked_parameters(given: Any, option: str) -> Any:
    """Names and values as they may travel.

    Raises:
        BadParameter: a name or a value is not allowed.
    """
    try:
        return TypeAdapter(fields.Parameters).validate_python(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise click.BadParameter(f"{first['loc'][0]}: {first['msg']}", param_hint=f"'{option}'") from None


def watched(command: F) -> F:
    """How a daemon is watched: its log, its metrics."""
    for option in (*reversed(_METRICS), log_format):
        command = option(command)
    return command


def store(command: F) -> F:
    """What everything that goes to the store needs."""
    for option in (*reversed(_STORE_TLS), _STORE):
        command = option(command)
    return command


def broker_place(command: F) -> F:
    """Where the broker is, for who has no join file."""
    for option in (*reversed(_TLS), federation, broker):
        command = option(command)
    return command


_JOIN = click.option(
    "--join",
    metavar="FILE",
    help="A join file (broker-fl enroll): broker, CA, account and federation. For these it wins over the "
    "environment and the settings file.",
)
_IN_JOIN_FILE = ("broker", "federation", "tls_ca", "tls_cert", "tls_key")


def broker_access(command: F) -> F:
    """What everything that goes to the broker needs; what a join file says takes the place of options.

    With one, the command is given ``joined``, the account that it is for, and ``tls_ca_text``.
    """
    place = broker_place(command)

    @functools.wraps(place)
    def with_join_file(*args: Any, join: str | None, **given: Any) -> Any:
        if join is not None:
            given |= _joined(join, Path(join))
        return command(*args, **given)

    return cast("F", _JOIN(with_join_file))


def _joined(shown: str, path: Path) -> dict[str, Any]:
    """Options as a join file has them.

    Raises:
        UsageError: some of them are typed as well.
        SettingError: the file cannot be read.
    """
    from broker_fl.identity.joinfile import read_join_file

    not_beside_join(f"--join {shown} says where the broker is and who you are", _IN_JOIN_FILE)
    file = read_join_file(path)
    security = file.security(path)
    return {
        "broker": file.url,
        "federation": file.federation,
        "joined": file.account,
        "tls_ca": None,
        "tls_ca_text": security.ca_text,
        "tls_cert": security.cert_file,
        "tls_key": security.key_file,
    }


def not_beside_join(says: str, names: Sequence[str]) -> None:
    """Refuse flags that were typed beside a join file that says the same; it wins over other sources.

    Raises:
        UsageError: some of them were.
    """
    ctx = click.get_current_context()
    twice = [name for name in names if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if twice:
        raise click.UsageError(
            f"{says}; leave out " + ", ".join(f"--{name.replace('_', '-')}" for name in twice)
        )
