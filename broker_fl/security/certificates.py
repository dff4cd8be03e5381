"""How long certificates hold: our own, an authority's, and what a server shows."""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
