"""Which HTTP proxy leads to a server, and what is said to it (``CONNECT``, RFC 9110, 9.3.6)."""

from __future__ import annotations

import base64
import re
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from broker_fl.errors import AccessDenied, BrokerFLError, BrokerUnavailable, SettingError
from broker_fl.security.tls import is_loopback

NO_PROXY = "none"
MAX_ANSWER_BYTES = 16_384
_FORM = "http://[user:password@]host:port, special characters in user and password percent-encoded"
_REFUSED = {401, 407}
_STATUS = re.compile("[0-9]{3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """An HTTP proxy. No text made of it holds the password."""

    host: str
    port: int
    user: str | None = None
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        account = f"{self.user}@" if self.user is not None else ""
        return f"http://{account}{_bracketed(self.host)}:{self.port}"

    def request(self, host: str, port: int) -> bytes:
        """What asks for a tunnel."""
        target = f"{_bracketed(host)}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self.user is not None:
            token = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            lines.append(f"Proxy-Authorization: Basic {token}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def check(self, answer: bytes, server: str) -> None:
        """Read the head of the proxy's answer; it returns if the tunnel is there.

        Raises:
            AccessDenied: the proxy wants credentials, or others.
            SettingError: it does not let anybody go there, or is no HTTP proxy.
            BrokerUnavailable: it cannot reach the server.
        """
        line = answer.split(b"\r\n", 1)[0].decode("latin-1")
        version, _, rest = line.partition(" ")
        status, _, words = rest.partition(" ")
        if not version.startswith("HTTP/1.") or not _STATUS.fullmatch(status):
            raise SettingError(f"{self}: this is not an HTTP proxy: it answers {line[:60]!r}")
        if not 200 <= int(status) < 300:
            raise self._refusal(int(status), words.strip()[:200], server)

    def _refusal(self, status: int, words: str, server: str) -> BrokerFLError:
        said = f"proxy {self} answers {status} {words!r} for {server}"
        if status in _REFUSED:
            wants = "other credentials" if self.user is not None else "credentials: http://user:password@…"
            return AccessDenied(f"{said}: it wants {wants}")
        if 400 <= status < 500:
            return SettingError(
                f"{said}: it does not let this pass; its operator can allow CONNECT to that host and port "
                "(port 443 is allowed by most)"
            )
        return BrokerUnavailable(f"{said}: it does not reach it")


def parse_proxy(url: str) -> Proxy:
    """Take a proxy's URL apart.

    Raises:
        SettingError: it is not usable. Nothing of it is repeated.
    """
    try:
        url.encode()  # bytes of the environment that are no text cannot be sent
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme == "http" and parts.hostname and parts.port != 0:
            return Proxy(
                host=parts.hostname,
                port=parts.port or 80,
                user=None if parts.username is None else unquote(parts.username),
                password=unquote(parts.password or ""),
            )
    except ValueError:  # no number as port, or half an IPv6 address
        pass
    raise SettingError(f"proxy: it must look like {_FORM}")


def proxy_for(host: str, port: int, given: str | None, *, is_tls: bool) -> Proxy | None:
    """The proxy that leads to a server: the given one, or the environment's if the connection is a TLS one.

    ``HTTPS_PROXY`` and ``NO_PROXY`` (also in lower case, which wins) are read as ``urllib`` reads them. The
    environment's proxy is never asked for the way to this machine.

    Raises:
        SettingError: its URL is not usable.
    """
    if given is not None:
        return None if given.lower() == NO_PROXY else parse_proxy(given)
    if not is_tls or is_loopback(host):
        return None
    proxies = urllib.request.getproxies()
    found = proxies.get("https")
    if not found or urllib.request.proxy_bypass(f"{_bracketed(host)}:{port}"):
        return None
    return parse_proxy(found)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
