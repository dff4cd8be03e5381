"""How Redis is reached, and what its errors mean. Only ``stores/redis*.py`` import the driver."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker_fl.errors import AccessDenied, SettingError, StoreUnavailable
from broker_fl.security.tls import Security, check_plaintext, client_context, client_verdict, untrusted

_READ_BYTES = 1 << 20
"""Per ``recv``: reading 40 MB takes 0.06 to 0.1 s, with redis-py's own 64 KiB 0.15 s."""

_DENIED = ("NOPERM", "NOAUTH", "WRONGPASS", "ACL failure", "user executing the script")
"""The last two: within a script, in Redis 7.2 and before."""
_UNWILLING = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNKILLABLE",
)
"""Refusals that time, or an operator, ends."""

_ASK_DOCTOR = "`broker-fl doctor` names what the user lacks"


def connect(url: str, *, timeout_s: float, security: Security | None = None) -> redis.Redis:
    """A client that never tries again by itself; nothing is sent yet.

    Raises:
        SettingError: the URL is not one of Redis, a TLS file cannot be used, or the way there would be in
            plain text.
    """
    context = _tls_context(url, security or Security())
    try:
        # RESP2: every server speaks it, and no push message can come between the answers to chunks.
        pool = redis.ConnectionPool.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=min(timeout_s, 3.0),
            socket_timeout=timeout_s,
            socket_read_size=_READ_BYTES,
            **({} if url.startswith("unix:") else {"socket_keepalive": True}),
        )
        if context is not None:
            pool.connection_class = partial(_TlsConnection, context)
        return redis.Redis(connection_pool=pool)
    except (ValueError, TypeError):
        raise SettingError(
            f"{place(url)} is not a usable Redis URL; write redis://user:password@host:port/0 (TLS: rediss)"
        ) from None  # the driver's words may quote the URL, password and all


class _TlsConnection(redis.SSLConnection):
    """TLS as everywhere else here; the driver's own trusts the system's authorities besides a given one."""

    def __init__(self, context: ssl.SSLContext, **settings: Any) -> None:
        super().__init__(**settings)
        self._context = context

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
        return self._context.wrap_socket(sock, server_hostname=self.host)


def _tls_context(url: str, security: Security) -> ssl.SSLContext | None:
    """What verifies the server; nothing of it is from the URL. None: no TLS."""
    try:
        parts = urlsplit(url)
        host, query, _ = parts.hostname or "localhost", parts.query, parts.port
    except ValueError:
        return None  # said better by the driver
    if "ssl_" in query:
        raise SettingError(
            f"{place(url)}: TLS is not set in the URL; use --store-tls-ca, --store-tls-cert, --store-tls-key"
        )
    if parts.scheme == "rediss":
        return client_context(security)
    if security.has_files:
        raise SettingError(
            f"store {place(url)}: TLS files are given for it, so its URL (--store) must begin with rediss://"
        )
    if parts.scheme == "redis":
        check_plaintext(place(url), host, security, secure_scheme="rediss")
    return None


def place(url: str) -> str:
    """The URL without user, password and options: fit to be shown."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
    except ValueError:
        return f"{url.split(':', 1)[0]}://…"


def follow(client: redis.Redis, error: Exception, home: Mapping[str, Any]) -> None:
    """Turn to the node of a cluster that ``error`` names, or back ``home`` if the present one is lost.

    A federation's keys are all on one node: no more of a cluster needs to be known.
    """
    pool: Any = client.connection_pool
    target = dict(home)
    if isinstance(error, exceptions.MovedError):
        target["port"] = error.port
        if error.host:
            target["host"] = error.host
    if any(pool.connection_kwargs.get(name) != value for name, value in target.items()):
        pool.disconnect(inuse_connections=False)
        pool.connection_kwargs.update(target)
        pool.reset()


@contextmanager
def translated(server: str) -> Iterator[None]:
    """Turn the driver's errors into the library's."""
    try:
        yield
    except (exceptions.AuthenticationError, exceptions.AuthorizationError) as error:
        raise AccessDenied(f"{server} refused access: {error}") from error
    except exceptions.NoPermissionError as error:
        raise AccessDenied(f"{server} refused access: {error} ({_ASK_DOCTOR})") from error
    except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
        raise _no_connection(server, error) from error
    except exceptions.MovedError as error:
        raise StoreUnavailable(f"{server}: the keys are at {error.host}:{error.port} now") from error
    except exceptions.ResponseError as error:
        raise _refusal(server, str(error), error) from error
    except exceptions.RedisError as error:
        raise StoreUnavailable(f"{server}: {error}") from error


def _no_connection(server: str, error: Exception) -> Exception:
    if isinstance(error.__context__, ssl.SSLCertVerificationError):
        return untrusted(server, error.__context__)
    if (verdict := client_verdict(error)) is not None:
        return SettingError(f"{server}: {verdict}")
    return StoreUnavailable(f"{server} does not answer: {_in_words(error)}{_hint(server, error)}")


def _in_words(error: Exception) -> str:
    """What a person who never saw the driver makes something of."""
    cause = error.__cause__ or error.__context__ or error
    if isinstance(cause, ConnectionRefusedError):
        return "nothing listens there; is Redis running, and the port right?"
    if isinstance(cause, socket.gaierror):
        return f"the host name is not known ({cause.strerror})"
    return str(error)


def _hint(server: str, error: Exception) -> str:
    """With TLS 1.3 a server finds a certificate missing after the handshake; its alert may go unheard."""
    broken_off = "EOF" in str(error) or "reset" in str(error) or "Broken pipe" in str(error)
    if not server.startswith("rediss:") or not broken_off:
        return ""
    return " (one that wants a certificate of its clients breaks off so: --store-tls-cert)"


def _refusal(server: str, text: str, error: exceptions.ResponseError) -> Exception:
    # redis-py cuts the leading word off where it has a class of its own for it; a script's errors keep it.
    if any(word in text for word in _DENIED):
        return AccessDenied(f"{server} refused access: {text} ({_ASK_DOCTOR})")
    if isinstance(error, exceptions.OutOfMemoryError) or "OOM" in text.split():
        return StoreUnavailable(
            f"{server} is full ({text}); raise its maxmemory or keep fewer model versions"
        )
    known = isinstance(error, (exceptions.ReadOnlyError, exceptions.ClusterDownError))
    if known or any(word in text.split() for word in _UNWILLING):
        return StoreUnavailable(f"{server} cannot write now: {text}")
    return SettingError(f"{server} cannot be used as a store: {text}")
