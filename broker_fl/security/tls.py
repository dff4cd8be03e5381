"""TLS with verified certificates, and the refusal to do without it."""

from __future__ import annotations

import ipaddress
import logging
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from broker_fl.errors import SettingError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How a server is reached, besides its URL. Files are PEM."""

    ca_file: str | Path | None = None
    """Authorities that the server's certificate may be from; without it (and ``ca_text``) the system's."""
    ca_text: str | None = None
    """The same as text."""
    cert_file: str | Path | None = None
    """Shown to the server. With it, and without a password in the broker's URL, the broker takes the account
    from the certificate (SASL EXTERNAL).
    """
    key_file: str | Path | None = None
    proxy: str | None = field(default=None, repr=False)
    """``http://[user:password@]host:port`` through which the broker is reached; ``none`` for no proxy,
    whatever the environment says. None: what ``HTTPS_PROXY`` and ``NO_PROXY`` say, for ``amqps``.
    """
    insecure_plaintext: bool = False
    """Go to servers beyond this machine without TLS: whoever is on the way reads passwords and models, and
    can change them.
    """

    @property
    def has_files(self) -> bool:
        """Whether it says anything that only TLS can do."""
        return any((self.ca_file, self.ca_text, self.cert_file, self.key_file))


def is_loopback(host: str) -> bool:
    """Whether the way to this host does not leave the machine; names other than ``localhost`` may lead
    anywhere.
    """
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def check_plaintext(server: str, host: str, security: Security, *, secure_scheme: str) -> None:
    """Refuse a connection without TLS that leaves the machine, unless it was asked for in so many words.

    Raises:
        SettingError: it would, and it was not.
    """
    if is_loopback(host):
        return
    if not security.insecure_plaintext:
        raise SettingError(
            f"{server}: without TLS everybody on the way could read passwords and change models; "
            f"use {secure_scheme}://, or say --insecure-plaintext if this network is yours alone"
        )
    log.warning("%s: the connection is not encrypted (insecure_plaintext)", server)


def client_context(security: Security) -> ssl.SSLContext:
    """A context that verifies the server's certificate and its name; TLS 1.2 or newer.

    Raises:
        SettingError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=security.ca_file, cadata=security.ca_text)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise SettingError(f"TLS: cannot use the CA file {str(security.ca_file)!r}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if security.cert_file is None:
        if security.key_file is not None:
            raise SettingError("TLS: a key file is given without its certificate file")
        return context
    try:
        # An empty password instead of a prompt: a daemon has no terminal.
        context.load_cert_chain(security.cert_file, security.key_file, password="")
    except (OSError, ssl.SSLError) as error:
        raise SettingError(
            f"TLS: cannot use certificate {str(security.cert_file)!r} with key "
            f"{str(security.key_file)!r}: {error}"
        ) from error
    return context


def untrusted(server: str, error: ssl.SSLCertVerificationError) -> SettingError:
    """What is wrong with a server's certificate, and what to do about it."""
    return SettingError(f"{server}: {_verdict(error)}")


_EXPIRED, _NOT_YET, _OTHER_HOST, _OTHER_ADDRESS = 10, 9, 62, 64
"""OpenSSL's ``X509_V_ERR_…``."""


def _verdict(error: ssl.SSLCertVerificationError) -> str:
    what = error.verify_message
    if error.verify_code == _EXPIRED:
        return (
            f"the server's certificate (or its CA's) is no longer valid ({what}); an operator must renew it"
        )
    if error.verify_code == _NOT_YET:
        return f"the server's certificate is not valid yet ({what}); is a clock wrong?"
    if error.verify_code in (_OTHER_HOST, _OTHER_ADDRESS):
        return (
            f"the server's certificate is for another host name ({what}); use the name that stands in it, or "
            "have one issued for this name"
        )
    return f"the server's certificate is not trusted ({what}); give the CA that signed it"


_ALERTS = {
    "CERTIFICATE_REQUIRED": "it wants a certificate of its clients: give certificate and key file",
    "CERTIFICATE_EXPIRED": "our certificate has expired; have it issued anew",
    "CERTIFICATE_REVOKED": "our certificate has been revoked",
    "UNKNOWN_CA": "it does not trust the CA of our certificate",
    "BAD_CERTIFICATE": "it does not take our certificate",
    "UNSUPPORTED_CERTIFICATE": "our certificate is not one for clients",
    "CERTIFICATE_UNKNOWN": "it does not take our certificate",
    "HANDSHAKE_FAILURE": "it agrees to no TLS with us: it may want a certificate, or an older TLS than 1.2",
}
"""TLS alerts (RFC 8446, 6.2), as OpenSSL names them in its errors."""


def client_verdict(error: BaseException) -> str | None:
    """What a server has said against our certificate; None if the error is another one."""
    text = str(error).upper().replace(" ", "_")
    if "ALERT" not in text:
        return None
    return next((words for alert, words in _ALERTS.items() if alert in text), None)
