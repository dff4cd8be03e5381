"""Where the broker is, and as whom to go there. No text made here holds the password."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from broker_fl.errors import SettingError
from broker_fl.security.certificates import common_name
from broker_fl.security.proxy import Proxy, proxy_for
from broker_fl.security.tls import Security, check_plaintext, client_context, is_loopback

_PORTS = {"amqp": 5672, "amqps": 5671}
_FORM = (
    "amqp[s]://user:password@host[:port]/vhost, "
    "special characters in user, password and vhost percent-encoded (/ is %2F, @ is %40)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A broker URL, taken apart."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    vhost: str
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    external: bool = False
    """The account is the one that the client's certificate names (SASL EXTERNAL); ``user`` is what the URL
    says it is, or the certificate, or empty.
    """
    proxy: Proxy | None = None

    def __str__(self) -> str:
        scheme = "amqps" if self.tls else "amqp"
        account = f"{self.user}@" if self.user else ""
        way = f" through proxy {self.proxy}" if self.proxy else ""
        return f"{scheme}://{account}{self.place} (virtual host {self.vhost!r}){way}"

    @property
    def place(self) -> str:
        """Host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(url: str, security: Security | None = None) -> Address:
    """Take a broker URL apart, load the TLS files, and find the way.

    Raises:
        SettingError: the URL or a file is not usable; or the broker is on another machine and the URL says to
            go there without TLS, which ``insecure_plaintext`` does not allow.
    """
    parts, security = _split(url), security or Security()
    is_tls = parts.scheme == "amqps"
    if security.has_files and not is_tls:
        raise SettingError("broker URL: TLS files are given, so it must begin with amqps://")
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    context = client_context(security) if is_tls else None  # says which file cannot be used
    external = security.cert_file is not None and parts.password is None
    address = Address(
        host=host,
        port=port,
        user=unquote(parts.username or (common_name(security) if external else "guest")),
        password=unquote(parts.password if parts.password is not None else "guest"),
        vhost=unquote(parts.path[1:]) or "/",
        tls=context,
        external=external,
        proxy=proxy_for(host, port, security.proxy, is_tls=is_tls),
    )
    if not is_tls:
        # Behind a proxy on another machine, "localhost" is that machine.
        first = host if address.proxy is None or is_loopback(address.proxy.host) else address.proxy.host
        check_plaintext(str(address), first, security, secure_scheme="amqps")
    return address


def _split(url: str) -> SplitResult:
    # Nothing of the URL is repeated: a password with a bare / or @ ends up where other parts are expected.
    try:
        parts = urlsplit(url)
        surplus = parts.query or parts.fragment or "/" in parts.path[1:]
        if parts.scheme in _PORTS and parts.hostname and parts.port != 0 and not surplus:
            return parts
    except ValueError:  # no number as port, or half an IPv6 address
        pass
    raise SettingError(f"broker URL: it must look like {_FORM}")
