"""``broker-fl ca``: a private certificate authority."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from broker_fl.cli.command import Command
from broker_fl.cli.deeds import noted
from broker_fl.cli.operators import AUDIT
from broker_fl.errors import SettingError
from broker_fl.identity.accounts import Account
from broker_fl.security.audit import Deed

if TYPE_CHECKING:
    from broker_fl.security.authority import Authority, Issued

F = TypeVar("F", bound=Callable[..., Any])
_FOLDER = click.option(
    "--folder", default="ca", show_default=True, metavar="FOLDER", help="Where the authority's files are."
)


def _days(default: int) -> Callable[[F], F]:
    return click.option(
        "--days",
        type=click.IntRange(1, 36_500),
        default=default,
        show_default=True,
        metavar="N",
        help="How long the certificate holds; never longer than the authority's own.",
    )


@click.group()
def ca() -> None:
    """Make a private certificate authority, and certificates for servers and clients."""


@ca.command(cls=Command)
@_FOLDER
@_days(3650)
@click.option("--name", default="broker_fl private CA", show_default=True, help="What people see.")
def init(folder: str, days: int, name: str) -> None:
    """Make an authority."""
    authority = _module().Authority.create(folder, name, days)
    click.echo(f"{authority.file}: give it to everybody (--tls-ca)")
    click.echo(f"{authority.folder / 'ca-key.pem'}: keep it where no server and no site can read it")


@ca.command(cls=Command)
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@_FOLDER
@_days(397)
def server(hosts: tuple[str, ...], folder: str, days: int) -> None:
    """Issue a certificate for a server that is reached as HOST..., names and addresses."""
    issued = _authority(folder).server(hosts, days)
    _say(issued)
    click.echo("\nIn rabbitmq.conf:\n" + rabbitmq_settings(Path(folder) / "ca.pem", issued))


@ca.command(cls=Command)
@click.argument("name")
@_FOLDER
@_days(397)
@click.option(
    "--request",
    metavar="FILE",
    help="PEM: a certificate request; its key stays where it was made, and only a certificate is written.",
)
@AUDIT
def client(name: str, folder: str, days: int, request: str | None, audit: str | None) -> None:
    """Issue a certificate for a client whose account at the broker is NAME.

    One for an account of a federation (F.role.name) opens it whether it has a password or not, and is written
    down in that federation's audit log of this operator.
    """
    authority, account = _authority(folder), Account.of(name)
    if account is None:
        _certify(authority, name, days, request)
        return
    deed = Deed(actor="", action="certify", subject=f"account {account.user}", details={"days": days})
    with noted(deed, {"audit": audit}, account.federation) as known:
        known["serial"] = _module().serial(_certify(authority, name, days, request))


def _certify(authority: Authority, name: str, days: int, request: str | None) -> Path:
    """Where the certificate is."""
    if request is None:
        issued = authority.client(name, days)
        _say(issued)
        return issued.certificate
    try:
        asked = Path(request).read_bytes()
    except OSError as error:
        raise SettingError(f"{request} cannot be read: {error.strerror}") from error
    if b"-----BEGIN" not in asked:
        raise SettingError(
            f"{request} is no certificate request in PEM; where the key is: openssl req -new -key KEY.pem "
            f"-subj /CN={name}"
        )
    path = authority.certify_to_file(name, asked, days)
    click.echo(f"certificate  {path}")
    return path


def _module() -> Any:
    try:
        from broker_fl.security import authority
    except ImportError as error:
        raise SettingError(
            f"certificates are made with the package cryptography ({error}): "
            "pip install 'broker-fl[identity]'"
        ) from error
    return authority


def _authority(folder: str) -> Authority:
    opened: Authority = _module().Authority.open(folder)
    return opened


def _say(issued: Issued) -> None:
    click.echo(f"certificate  {issued.certificate}")
    click.echo(f"key          {issued.key}")


def rabbitmq_settings(ca_file: Path, issued: Issued) -> str:
    """Lines of ``rabbitmq.conf``: TLS only, for accounts with passwords and for those with certificates."""
    files = (
        ("cacertfile", ca_file.absolute()),
        ("certfile", issued.certificate.absolute()),
        ("keyfile", issued.key.absolute()),
    )
    return "\n".join(
        (
            "  listeners.tcp = none",
            "  listeners.ssl.default = 5671",
            *(f"  ssl_options.{name} = {path}" for name, path in files),
            "  ssl_options.verify = verify_peer",
            "  # Accounts with passwords, and tokens, come without a certificate: true only where every",
            "  # account has one (enroll --certificate), also the controller's.",
            "  ssl_options.fail_if_no_peer_cert = false",
            "  # certificates as logins, after: rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl",
            "  auth_mechanisms.1 = EXTERNAL",
            "  auth_mechanisms.2 = PLAIN",
            "  ssl_cert_login_from = common_name",
            "  # for broker-fl enroll, after: rabbitmq-plugins enable rabbitmq_management",
            "  management.ssl.port = 15671",
            *(f"  management.ssl.{name} = {path}" for name, path in files),
        )
    )
