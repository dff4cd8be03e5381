"""How long certificates hold: our own, an authority's, and what a server shows."""

from __future__ import annotations

import importlib.util
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker_fl.errors import SettingError
from broker_fl.security.tls import Security


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """One certificate."""

    whose: str
    """``our certificate``, ``the CA``, ``the server's certificate``."""
    name: str
    """Its common name; empty if it has none."""
    until_s: float | None
    """Unix time; None: it cannot be told here, for want of the package cryptography."""


def of_files(security: Security) -> Iterator[Validity]:
    """The certificates in files that are shown or trusted; the system's authorities are not listed.

    The files have been loaded before, so that they are readable.
    """
    if security.cert_file is not None:
        yield _own(Path(security.cert_file))
    if security.ca_file is not None or security.ca_text is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(security.ca_file, cadata=security.ca_text)
        for certificate in context.get_ca_certs():
            yield of_decoded("the CA", certificate)


def of_decoded(whose: str, certificate: Mapping[str, Any]) -> Validity:
    """What ``SSLSocket.getpeercert`` gives."""
    names = dict(pair for names in certificate.get("subject", ()) for pair in names)
    until = ssl.cert_time_to_seconds(certificate["notAfter"]) if "notAfter" in certificate else None
    return Validity(whose=whose, name=str(names.get("commonName", "")), until_s=until)


def common_name(security: Security) -> str:
    """The name in our certificate; empty if it has none, or cannot be read for want of cryptography."""
    found = _own(Path(security.cert_file)) if security.cert_file is not None else None
    return found.name if found is not None and found.until_s is not None else ""


def _own(file: Path) -> Validity:
    whose = "our certificate"
    if importlib.util.find_spec("cryptography") is None:
        return Validity(whose=whose, name=str(file), until_s=None)
    from cryptography import x509  # an extra, and the standard library cannot read a certificate of ours

    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    until_s = certificate.not_valid_after_utc.timestamp()
    return Validity(whose=whose, name=str(names[0].value) if names else "", until_s=until_s)


# ---------------------------------------------------------------- a certificate for a login

_MAX_COMMON_NAME = 64
"""Characters (X.520, ``ub-common-name``)."""


def check_login(user: str, certificate: Path, key: Path | None) -> None:
    """See that a certificate can be the login of a broker's user, before somebody else finds out.

    The key is looked at only if it is on this machine. Without the package cryptography, names and dates are
    not looked at.

    Raises:
        SettingError: it cannot; the message says why.
    """
    if len(user) > _MAX_COMMON_NAME:
        raise SettingError(
            f"the account {user!r} has {len(user)} characters, and the name in a certificate "
            f"at most {_MAX_COMMON_NAME}: choose a shorter name"
        )
    text, context = _text(certificate), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=text)
        found = _own(certificate)
    except (ssl.SSLError, ValueError):
        raise SettingError(f"{certificate} is no certificate (PEM)") from None
    if found.until_s is not None and found.name != user:
        raise SettingError(
            f"the certificate {certificate} is of {found.name!r}, and the account is {user!r}: the broker "
            "takes the account from the certificate's common name"
        )
    if found.until_s is not None and found.until_s < time.time():
        raise SettingError(f"the certificate {certificate} is no longer valid")
    if key is None and "PRIVATE KEY" not in text:
        raise SettingError(f"the certificate {certificate} needs its key: say where the site has it (--key)")
    if key is not None and os.access(key, os.R_OK):
        _check_key(context, certificate, key)


def _text(certificate: Path) -> str:
    try:
        return certificate.read_text(encoding="ascii")
    except OSError as error:
        raise SettingError(
            f"the certificate {certificate} cannot be read ({error.strerror}): it is looked at before an "
            "account is made for it"
        ) from error
    except UnicodeDecodeError:
        raise SettingError(f"{certificate} is no certificate (PEM)") from None


def _check_key(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise SettingError(f"{key} is not the key of the certificate {certificate} ({error})") from None
