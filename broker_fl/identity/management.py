"""RabbitMQ's management HTTP interface, as far as this library uses it; its only client here.

https://www.rabbitmq.com/docs/management#http-api. Everything is made by PUT, so that making it again changes
nothing.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from broker_fl.errors import AccessDenied, BrokerUnavailable, SettingError
from broker_fl.identity.passwords import HASHING
from broker_fl.identity.permissions import Permissions
from broker_fl.security.tls import Security, check_plaintext, client_context, client_verdict, untrusted
from broker_fl.topology import Entity, Exchange, Queue
from broker_fl.transports.rabbitmq.channel import queue_arguments

MAX_ANSWER_BYTES = 256 << 20
"""Twenty thousand connections are described in 40 MB."""
_MAX_DEPTH = 20
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_TIMEOUT_S = 30.0
_CLOSING_S, _LOOK_AGAIN_S = 10.0, 0.05
_NOT_FOUND = 404
_FORM = "http[s]://host[:port], the account apart from it"


class ManagementApi:
    """Of one broker. About 0.02 s a request, where ``rabbitmqctl`` starts an Erlang for 0.5 s."""

    def __init__(self, url: str, *, user: str, password: str, security: Security | None = None) -> None:
        """`url` is the root, such as ``https://broker.example.org:15671``; the account an administrator.

        Raises:
            SettingError: the URL or a TLS file is not usable, or the way there would be in plain text.
        """
        self.place = url.rstrip("/")
        self._user = user
        security = security or Security()
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        try:
            parts = urlsplit(url)
            scheme, host, account = parts.scheme, parts.hostname, parts.username
        except ValueError:
            scheme, host, account = "", None, None
        if scheme not in ("http", "https") or not host or account is not None:
            raise SettingError(f"management URL: it must look like {_FORM}")
        if scheme == "https":
            handlers.append(urllib.request.HTTPSHandler(context=client_context(security)))
        else:
            check_plaintext(self.place, host, security, secure_scheme="https")
        # Never through a proxy that the environment names, nor anywhere else than to this server.
        self._opener = urllib.request.build_opener(*handlers, _NoRedirect)
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}

    # ------------------------------------------------------------ virtual hosts

    def add_vhost(self, name: str) -> None:
        """Make a virtual host on which the account may do everything; one that exists is kept."""
        self.request("PUT", _path("vhosts", name))
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.request("PUT", _path("permissions", name, self._user), everything)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host and all its queues; its connections are closed by the broker."""
        self.request("DELETE", _path("vhosts", name))

    def limits(self, vhost: str) -> dict[str, int]:
        """What is bounded on a virtual host: ``max-connections``, ``max-queues``."""
        found: dict[str, int] = {}
        for row in self._rows(_path("vhost-limits", vhost)):
            found |= row.get("value") or {}
        return found

    # ------------------------------------------------------------ users

    def put_user(self, user: str, password_hash: str) -> None:
        """Make a user without any tag, or give it another password; without a hash none opens anything."""
        body = {"password_hash": password_hash, "hashing_algorithm": HASHING, "tags": ""}
        self.request("PUT", _path("users", user), body)

    def has_user(self, user: str) -> bool:
        """Whether there is such a user."""
        return self.find(_path("users", user)) is not None

    def has_password(self, user: str) -> bool:
        """Whether a password opens the user, as it does where the broker keeps a hash of one."""
        found = self.find(_path("users", user))
        return isinstance(found, Mapping) and bool(found.get("password_hash"))

    def has_hash(self, user: str, password_hash: str) -> bool:
        """Whether this is the hash that the broker keeps of the user's password; empty: it keeps none."""
        found = self.find(_path("users", user))
        return isinstance(found, Mapping) and bool((found.get("password_hash") or "") == password_hash)

    def users(self) -> set[str]:
        """Names of all users."""
        return {row["name"] for row in self._rows(_path("users"))}

    def delete_user(self, user: str) -> None:
        """Delete a user with its permissions and limits; the broker closes its connections."""
        self._delete(_path("users", user))

    def vhosts_of(self, user: str) -> set[str]:
        """Virtual hosts on which a user may do anything."""
        return {row["vhost"] for row in self._rows(_path("users", user, "permissions"))}

    def grant(self, vhost: str, user: str, permissions: Permissions) -> None:
        """Set permissions and limits: what narrows first, so that at no moment the user may do more."""
        for exchange, keys in permissions.topics.items():
            topic = {"exchange": exchange, "write": keys.write, "read": keys.read}
            self.request("PUT", _path("topic-permissions", vhost, user), topic)
        limits = {"max-connections": permissions.max_connections, "max-channels": permissions.max_channels}
        for name, value in limits.items():
            self.request("PUT", _path("user-limits", user, name), {"value": value})
        names = {
            "configure": permissions.configure,
            "write": permissions.write,
            "read": permissions.read,
        }
        self.request("PUT", _path("permissions", vhost, user), names)

    def connections(self) -> dict[str, int]:
        """How many connections each user has."""
        found: dict[str, int] = {}
        for row in self._rows(_path("connections")):
            if user := row.get("user"):
                found[user] = found.get(user, 0) + 1
        return found

    def close_connections(self, user: str) -> None:
        """Close all connections of a user.

        One that is ending at this moment, as all do whose user was deleted, may be answered with an error of
        the server: what counts is that it is not there any more.

        Raises:
            BrokerUnavailable: some cannot be closed.
        """
        give_up_at = time.monotonic() + _CLOSING_S
        while True:
            refused: BrokerUnavailable | None = None
            for row in self._rows(_path("connections", "username", user)):
                try:
                    self._delete(_path("connections", row["name"]))
                except BrokerUnavailable as error:
                    refused = error
            if refused is None:
                return
            if time.monotonic() > give_up_at:
                raise refused
            time.sleep(_LOOK_AGAIN_S)

    # ------------------------------------------------------------ exchanges, queues, messages

    def declare(self, vhost: str, entities: Sequence[Entity]) -> None:
        """Make exchanges, queues and bindings; what is there already stays as it is.

        Raises:
            SettingError: it exists with other settings.
        """
        for entity in entities:
            if isinstance(entity, Exchange):
                self.request(
                    "PUT", _path("exchanges", vhost, entity.name), {"type": entity.type, "durable": True}
                )
            elif isinstance(entity, Queue):
                body = {"durable": True, "arguments": queue_arguments(entity)}
                self.request("PUT", _path("queues", vhost, entity.name), body)
            else:
                path = _path("bindings", vhost, "e", entity.exchange, "q", entity.queue)
                self.request("POST", path, {"routing_key": entity.routing_key})

    def delete_queue(self, vhost: str, name: str) -> None:
        """Delete a queue with all it holds, if there is one."""
        self._delete(_path("queues", vhost, name))

    def delete_exchange(self, vhost: str, name: str) -> None:
        """Delete an exchange with its bindings, if there is one."""
        self._delete(_path("exchanges", vhost, name))

    def queue(self, vhost: str, name: str) -> dict[str, Any] | None:
        """What the broker tells of a queue; None if there is none."""
        found = self.find(_path("queues", vhost, name))
        return dict(found) if isinstance(found, Mapping) else None

    def queues(self, vhost: str) -> set[str]:
        """Names of all queues."""
        return {row["name"] for row in self._rows(_path("queues", vhost) + "?columns=name")}

    def take_messages(
        self, vhost: str, queue: str, count: int, *, truncate: int | None = None
    ) -> list[tuple[bytes, str | None]]:
        """Up to ``count`` messages, taken from the queue, with the accounts that sent them; of longer ones
        the first ``truncate`` bytes.
        """
        return self._messages(vhost, queue, count, "ack_requeue_false", truncate)

    def look_at_messages(
        self, vhost: str, queue: str, count: int, *, truncate: int | None = None
    ) -> list[tuple[bytes, str | None]]:
        """As ``take_messages``, but they stay where they are; none where there is no such queue."""
        try:
            return self._messages(vhost, queue, count, "ack_requeue_true", truncate)
        except _NotFound:
            return []

    def _messages(
        self, vhost: str, queue: str, count: int, mode: str, truncate: int | None
    ) -> list[tuple[bytes, str | None]]:
        body: dict[str, object] = {"count": count, "ackmode": mode, "encoding": "base64"}
        if truncate is not None:
            body["truncate"] = truncate
        rows = self.request("POST", _path("queues", vhost, queue, "get"), body)
        return [
            (base64.b64decode(row["payload"]), (row.get("properties") or {}).get("user_id"))
            for row in (rows if isinstance(rows, list) else [])
        ]

    # ------------------------------------------------------------ records

    def put_record(self, name: str, value: Mapping[str, object]) -> None:
        """Keep a small JSON value on the broker, under a name, as a global parameter of it."""
        self.request("PUT", _path("global-parameters", name), {"value": dict(value)})

    def records(self, prefix: str) -> dict[str, Any]:
        """The values kept under names with this prefix, by the rest of the name."""
        rows = self._rows(_path("global-parameters"))
        return {
            row["name"].removeprefix(prefix): row["value"] for row in rows if row["name"].startswith(prefix)
        }

    def delete_record(self, name: str) -> None:
        """Forget a value."""
        self._delete(_path("global-parameters", name))

    # ------------------------------------------------------------ requests

    def request(self, method: str, path: str, body: Mapping[str, object] | None = None) -> object:
        """One request; the answer's JSON, or None when it is empty.

        Raises:
            AccessDenied: the account may not do this.
            SettingError: the server refuses what was asked, or its certificate is not trusted.
            BrokerUnavailable: no answer, or an error of the server.
        """
        data = b"" if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - http or https: see the constructor
            self.place + path, data=data, headers=self._headers, method=method
        )
        doing = f"{method} {self.place}{path}"
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                text = answer.read(MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(doing, error.code, error.read().decode(errors="replace")[:500]) from error
        except OSError as error:
            raise _no_answer(self.place, doing, error) from error
        except http.client.HTTPException as error:
            raise SettingError(f"{doing}: {_not_it(self.place)}") from error
        if len(text) > MAX_ANSWER_BYTES:
            raise SettingError(f"{doing}: the answer is longer than {MAX_ANSWER_BYTES} bytes")
        try:
            return _json(text) if text else None
        except ValueError as error:
            raise SettingError(f"{doing}: this is not RabbitMQ's management interface") from error

    def find(self, path: str) -> object:
        """What is there; None if nothing is."""
        try:
            return self.request("GET", path)
        except _NotFound:
            return None

    def _delete(self, path: str) -> None:
        try:
            self.request("DELETE", path)
        except _NotFound:
            return

    def _rows(self, path: str) -> list[dict[str, Any]]:
        found = self.find(path)
        return found if isinstance(found, list) else []


class _NotFound(BrokerUnavailable):
    """There is no such thing."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The account's password goes to the server that was named, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _json(text: bytes) -> object:
    """What JSON says; what is nested deeper than ``_MAX_DEPTH`` is None where it would end Python's stack, as
    do tables in the headers of a message that anybody may have sent.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text)
    except RecursionError:
        pass
    pieces, start, depth = [], 0, 0
    for found in _STRING_OR_BRACKET.finditer(text):
        if found[0] in (b"{", b"["):
            depth += 1
            if depth == _MAX_DEPTH + 1:
                pieces += [text[start : found.start()], b"null"]
        elif found[0] in (b"}", b"]"):
            depth -= 1
            if depth == _MAX_DEPTH:
                start = found.end()
    return json.loads(b"".join([*pieces, text[start:]]))


_LOST = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


def _no_answer(place: str, doing: str, error: OSError) -> Exception:
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, OSError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return untrusted(place, cause)
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, _LOST):
        return SettingError(f"{doing}: {client_verdict(cause) or _not_it(place)}")
    if isinstance(cause, ConnectionRefusedError | socket.gaierror):
        return BrokerUnavailable(f"{place}: {_nobody_there(cause)}")
    return BrokerUnavailable(f"{doing}: {error}")


def _nobody_there(cause: OSError) -> str:
    found = "nothing listens there" if isinstance(cause, ConnectionRefusedError) else cause.strerror
    return (
        f"{found}. This is to be RabbitMQ's management interface, which accounts are made through: say where "
        "it is by --management or BROKER_FL_MANAGEMENT (http[s]://administrator@host:port), and have the "
        "broker's plugin on (rabbitmq-plugins enable rabbitmq_management; docs/security.md, A new broker). "
        "The cluster of `broker-fl up` has none: all in it share one account"
    )


def _not_it(place: str) -> str:
    """Of something else than a web server, such as the broker's port for AMQP."""
    secure = place.startswith("https:")
    port = "15671 for https" if secure else "15672 for http"
    said = "HTTPS" if secure else "HTTP; if the port is one of TLS, give https://"
    return (
        f"what answers there does not speak {said}. RabbitMQ's management interface is not at the port for "
        f"AMQP, but at one of its own, mostly {port}"
    )


def _refusal(doing: str, code: int, text: str) -> Exception:
    words = f"{doing}: {code} {text}"
    if code in (401, 403):
        return AccessDenied(
            f"{words}; the account must have RabbitMQ's tag 'administrator', and the right password"
        )
    if code == _NOT_FOUND:
        return _NotFound(words)
    return SettingError(words) if 400 <= code < 500 else BrokerUnavailable(words)


def _path(*parts: str) -> str:
    return "/api/" + "/".join(quote(part, safe="") for part in parts)
