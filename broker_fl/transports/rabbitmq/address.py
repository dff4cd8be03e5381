"""Where the broker is, and as whom to go there. No text made here holds the password."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from broker_fl.errors import SettingError

_PORTS = {"amqp": 5672, "amqps": 5671}
_FORM = (
    "amqp[s]://user:password@host[:port]/vhost, "
    "special characters in user, password and vhost percent-encoded (/ is %2F, @ is %40)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files for ``amqps``. Without ``ca_file`` the system's authorities are trusted."""

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A broker URL, taken apart."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    vhost: str
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __str__(self) -> str:
        scheme = "amqps" if self.tls else "amqp"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{self.user}@{host}:{self.port} (virtual host {self.vhost!r})"


def parse_address(url: str, tls: TlsFiles | None = None) -> Address:
    """Take a broker URL apart and load the TLS files.

    Raises:
        SettingError: the URL or a file is not usable.
    """
    parts = _split(url)
    if tls is not None and parts.scheme != "amqps":
        raise SettingError("broker URL: TLS files are given, so it must begin with amqps://")
    vhost = unquote(parts.path[1:])
    return Address(
        host=parts.hostname or "",
        port=parts.port or _PORTS[parts.scheme],
        user=unquote(parts.username or "guest"),
        password=unquote(parts.password if parts.password is not None else "guest"),
        vhost=vhost or "/",
        tls=_tls_context(tls or TlsFiles()) if parts.scheme == "amqps" else None,
    )


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


def _tls_context(files: TlsFiles) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=files.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"TLS: cannot use the CA file {str(files.ca_file)!r}: {error}") from error
    if files.cert_file is None:
        if files.key_file is not None:
            raise SettingError("TLS: a key file is given without its certificate file")
        return context
    try:
        # An empty password instead of a prompt: a daemon has no terminal.
        context.load_cert_chain(files.cert_file, files.key_file, password="")
    except (OSError, ssl.SSLError) as error:
        raise SettingError(
            f"TLS: cannot use certificate {str(files.cert_file)!r} with key {str(files.key_file)!r}: {error}"
        ) from error
    return context
