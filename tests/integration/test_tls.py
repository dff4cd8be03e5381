"""TLS to a real RabbitMQ and a real Redis, certificates as logins, and what is said when they are wrong."""

from __future__ import annotations

import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker_fl.doctor import check_redis
from broker_fl.doctor_broker import check_broker
from broker_fl.errors import AccessDenied, SettingError, StoreUnavailable
from broker_fl.identity.management import ManagementApi
from broker_fl.security import Security
from broker_fl.security.authority import Authority
from broker_fl.security.certificates import check_login
from broker_fl.stores.redis import RedisStore
from broker_fl.topology import Queue
from broker_fl.transports.rabbitmq import RabbitMQTransport
from tests.servers.secured import Certificates, SecuredRabbitMQ, secured_redis

Connect = Callable[..., RabbitMQTransport]


@pytest.fixture
def connect(secured_rabbitmq: SecuredRabbitMQ) -> Iterator[Connect]:
    """Makes transports, and closes them."""
    opened: list[RabbitMQTransport] = []

    def connect(url: str, security: Security) -> RabbitMQTransport:
        opened.append(RabbitMQTransport(url, security=security, connect_timeout_s=30))
        return opened[-1]

    yield connect
    for transport in opened:
        transport.close()


# ---------------------------------------------------------------- RabbitMQ


def test_large_bodies_pass_through_tls(secured_rabbitmq: SecuredRabbitMQ, connect: Connect) -> None:
    server = secured_rabbitmq
    transport = connect(server.url(server.administrator), server.certificates.of("anybody"))
    transport.declare([Queue(name="q")])
    bodies = [bytes([65 + index]) * 2_000_000 for index in range(3)]
    for body in bodies:
        transport.publish("", ["q"], body)
    found: list[bytes] = []
    transport.flush(60)
    done = threading.Event()

    def sink(delivery: Any) -> None:
        found.append(delivery.body)
        delivery.ack()
        if len(found) == len(bodies):
            done.set()

    transport.consume("q", sink, prefetch=5)
    assert done.wait(60)
    assert found == bodies
    transport.delete_queue("q")


def test_a_certificate_is_a_login_until_its_user_is_revoked(
    secured_rabbitmq: SecuredRabbitMQ, connect: Connect
) -> None:
    server, hospital = secured_rabbitmq, secured_rabbitmq.certificates.of("hospital-a")
    with pytest.raises(AccessDenied, match="no user of the certificate's name"):
        connect(server.url("hospital-a"), hospital)
    server.node.control("add_user", "hospital-a", "nobody-knows-this-one")
    server.node.control("set_permissions", "hospital-a", ".*", ".*", ".*")
    for account in ("hospital-a", ""):
        connect(server.url(account), hospital).declare([Queue(name="of-hospital-a")])
    users = server.node.control("list_connections", "user")
    assert users.split().count("hospital-a") >= 4  # two of each transport
    server.node.control("delete_user", "hospital-a")
    with pytest.raises(AccessDenied, match="no user of the certificate's name"):
        connect(server.url(), hospital)


def test_a_password_still_counts_where_one_is_given(
    secured_rabbitmq: SecuredRabbitMQ, connect: Connect
) -> None:
    with pytest.raises(AccessDenied, match="user or password is wrong") as caught:
        connect(secured_rabbitmq.url("hospital-a:s3cret"), secured_rabbitmq.certificates.of("hospital-a"))
    assert "s3cret" not in str(caught.value)


def test_a_wrong_authority_a_wrong_name_and_no_certificate_are_each_named(
    secured_rabbitmq: SecuredRabbitMQ, connect: Connect, tmp_path: Path
) -> None:
    server, mine = secured_rabbitmq, secured_rabbitmq.certificates.of("anybody")
    other = Authority.create(tmp_path / "ca", "another CA")
    stranger = other.client("anybody")
    cases: list[tuple[str, Security, str]] = [
        (server.url(), replace(mine, ca_file=None), "certificate is not trusted.*give the CA"),
        (server.url(), replace(mine, ca_file=other.file), "certificate is not trusted.*give the CA"),
        (server.url(host="localhost"), mine, "for another host name.*localhost"),
        (server.url("a:b"), server.certificates.ca, "wants a certificate"),
        (
            server.url(),
            replace(mine, cert_file=stranger.certificate, key_file=stranger.key),
            "does not trust the CA of our certificate|does not take our certificate",
        ),
        (server.node.url.replace("amqp:", "amqps:"), mine, "no TLS on this port"),
    ]
    for url, security, words in cases:
        with pytest.raises(SettingError, match=words):
            connect(url, security)


def test_plain_http_to_the_management_interfaces_tls_is_named(secured_rabbitmq: SecuredRabbitMQ) -> None:
    api = ManagementApi(
        f"http://127.0.0.1:{secured_rabbitmq.management_port}", user="anybody", password="guess"
    )
    with pytest.raises(SettingError, match="does not speak HTTP; if the port is one of TLS, give https://"):
        api.users()


def test_expired_certificates_are_named_on_both_sides(
    secured_rabbitmq: SecuredRabbitMQ, connect: Connect, certificates: Certificates
) -> None:
    server, mine = secured_rabbitmq, certificates.of("anybody")
    with certificates.yesterday():
        old = certificates.authority.client("too-late", days=-1)
        old_server = certificates.authority.server(["old", "127.0.0.1"], days=-1)
    with pytest.raises(SettingError, match=r"our certificate has expired|does not take our certificate"):
        connect(server.url(), replace(mine, cert_file=old.certificate, key_file=old.key))
    with server.showing(old_server), pytest.raises(SettingError, match=r"certificate .*no longer valid"):
        connect(server.url(server.administrator), mine)


def test_doctor_tells_how_long_certificates_hold(
    secured_rabbitmq: SecuredRabbitMQ, certificates: Certificates
) -> None:
    server = secured_rabbitmq
    soon = certificates.authority.client("soon", days=9)
    security = replace(certificates.ca, cert_file=soon.certificate, key_file=soon.key)
    findings = check_broker(
        server.url(server.administrator), federation="f", role="driver", security=security
    )
    told = {one.what: one.level for one in findings if "holds until" in one.what}
    assert [level for what, level in told.items() if what.startswith("our certificate 'soon'")] == ["warning"]
    assert any(what.startswith("the CA 'broker_fl private CA'") for what in told)
    (shown,) = (what for what in told if what.startswith("the server's certificate '127.0.0.1'"))
    assert "39" in shown.rsplit(",", 1)[1]  # 396 or 397 days


# ---------------------------------------------------------------- Redis


def test_a_store_is_reached_over_tls_by_a_user_of_few_rights(
    server_root: Path, certificates: Certificates, tmp_path: Path
) -> None:
    with secured_redis(server_root / "secured-redis", certificates) as url:
        mine = certificates.of("controller")
        store = RedisStore(url, federation="f", security=mine)
        epoch = store.acquire_lease("me", 30)
        assert epoch is not None
        store.save_job("job", b"state", epoch=epoch)
        assert store.jobs() == {"job": b"state"}
        store.close()
        findings = check_redis(url, federation="f", security=mine)
        assert {one.level for one in findings} == {"ok"}
        assert sum("holds until" in one.what for one in findings) == 3
        other = Authority.create(tmp_path / "ca")
        refusals: list[tuple[str, Security, type[Exception] | tuple[type[Exception], ...], str]] = [
            (url, replace(mine, ca_file=other.file), SettingError, "certificate is not trusted"),
            (url.replace("127.0.0.1", "localhost"), mine, SettingError, "for another host name"),
            (url, certificates.ca, (SettingError, StoreUnavailable), "wants a certificate"),
            (url.replace("p%2Fw", "wr0ng"), mine, AccessDenied, "refused access"),
            (url.replace("fl:", "gone:"), mine, AccessDenied, "refused access"),
            (url + "?ssl_cert_reqs=none", mine, SettingError, "TLS is not set in the URL"),
            (url.replace("rediss:", "redis:"), mine, SettingError, "begin with rediss"),
            (url.replace("rediss:", "redis:"), Security(), StoreUnavailable, "does not answer"),
        ]
        for place, security, error, words in refusals:
            with pytest.raises(error, match=words) as caught:
                RedisStore(place, federation="f", security=security)
            assert "p%2Fw" not in str(caught.value)
            assert "wr0ng" not in str(caught.value)


def test_an_expired_certificate_of_redis_is_named(server_root: Path, certificates: Certificates) -> None:
    with certificates.yesterday():
        old = certificates.authority.server(["old-redis", "127.0.0.1"], days=-1)
    with (
        secured_redis(server_root / "expired-redis", certificates, old) as url,
        pytest.raises(SettingError, match="no longer valid"),
    ):
        RedisStore(url, federation="f", security=certificates.of("controller"))


def test_a_redis_on_another_machine_is_not_asked_in_plain_text() -> None:
    with pytest.raises(SettingError, match=r"rediss.*--insecure-plaintext") as caught:
        RedisStore("redis://:s3cret@redis.example", federation="f")
    assert "s3cret" not in str(caught.value)


# ---------------------------------------------------------------- the authority


def test_certificates_are_what_they_should_be(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca")
    server, client = authority.server(["broker.example", "10.0.0.1", "::1"]), authority.client("hospital-a")
    for issued, purpose in ((server, "sslserver"), (client, "sslclient")):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(authority.file)]
        subprocess.run([*command, str(issued.certificate)], check=True, capture_output=True)
        assert stat.S_IMODE(issued.key.stat().st_mode) == 0o600
    assert stat.S_IMODE((authority.folder / "ca-key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(authority.folder.stat().st_mode) == 0o700
    own = x509.load_pem_x509_certificate(authority.file.read_bytes())
    constraints = own.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    usage = own.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.digital_signature) == (True, False)
    shown = x509.load_pem_x509_certificate(server.certificate.read_bytes())
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    assert (
        shown.serial_number != x509.load_pem_x509_certificate(client.certificate.read_bytes()).serial_number
    )


def test_nothing_is_written_over_and_nothing_is_half_done(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca")
    authority.client("a")
    before = {path.name: path.read_bytes() for path in authority.folder.iterdir()}
    for again in (
        lambda: Authority.create(tmp_path / "ca"),
        lambda: authority.client("a"),
        lambda: authority.client("../a"),
        lambda: authority.client("ca"),
        lambda: authority.server(["no host"]),
        lambda: authority.server([]),
        lambda: authority.certify("a", b"no request"),
        lambda: Authority.open(tmp_path / "elsewhere"),
    ):
        with pytest.raises(SettingError):
            again()
    assert {path.name: path.read_bytes() for path in authority.folder.iterdir()} == before


def test_a_request_is_certified_without_its_key_and_says_nothing_itself(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca")
    key = ec.generate_private_key(ec.SECP256R1())
    pushy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody-else")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    made = x509.load_pem_x509_certificate(authority.certify("hospital-a", pushy))
    assert made.subject.rfc4514_string() == "CN=hospital-a"
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert made.public_key() == key.public_key()
    assert Authority.open(tmp_path / "ca").file == authority.file


def test_a_certificate_that_is_no_login_of_the_account_is_refused_before_it_is_made(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca")
    mine, other = authority.client("F.learner.a"), authority.client("F.learner.b")
    check_login("F.learner.a", mine.certificate, mine.key)
    check_login("F.learner.a", mine.certificate, Path("of/the/site.key"))
    together = tmp_path / "together.pem"
    together.write_bytes(mine.certificate.read_bytes() + mine.key.read_bytes())
    check_login("F.learner.a", together, None)
    text = tmp_path / "app.py"
    text.write_text("nothing", encoding="utf-8")
    cases: list[tuple[Path, Path | None, str]] = [
        (tmp_path / "nope.pem", mine.key, "nope.pem cannot be read"),
        (text, mine.key, "app.py is no certificate"),
        (other.certificate, other.key, "is of 'F.learner.b', and the account is 'F.learner.a'"),
        (mine.certificate, other.key, "F.learner.b-key.pem is not the key"),
        (mine.certificate, None, "needs its key"),
    ]
    for certificate, key, words in cases:
        with pytest.raises(SettingError, match=words):
            check_login("F.learner.a", certificate, key)
