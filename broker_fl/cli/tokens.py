"""``broker-fl token``, ``join`` and ``accept``: a site draws its own password, which never travels."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from broker_fl.cli import options
from broker_fl.cli.command import Command
from broker_fl.cli.deeds import written_down
from broker_fl.cli.identity import ca_text, force, out, place_of, role
from broker_fl.cli.operators import Duration, granting_of, management, tidied
from broker_fl.errors import AccessDenied, BrokerUnavailable, SettingError
from broker_fl.identity.accounts import Account
from broker_fl.identity.granting import Asked, Granting
from broker_fl.identity.passwords import new_password
from broker_fl.identity.private_file import check_writable
from broker_fl.identity.tokens import EnrolmentRequest, Token, read_token
from broker_fl.security import Security
from broker_fl.topology import Topology
from broker_fl.transports.rabbitmq import RabbitMQTransport

_FLUSH_S = 30.0
_TRY_AGAIN_S = 1.0


@click.command(cls=Command)
@click.argument("name", type=options.Identifier())
@role
@out("token")
@force
@click.option(
    "--expires",
    "expires_s",
    type=Duration(),
    default="24h",
    show_default=True,
    metavar="TIME",
    help="How long NAME may ask with it.",
)
@click.option("--account-expires", "account_s", type=Duration(), metavar="TIME", help="As enroll --expires.")
@click.option("--cancel", is_flag=True, help="Make the token that NAME has invalid; nothing is written.")
@management
@tidied
def token(name: str, role: Any, out: str | None, force: bool, **given: Any) -> None:
    """Make a token with which NAME may ask once to be enrolled (broker-fl join)."""
    granting, account = granting_of(given), Account.new(given["federation"], role, name)
    if given["cancel"]:
        if not granting.has_invited(account):
            raise SettingError(f"{account} has no token (any more); nothing was changed")
        with written_down("cancel_token", account, given):
            granting.refuse(account)
        click.echo(f"{account}: its token is no longer valid")
        return
    path, now = Path(out or f"{name}.token"), time.time()
    check_writable(path, overwrite=force)
    made = Token(
        federation=account.federation,
        role=account.role,
        name=account.name,
        broker=place_of(given),
        ca=ca_text(given),
        token=new_password(),
        id=secrets.token_hex(8),
        expires=now + given["expires_s"],
    )
    account_expires = None if given["account_s"] is None else now + given["account_s"]
    with written_down("invite", account, given, token=made.id):
        granting.invite(made, account_expires)
        try:
            made.write(path, overwrite=force)
        except BaseException:
            granting.refuse(account)
            raise
    click.echo(f"{path}: give it to {name}; there: broker-fl join {path}; then here: broker-fl accept")


@click.command(cls=Command)
@click.argument("token_file", metavar="TOKEN")
@out("join file")
@force
@click.option(
    "--wait", "wait_s", type=Duration(), metavar="TIME", help="Wait until the operator has accepted: 10m, 2h."
)
@click.option(
    "--proxy", metavar="URL", callback=options.not_on_the_command_line, help="As for broker-fl learner."
)
@click.option("--insecure-plaintext", is_flag=True, help="As for broker-fl learner.")
def join(token_file: str, out: str | None, force: bool, wait_s: float | None, **given: Any) -> None:
    """Ask to be enrolled, with the file TOKEN from the operator.

    The password is drawn here and stays here, in the join file; only its hash is sent. The join file
    works as soon as the operator has accepted the request (broker-fl accept).
    """
    made = read_token(Path(token_file))
    path = Path(out or f"{made.name}.join")
    check_writable(path, overwrite=force)
    file = made.join_file()
    request = EnrolmentRequest.of(file, made)
    security = Security(
        ca_text=made.ca, proxy=given["proxy"], insecure_plaintext=bool(given["insecure_plaintext"])
    )
    transport = RabbitMQTransport(made.url, name=f"{made.name} asks to be enrolled", security=security)
    try:
        file.write(path, overwrite=force)
        transport.publish(
            Topology(made.federation).enrolment, [""], request.pack(), persistent=True, mandatory=True
        )
        if not transport.flush(_FLUSH_S):
            raise BrokerUnavailable(f"the broker does not take the request; {path} opens nothing yet")
    finally:
        transport.close()
    click.echo(f"{path} opens {made.account} once the operator has accepted")
    click.echo(f"fingerprint: {request.fingerprint}   (the operator sees the same one)")
    if wait_s is not None:
        _wait_accepted(file.url, security, wait_s)
        click.echo("accepted")


def _wait_accepted(url: str, security: Security, wait_s: float) -> None:
    give_up_at = time.monotonic() + wait_s
    while True:
        try:
            RabbitMQTransport(url, name="enrolled?", security=security).close()
            return
        except AccessDenied:
            if time.monotonic() + _TRY_AGAIN_S > give_up_at:
                raise SettingError("not accepted yet; the join file works once that is done") from None
            time.sleep(_TRY_AGAIN_S)


@click.command(cls=Command)
@click.argument("name", type=options.Identifier(), required=False)
@click.option("--fingerprint", metavar="XXXX-…", help="Accept NAME if it has this one; nobody is asked.")
@click.option("--yes", is_flag=True, help="Accept all, unless two came with one token; nobody is asked.")
@management
@tidied
def accept(name: str | None, fingerprint: str | None, yes: bool, **given: Any) -> None:
    """Show who asks to be enrolled (NAME, or everybody), and accept or refuse.

    Compare the fingerprint with the one that the site sees: it is how you know that nobody else had
    the token.
    """
    if fingerprint is not None and name is None:
        raise click.UsageError("--fingerprint needs NAME")
    granting = granting_of(given)
    _drop_floods(granting, given)
    asked = [one for one in granting.asked() if name in (None, one.account.name)]
    if not asked:
        click.echo("nobody asks")
    for one in asked:
        if fingerprint is not None and one.request.fingerprint != fingerprint:
            continue
        _decide(granting, one, given, sure=yes, matched=fingerprint is not None)
    granting.clear()
    if granting.is_more:
        click.echo("more messages wait behind these: run broker-fl accept again")
    if fingerprint is not None and all(one.request.fingerprint != fingerprint for one in asked):
        raise SettingError(f"{name} has not asked with the fingerprint {fingerprint}")


def _drop_floods(granting: Granting, given: Mapping[str, Any]) -> None:
    """Take tokens back with which somebody fills the queue, in which all others wait, too."""
    for account, reason in granting.misused():
        with written_down("cancel_token", account, given, reason=reason):
            granting.refuse(account)
        click.secho(
            f"{account}: {reason} came with its token, which is no longer valid; give it another one "
            "(broker-fl token)",
            fg="red",
        )
    granting.clear()


def _decide(granting: Granting, asked: Asked, given: Mapping[str, Any], *, sure: bool, matched: bool) -> None:
    click.echo(f"{asked.account}   fingerprint {asked.request.fingerprint}")
    if not asked.is_only_one and not matched:
        click.secho(
            "  undecided: several requests came with this token, so somebody else may have it; ask the site "
            "for its fingerprint and give --fingerprint, or take the token back (broker-fl token --cancel)",
            fg="red",
        )
        return
    known = {"token": asked.request.id, "fingerprint": asked.request.fingerprint}
    if matched or sure or click.confirm("  accept?", default=False):
        compared = "typed" if matched else "not" if sure else "shown"
        with written_down("enroll", asked.account, given, **known, fingerprint_was=compared):
            granting.grant(asked)
        click.echo("  accepted")
    else:
        with written_down("refuse_request", asked.account, given, **known):
            granting.refuse(asked.account)
        click.echo("  refused; the token is no longer valid")
