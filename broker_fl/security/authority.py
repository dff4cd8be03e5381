"""A private certificate authority in a folder, for those who have none (X.509 v3, RFC 5280).

==================  ======================================================================================
``ca.pem``          the authority's certificate: what everybody is given (``--tls-ca``)
``ca-key.pem``      its key: whoever has it can be everybody; it need not be on any server
``NAME.pem``        a certificate that it issued, and ``NAME-key.pem`` its key
==================  ======================================================================================

Keys are ECDSA on P-256, which every TLS since 1.2 takes; each is readable by its owner only. Nothing is
ever written over. Serial numbers are random (159 bits), so that no list of them has to be kept.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker_fl.errors import SettingError

CA_DAYS, LEAF_DAYS = 3650, 397
_SLACK = dt.timedelta(hours=1)
"""Before now, for machines whose clocks are behind."""
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(\*\.)?({_LABEL}\.)*{_LABEL}")
_MIN_RSA_BITS = 2048
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class Issued:
    """Files of a certificate and of its key."""

    certificate: Path
    key: Path


class Authority:
    """The authority in a folder."""

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        """See ``create`` and ``open``."""
        self.folder = folder
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, folder: str | Path, name: str = "broker_fl private CA", days: int = CA_DAYS) -> Authority:
        """A new one; ``name`` is what people see.

        Raises:
            SettingError: there is one in the folder already, or it cannot be written.
        """
        folder = Path(folder)
        issued = _files(folder, "ca")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(name)
        builder = (
            _builder(subject, subject, key.public_key(), _not_after(days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
        )
        certificate = builder.sign(key, hashes.SHA256())
        _make_folder(folder)
        _write_pair(issued, certificate, key)
        return cls(folder, certificate, key)

    @classmethod
    def open(cls, folder: str | Path) -> Authority:
        """The one that is there.

        Raises:
            SettingError: there is none, or its files are not usable.
        """
        folder = Path(folder)
        issued = Issued(folder / "ca.pem", folder / "ca-key.pem")
        try:
            certificate = x509.load_pem_x509_certificate(issued.certificate.read_bytes())
            key = serialization.load_pem_private_key(issued.key.read_bytes(), password=None)
        except OSError as error:
            raise SettingError(
                f"no certificate authority in {folder} ({error.strerror}: {error.filename}); "
                "`broker-fl ca init` makes one"
            ) from error
        except (ValueError, TypeError) as error:
            raise SettingError(f"the certificate authority in {folder} is not usable: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise SettingError(f"{issued.key} is not the key of {issued.certificate}")
        return cls(folder, certificate, key)

    @property
    def file(self) -> Path:
        """Its certificate."""
        return self.folder / "ca.pem"

    def server(self, hosts: Sequence[str], days: int = LEAF_DAYS) -> Issued:
        """A certificate for a server that is reached by these names and addresses; files named for the first.

        Raises:
            SettingError: no host, one that is none, or the files are there already.
        """
        if not hosts:
            raise SettingError("a server's certificate needs the host names and addresses it is reached by")
        names = [_general_name(host) for host in hosts]
        issued = _files(self.folder, "server-" + re.sub(r"[^A-Za-z0-9.-]", "_", hosts[0]))
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._leaf(_subject(hosts[0][:64]), key.public_key(), days, ExtendedKeyUsageOID.SERVER_AUTH)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        _write_pair(issued, self._sign(builder), key)
        return issued

    def client(self, name: str, days: int = LEAF_DAYS) -> Issued:
        """A certificate for a client, whose common name is that of its account at the broker.

        Raises:
            SettingError: a name that is not allowed, or the files are there already.
        """
        issued = _files(self.folder, _checked(name))
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._leaf(_subject(name), key.public_key(), days, ExtendedKeyUsageOID.CLIENT_AUTH)
        _write_pair(issued, self._sign(builder), key)
        return issued

    def certify(self, name: str, request: bytes, days: int = LEAF_DAYS) -> bytes:
        """A client's certificate (PEM) for a key that never leaves its owner.

        ``request`` is a PKCS #10 request (PEM), of which the key counts and nothing else.

        Raises:
            SettingError: a name that is not allowed, no request, one not signed with its own key, or a key
                that is neither ECDSA nor Ed25519 nor RSA of 2,048 bits or more.
        """
        try:
            asked = x509.load_pem_x509_csr(request)
            key, is_signed = asked.public_key(), asked.is_signature_valid
        except (ValueError, TypeError) as error:
            # What cryptography says of it is an address in its documentation.
            raise SettingError(
                "this is no usable certificate request, which is PEM that begins with -----BEGIN CERTIFICATE "
                "REQUEST-----, as openssl req -new makes it"
            ) from error
        if not is_signed:
            raise SettingError("the certificate request is not signed with its own key")
        if not isinstance(key, PublicKey) or (
            isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS
        ):
            raise SettingError("the key of a certificate request is ECDSA, Ed25519, or RSA of 2,048 bits")
        builder = self._leaf(_subject(_checked(name)), key, days, ExtendedKeyUsageOID.CLIENT_AUTH)
        return self._sign(builder).public_bytes(serialization.Encoding.PEM)

    def certify_to_file(self, name: str, request: bytes, days: int = LEAF_DAYS) -> Path:
        """As ``certify``, into ``NAME.pem``.

        Raises:
            SettingError: as ``certify``; or the file is there already.
        """
        path = _files(self.folder, _checked(name)).certificate
        _write_new(path, self.certify(name, request, days), 0o644)
        return path

    def _leaf(
        self, subject: x509.Name, key: PublicKey, days: int, usage: x509.ObjectIdentifier
    ) -> x509.CertificateBuilder:
        until = min(_not_after(days), self._certificate.not_valid_after_utc)
        issuer = self._certificate.subject
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            _builder(subject, issuer, key, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(identifier, critical=False)
        )

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return builder.sign(self._key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, until: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.now(dt.UTC) - _SLACK)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _not_after(days: int) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=days)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    except ValueError as error:
        raise SettingError(f"{name!r} cannot be a common name: {error}") from error


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > 64 or name == "ca":
        raise SettingError(
            f"{name!r} must be 1 to 64 letters, digits, '-' or '_', with dots between them, and not 'ca'"
        )
    return name


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if not _HOST.fullmatch(host) or len(host) > 253:
        raise SettingError(f"{host!r} is neither a host name nor an IP address")
    return x509.DNSName(host)


# ---------------------------------------------------------------- files


def _files(folder: Path, stem: str) -> Issued:
    """Where a certificate and its key go.

    Raises:
        SettingError: one of them is there.
    """
    issued = Issued(folder / f"{stem}.pem", folder / f"{stem}-key.pem")
    for path in (issued.certificate, issued.key):
        if os.path.lexists(path):
            raise SettingError(f"{path} is there already; nothing is written over: move it away first")
    return issued


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"{folder} cannot be made: {error.strerror}") from error


def _write_pair(issued: Issued, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write_new(issued.key, secret, 0o600)
    try:
        _write_new(issued.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    except SettingError:
        issued.key.unlink()
        raise


def serial(certificate: Path) -> str:
    """The number of a certificate (PEM), in hexadecimal digits, as openssl shows it."""
    return f"{x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number:X}"


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise SettingError(f"{path} cannot be written: {error.strerror}") from error
