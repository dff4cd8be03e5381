"""Certificates in the place of passwords."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_fl.errors import AccessDenied
from broker_fl.identity.joinfile import read_join_file
from broker_fl.identity.management import ManagementApi
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.workers.servers import rabbitmq_available
from tests.servers.enrolling import Operator
from tests.servers.secured import Certificates, SecuredRabbitMQ
from tests.servers.secured import secured_rabbitmq as secured_rabbitmq_node


def test_the_lines_of_ca_server_let_in_whom_enroll_makes(
    server_root: Path, tmp_path: Path, certificates: Certificates, federation: str
) -> None:
    """As they are printed: management over HTTPS, a join file with a password, and one with a certificate."""
    if not rabbitmq_available():
        pytest.skip("needs a RabbitMQ of its own, and none is installed here (tests/servers/provide.sh)")
    ca = certificates.authority.file
    folder = server_root / "printed-rabbitmq"
    with secured_rabbitmq_node(folder, certificates, everybody_has_one=False) as server:
        node, place = server.node, f"127.0.0.1:{server.management_port}"
        api = ManagementApi(
            f"https://{place}", user=node.user, password=node.password, security=certificates.ca
        )
        with Operator(tmp_path, node.url, api, federation, shown_url=server.url()) as by:
            at = ["--management", f"https://{node.user}@{place}", "--tls-ca", str(ca)]
            shown = certificates.of(f"{federation}.learner.b")
            login = ["--certificate", str(shown.cert_file), "--key", str(shown.key_file)]
            for name, more in (("a", []), ("b", login)):
                out = tmp_path / f"{name}.join"
                by.run("enroll", name, "--out", str(out), *at, *more)
                file = read_join_file(out)
                assert (file.password is None) is bool(more)
                RabbitMQTransport(file.url, security=file.security(out)).close()


def test_a_certificate_is_the_login_of_an_account_without_a_password(
    tmp_path: Path, secured_rabbitmq: SecuredRabbitMQ, federation: str
) -> None:
    server, user = secured_rabbitmq, f"{federation}.learner.hospital-a"
    node, certificates = server.node, server.certificates
    api = ManagementApi(node.management_url, user=node.user, password=node.password)
    shown = certificates.of(user)
    with Operator(tmp_path, node.url, api, federation, shown_url=server.url()) as by:
        out, ca = tmp_path / "a.join", str(certificates.authority.file)
        by.run(
            *("enroll", "hospital-a", "--out", str(out), "--tls-ca", ca),
            *("--certificate", str(shown.cert_file), "--key", str(shown.key_file)),
        )
        told = by.run("rotate", "hospital-a", "--out", str(out), "--force", ok=False)
        assert "has no password to be changed: give --certificate" in told.stderr
        told = by.run(
            "enroll", "b", "--out", str(out), "--force", "--certificate", str(shown.cert_file), ok=False
        )
        assert f"is of '{user}', and the account is" in told.stderr
        by.run(
            *("rotate", "hospital-a", "--out", str(out), "--force", "--tls-ca", ca),
            *("--certificate", str(shown.cert_file), "--key", str(shown.key_file)),
        )
        assert not by.api.has_password(user)
        file = read_join_file(out)
        assert file.password is None
        transport = RabbitMQTransport(file.url, security=file.security(out))
        transport.consume(by.topology.mailbox("hospital-a"), print, prefetch=1, exclusive=True)
        assert transport.user == user
        transport.close()
        for password in ("", "guess"):
            with pytest.raises(AccessDenied):
                RabbitMQTransport(f"amqp://{user}:{password}@127.0.0.1:{node.port}/")
