"""``broker-fl enroll``, ``rotate``, ``revoke``, ``members``: who may take part, and as whom."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from broker_fl.cli import options
from broker_fl.cli.access import broker_security
from broker_fl.cli.command import Command, print_json
from broker_fl.cli.deeds import written_down
from broker_fl.cli.operators import Duration, management, members_of, tidied, tidy
from broker_fl.cli.tables import print_table
from broker_fl.errors import BrokerUnavailable, SettingError
from broker_fl.identity.accounts import ROLES, Account
from broker_fl.identity.joinfile import JoinFile, without_account
from broker_fl.identity.members import Member, Members
from broker_fl.identity.passwords import hashed, new_password
from broker_fl.identity.private_file import PendingFile, check_writable
from broker_fl.security.certificates import check_login
from broker_fl.transports.rabbitmq.addresses import parse_addresses

F = TypeVar("F", bound=Callable[..., Any])
_CA_CERTIFICATE_BEGINS = "-----BEGIN CERTIFICATE-----"
role = click.option(
    "--role",
    type=click.Choice(ROLES),
    default="learner",
    show_default=True,
    help="group: a host of many learners. driver: submits and watches. observer: only watches.",
)
role_of_one = click.option(
    "--role", type=click.Choice(ROLES), help="Needed only where several accounts have the name."
)
force = click.option("--force", is_flag=True, help="Replace the file if it is there.")


def out(what: str) -> Callable[[F], F]:
    """``--out``."""
    return click.option(
        "--out", metavar="FILE", help=f"Where to write the {what}.  [default: NAME.{what.split()[0]}]"
    )


def certificate(command: F) -> F:
    """A login without a password."""
    for option in (
        click.option(
            "--key",
            metavar="FILE",
            help="Its key, likewise; the site's own file, which need not be on this machine.",
        ),
        click.option(
            "--certificate",
            metavar="FILE",
            help="The site logs in with this certificate (PEM), not a password; its common name must be "
            "the account's (F.learner.NAME). The join file has the path as given, to be found from the join "
            "file's folder.",
        ),
    ):
        command = option(command)
    return command


# ---------------------------------------------------------------- commands


@click.command(cls=Command)
@click.argument("name", type=options.Identifier())
@role
@out("join file")
@force
@click.option(
    "--expires", "expires_s", type=Duration(), metavar="TIME", help="How long the account is meant: 90d."
)
@certificate
@click.option("--repair", is_flag=True, help="Make mailbox, permissions and limits anew; nothing is written.")
@management
@tidied
def enroll(name: str, role: Any, out: str | None, force: bool, **given: Any) -> None:
    """Make an account for NAME, and write its join file: all that the site needs.

    The account may do what its role needs and nothing else (docs/security.md).
    """
    members, account = members_of(given), Account.new(given["federation"], role, name)
    if given["repair"]:
        with written_down("repair", account, given):
            members.repair(account)
        click.echo(f"{account}: mailbox, permissions and limits are as they should be")
        return
    path = Path(out or f"{name}.join")
    check_writable(path, overwrite=force)
    password = None if given["certificate"] else new_password()
    expires = None if given["expires_s"] is None else time.time() + given["expires_s"]
    file = _join_file(account, password, given, expires, path)
    with written_down("enroll", account, given):
        members.enroll(account, hashed(password) if password else "", expires=expires)
        _write(file, path, members, force=force)
    click.echo(f"{path}: give it to {name} by a safe way, and to nobody else")
    if members.may_fill_up(account):
        click.secho(
            f"Warning: a {role} may declare queues, and this virtual host has no limit of them (max-queues; "
            "docs/operations.md)",
            fg="yellow",
            err=True,
        )


@click.command(cls=Command)
@click.argument("name", type=options.Identifier())
@role_of_one
@out("join file")
@force
@certificate
@management
def rotate(name: str, role: Any, out: str | None, force: bool, **given: Any) -> None:
    """Give NAME a new password and a new join file; the old one opens nothing any more.

    An account that logs in with a certificate goes on so, with another one (--certificate). The old one
    opens the account until its date, for a broker looks at the name in a certificate only.
    """
    members = members_of(given)
    account, path = members.find(name, role), Path(out or f"{name}.join")
    check_writable(path, overwrite=force)
    had_password = members.has_password(account)
    if not given["certificate"] and not had_password:
        raise SettingError(
            f"{account} logs in with a certificate and has no password to be changed: give --certificate "
            "with another one; or broker-fl revoke and enroll, for a password"
        )
    password = None if given["certificate"] else new_password()
    file = _join_file(account, password, given, members.expiry(account), path)
    new = file.prepare(path)  # what opens the account from now on must not be lost with this process
    try:
        with written_down("rotate", account, given):
            if password or had_password:
                _change(members, account, hashed(password) if password else "", new, force=force)
            else:
                members.rotate(account, "")
                new.place(overwrite=force)
    finally:
        new.discard()
    old = "the old password is no longer valid" if password else "no password opens the account"
    click.echo(f"{path}: give it to {name}; {old}, and what was open is closed")


@click.command(cls=Command)
@click.argument("name", type=options.Identifier(), required=False)
@role_of_one
@click.option("--expired", is_flag=True, help="Instead of NAME: all accounts and tokens whose time is over.")
@management
def revoke(name: str | None, role: Any, expired: bool, **given: Any) -> None:
    """Take NAME out: its account and its mailbox are deleted, its connections closed."""
    if (name is None) != expired:
        raise click.UsageError("give NAME, or --expired")
    members = members_of(given)
    wanted = members.expired() if name is None else [members.find(name, role, missing=True)]
    if not wanted:
        click.echo(f"no account of federation {given['federation']} is past its time")
    for account in wanted:
        with written_down("revoke", account, given):
            members.revoke(account)
        click.echo(f"{account}: revoked")
    if expired:
        tidy(given)


@click.command(cls=Command)
@options.as_json
@management
@tidied
def members(as_json: bool, **given: Any) -> None:
    """List the accounts of the federation: since when, last seen, connections, expiry, state."""
    rows = [_row(member) for member in members_of(given).members()]
    if as_json:
        print_json(rows)
        return
    titles = ["NAME", "ROLE", "SINCE", "LAST SEEN", "CONNECTIONS", "EXPIRES", "STATE"]
    print_table(titles, [[str(value) for value in _shown(row).values()] for row in rows])


def _row(member: Member) -> dict[str, Any]:
    """For machines: times are Unix times, or null."""
    return {
        "name": member.account.name,
        "role": member.account.role,
        "since": member.since,
        "last_seen": member.last_seen,
        "connections": member.num_connections,
        "expires": member.expires,
        "state": member.state,
    }


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    times = {name: _date(row[name]) for name in ("since", "last_seen", "expires")}
    return {**row, **times} | ({"last_seen": "now"} if row["connections"] else {})


def _date(at: float | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d %H:%MZ", time.gmtime(at))


def _join_file(
    account: Account, password: str | None, given: Mapping[str, Any], expires: float | None, path: Path
) -> JoinFile:
    """What the site gets; made before anything is changed, so that what is wrong is said before."""
    certificate, key = given["certificate"], given["key"]
    if key and not certificate:
        raise SettingError("--key is that of a certificate: give --certificate, too")
    if certificate:
        check_login(account.user, _here(certificate, path), _here(key, path) if key else None)
    return JoinFile(
        federation=account.federation,
        role=account.role,
        name=account.name,
        broker=place_of(given),
        ca=ca_text(given),
        password=password,
        certificate=certificate,
        key=key,
        expires=_date(expires) or None,
    )


def _here(file: str, join_file: Path) -> Path:
    """Where a file of the site is on this machine: from the join file's folder, or from ours."""
    beside = join_file.parent / file
    return beside if beside.exists() else Path(file)


def place_of(given: Mapping[str, Any]) -> str:
    """The broker's URL as it stands in a file for a site.

    Raises:
        SettingError: it is no URL of a broker.
    """
    parse_addresses(given["broker"], broker_security(given))  # says what is wrong with it
    return without_account(given["broker"])


def ca_text(given: Mapping[str, Any]) -> str | None:
    """The authorities that the broker's certificate may be from, as PEM.

    Raises:
        SettingError: the file is none; above all not one with a private key in it.
    """
    if (file := given.get("tls_ca")) is None:
        return None
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{file} cannot be read: {error}") from error
    start = text.find(_CA_CERTIFICATE_BEGINS)
    if start < 0 or "PRIVATE KEY" in text:
        raise SettingError(f"{file} is to hold certificates of authorities, and nothing else")
    return text[start:]


def _write(file: JoinFile, path: Path, members: Members, *, force: bool) -> None:
    """Write a join file; an account that nobody can use is taken back."""
    try:
        file.write(path, overwrite=force)
    except BaseException:
        members.revoke(file.account)
        raise


def _change(members: Members, account: Account, password_hash: str, new: PendingFile, *, force: bool) -> None:
    """Change a password, and give its join file the name: at each moment a file is there that works.

    Raises:
        SettingError, BrokerUnavailable: not all of it was done, or nothing; says which file opens the account
            if that is another one than before.
    """
    try:
        members.rotate(account, password_hash)
    except BaseException as error:
        is_taken = members.has_taken(account, password_hash)
        if is_taken is None:
            raise BrokerUnavailable(
                f"{error}. Whether the broker has the new password is not known: if the join file of before "
                f"opens nothing any more, the new one is {new.keep()}; else delete that, and try again"
            ) from error
        if is_taken:
            _place(new, force=force)
            raise BrokerUnavailable(
                f"{error}. {new.path} is the join file from now on, but not all was done: run broker-fl "
                "rotate once more"
            ) from error
        raise
    _place(new, force=force)


def _place(new: PendingFile, *, force: bool) -> None:
    try:
        new.place(overwrite=force)
    except SettingError as error:
        raise SettingError(
            f"{error}. The password is another one already: the new join file is {new.keep()}"
        ) from error
