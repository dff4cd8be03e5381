"""What pika and RabbitMQ say, as our errors: what was wrong, and what an operator does about it."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator

from pika import exceptions as pika_errors

from broker_fl.errors import (
    AccessDenied,
    BrokerFLError,
    BrokerUnavailable,
    LoginRefused,
    QueueInUse,
    QueueLost,
    SettingError,
)
from broker_fl.security.tls import client_verdict, untrusted
from broker_fl.transports.rabbitmq.address import Address

ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED, PRECONDITION_FAILED, NOT_ALLOWED = 403, 404, 405, 406, 530

_NODE_DOWN = re.compile("is down or inaccessible|due to timeout|stopped by supervisor|failed to restart")
"""What RabbitMQ says of a queue that it knows and has no process of (``rabbit_amqqueue:absent``)."""
_REFUSED_TO = re.compile(r"refused for user '([^']*)'")
_ENROLLED = re.compile(r"[\w-]+\.(?P<role>learner|group|driver|observer|controller)\.(?P<name>[\w-]+)")
"""Users that ``broker-fl enroll`` makes; who they are is decided in ``identity.accounts``."""
_BY_TOKEN = re.compile(r"[\w-]+\.candidate\.[\w-]+")
_BAD_LOGIN = (pika_errors.ProbableAuthenticationError, pika_errors.AuthenticationError)


def connection_failure(error: BaseException, address: Address) -> BrokerFLError:
    """Why a connection was not made."""
    causes = list(_causes(error))
    for explain in (_found_by_us, _said_by_broker, _found_by_tls, _found_by_network):
        for cause in causes:
            if (failure := explain(cause, address)) is not None:
                return failure
    return BrokerUnavailable(f"{address}: no connection ({_short(causes[-1])})")


def _found_by_us(cause: BaseException, _: Address) -> BrokerFLError | None:
    """On the way through a proxy."""
    return cause if isinstance(cause, BrokerFLError) else None


def _said_by_broker(cause: BaseException, address: Address) -> BrokerFLError | None:
    if isinstance(cause, pika_errors.ConnectionClosed):
        return _refused(cause, address)
    if isinstance(cause, _BAD_LOGIN):
        return _bad_login(address)
    if isinstance(cause, pika_errors.ProbableAccessDeniedError):
        return _bad_vhost(address, "access refused")
    return None


def _found_by_tls(cause: BaseException, address: Address) -> BrokerFLError | None:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return untrusted(str(address), cause)
    if (verdict := client_verdict(cause)) is not None:
        return SettingError(f"{address}: {verdict}")
    if isinstance(cause, ssl.SSLError | pika_errors.IncompatibleProtocolError):
        return SettingError(
            f"{address}: no {'TLS' if address.tls else 'AMQP 0-9-1'} on this port ({_short(cause)})"
        )
    return None


def _found_by_network(cause: BaseException, address: Address) -> BrokerFLError | None:
    if isinstance(cause, socket.gaierror):
        whose = f"proxy {address.proxy}" if address.proxy else address
        return BrokerUnavailable(f"{whose}: the host name is not known ({cause.strerror})")
    if isinstance(cause, TimeoutError):
        return BrokerUnavailable(f"{address}: no answer in time")
    if isinstance(cause, ConnectionRefusedError):
        return BrokerUnavailable(
            f"{address}: nothing listens there; is RabbitMQ running, and the port right?"
        )
    return None


def _refused(cause: pika_errors.ConnectionClosed, address: Address) -> BrokerFLError:
    if cause.reply_code == ACCESS_REFUSED:
        return _bad_login(address)
    if cause.reply_code == NOT_ALLOWED:
        return _bad_vhost(address, cause.reply_text)
    return BrokerUnavailable(f"{address}: closed by the broker ({cause.reply_code} {cause.reply_text})")


def _bad_login(address: Address) -> LoginRefused:
    advice = _login_advice(address.user)
    if address.external:
        user = address.user or "the common name of the certificate"
        advice = advice or (
            f"an operator can let it in: rabbitmqctl add_user {user!r}, with "
            "rabbitmq_auth_mechanism_ssl enabled and ssl_cert_login_from = common_name"
        )
        return LoginRefused(
            f"{address}: the broker knows no user of the certificate's name, or takes no certificates for a "
            f"login (EXTERNAL); {advice}"
        )
    advice = advice or f"an operator can set it: rabbitmqctl change_password {address.user}"
    return LoginRefused(
        f"{address}: user or password is wrong, or the user may not log in from this machine; {advice}"
    )


def _login_advice(user: str) -> str:
    """For who has the account from ``broker-fl``; empty for any other."""
    if (found := _ENROLLED.fullmatch(user)) is not None:
        return (
            f"if {found['role']} {found['name']} was revoked, rotated, or is not accepted yet, its operator "
            "knows: what helps after broker-fl revoke or rotate is a new join file"
        )
    if _BY_TOKEN.fullmatch(user):
        return "the token was used, taken back, or is too old: ask the operator for another one"
    return ""


def _bad_vhost(address: Address, text: str) -> AccessDenied:
    make = f"make the virtual host (rabbitmqctl add_vhost {address.vhost})"
    if advice := repair_advice(address.user):
        return AccessDenied(f"{address}: {text}; if it is missing, an operator can {make}; {advice}")
    return AccessDenied(
        f"{address}: {text}; an operator can {make} "
        f"and let the user in (rabbitmqctl set_permissions -p {address.vhost} {address.user} ...)"
    )


def refused_user(text: str) -> str:
    """Whom the broker has refused something, by its reply; empty if it does not say."""
    found = _REFUSED_TO.search(text)
    return found[1] if found else ""


def enrolled(user: str) -> tuple[str, str] | None:
    """Role and name of an enrolled account; None for any other user."""
    found = _ENROLLED.fullmatch(user)
    return None if found is None else (found["role"], found["name"])


def repair_advice(user: str | None) -> str:
    """What gives an enrolled account its permissions back, and no others; empty for any other user.

    A ``set_permissions`` by hand would open the mail of all others to it.
    """
    found = _ENROLLED.fullmatch(user or "")
    if found is None:
        return ""
    return (
        f"broker-fl enroll {found['name']} --role {found['role']} --repair, by an operator, makes the "
        f"permissions of a {found['role']} anew; what is refused then is not for this account"
    )


def channel_failure(error: BaseException, doing: str) -> BrokerFLError:
    """Why the broker did not do what it was asked for on a channel."""
    if not isinstance(error, pika_errors.ChannelClosedByBroker):
        return BrokerUnavailable(f"cannot {doing}: the connection was lost ({_short(error)})")
    text = error.reply_text
    if error.reply_code == RESOURCE_LOCKED or "exclusive use" in text:
        return QueueInUse(f"cannot {doing}: somebody else consumes from it alone ({text})")
    if error.reply_code == ACCESS_REFUSED:
        by_hand = "rabbitmqctl set_permissions -p VHOST USER '^bfl\\.' '^bfl\\.' '^bfl\\.'"
        advice = repair_advice(refused_user(text)) or f"an operator can grant it: {by_hand}"
        return AccessDenied(f"cannot {doing}: {text}; {advice}")
    if error.reply_code == NOT_FOUND and _NODE_DOWN.search(text):
        return QueueLost(f"cannot {doing}: {text}")
    if error.reply_code == NOT_FOUND:
        return SettingError(f"cannot {doing}: it does not exist ({text})")
    if error.reply_code == PRECONDITION_FAILED:
        return SettingError(f"cannot {doing}: it exists with other settings ({text})")
    return BrokerUnavailable(f"cannot {doing}: {error.reply_code} {text}")


def missing_exchange(error: BaseException) -> str | None:
    """Name of the exchange that somebody published to although it does not exist."""
    return _exchange(error, NOT_FOUND)


def forbidden_exchange(error: BaseException) -> str | None:
    """Name of the exchange that this user may not publish to."""
    return _exchange(error, ACCESS_REFUSED)


def _exchange(error: BaseException, reply_code: int) -> str | None:
    if not isinstance(error, pika_errors.ChannelClosedByBroker) or error.reply_code != reply_code:
        return None
    found = re.search(r"exchange '([^']*)'", error.reply_text)
    return found[1] if found else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    yield error
    nested = [
        *getattr(error, "exceptions", ()),
        getattr(error, "exception", None),
        error.__cause__,
        *error.args,
    ]
    for inner in nested:
        if isinstance(inner, BaseException):
            yield from _causes(inner)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
