"""A RabbitMQ and a Redis that speak TLS only to who shows a certificate, with an authority of their own."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from broker_fl.security import Security, authority
from broker_fl.security.authority import Authority, Issued
from broker_fl.workers.servers import RabbitMQNode, RedisNode
from broker_fl.workers.servers.process import free_port
from tests.servers.redis_account import documented_rules

HOST = "127.0.0.1"
"""The only address that stands in the servers' certificates, but for that of port 443."""
NAME = "broker.hospital.test"
"""Stands there, too, and nobody knows it (RFC 6761): who gets there was led by somebody who does."""
HTTPS = 443


class Certificates:
    """An authority, and files of what it issues, each name once."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.create(folder)
        self._clients: dict[str, Issued] = {}

    @property
    def ca(self) -> Security:
        """Trust it, and show nothing."""
        return Security(ca_file=self.authority.file)

    def of(self, name: str) -> Security:
        """As a client of that name."""
        if name not in self._clients:
            self._clients[name] = self.authority.client(name)
        issued = self._clients[name]
        return Security(ca_file=self.authority.file, cert_file=issued.certificate, key_file=issued.key)

    @contextlib.contextmanager
    def yesterday(self) -> Iterator[None]:
        """What is issued meanwhile with ``days=-1`` has expired."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(authority, "_SLACK", dt.timedelta(days=9))
            yield


@dataclass(frozen=True, kw_only=True)
class SecuredRabbitMQ:
    """A node of our own."""

    node: RabbitMQNode
    port: int
    management_port: int
    """Of HTTPS."""
    certificates: Certificates
    shown: Issued
    """Files of the certificate that it shows."""
    https: str | None = None
    """The address of loopback at which it also listens on port 443; None where that is not allowed."""

    def url(self, account: str = "", *, host: str = HOST, vhost: str = "/") -> str:
        """``account`` is ``user:password``, ``user`` or nothing."""
        return f"amqps://{account}{'@' if account else ''}{host}:{self.port}/{quote(vhost, safe='')}"

    @property
    def administrator(self) -> str:
        """``user:password`` of an account that may do everything."""
        return f"{self.node.user}:{self.node.password}"

    @contextlib.contextmanager
    def showing(self, other: Issued) -> Iterator[None]:
        """Show another certificate meanwhile; connections that are open do not notice."""
        mine = [(path, path.read_bytes()) for path in (self.shown.certificate, self.shown.key)]
        try:
            self.shown.certificate.write_bytes(other.certificate.read_bytes())
            self.shown.key.write_bytes(other.key.read_bytes())
            self.node.control("eval", "ssl:clear_pem_cache().")
            yield
        finally:
            for path, data in mine:
                path.write_bytes(data)
            self.node.control("eval", "ssl:clear_pem_cache().")


@contextlib.contextmanager
def secured_rabbitmq(
    directory: Path, certificates: Certificates, *, everybody_has_one: bool = True
) -> Iterator[SecuredRabbitMQ]:
    """A node with the lines of ``rabbitmq.conf`` that ``broker-fl ca server`` prints.

    With ``everybody_has_one`` who comes without a certificate is sent away, as the lines say one may do.
    """
    from broker_fl.cli.authority import rabbitmq_settings

    names = [HOST] if everybody_has_one else [directory.name, HOST]
    https = _https_address()
    names += [NAME, https] if https else [NAME]
    shown, port, management_port = certificates.authority.server(names), free_port(), free_port()
    lines = rabbitmq_settings(certificates.authority.file, shown).splitlines()
    settings = dict(line.strip().split(" = ", 1) for line in lines if not line.strip().startswith("#"))
    del settings["listeners.tcp"]  # the node is watched over its plain ports
    settings |= {"management.ssl.ip": HOST, "management.ssl.port": str(management_port)}
    if everybody_has_one:
        settings["ssl_options.fail_if_no_peer_cert"] = "true"
    settings["listeners.ssl.default"] = f"{HOST}:{port}"
    if https:
        settings["listeners.ssl.https"] = f"{https}:{HTTPS}"
    node = RabbitMQNode(
        directory, settings=settings, plugins=["rabbitmq_auth_mechanism_ssl"], management=True
    )
    try:
        node.start()
        yield SecuredRabbitMQ(
            node=node,
            port=port,
            management_port=management_port,
            certificates=certificates,
            shown=shown,
            https=https,
        )
    finally:
        node.kill()
        node.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _https_address() -> str | None:
    """One that no other node of the tests has, where this user may listen on port 443."""
    address = f"127.43.{random.randrange(256)}.{random.randrange(1, 255)}"
    with contextlib.suppress(OSError), socket.create_server((address, HTTPS)):
        return address
    return None


@contextlib.contextmanager
def secured_redis(directory: Path, certificates: Certificates, shown: Issued | None = None) -> Iterator[str]:
    """The URL of a server, without its password, while the block runs; the user is ``fl:p%2Fw``, of the
    controllers of the federation ``f``.
    """
    issued = shown or certificates.authority.server([directory.name, HOST])
    port = free_port()
    settings = {
        "tls-port": str(port),
        "tls-cert-file": str(issued.certificate),
        "tls-key-file": str(issued.key),
        "tls-ca-cert-file": str(certificates.authority.file),
        "tls-auth-clients": "yes",
        "user": " ".join(["fl on >p/w", *documented_rules("f")]),
    }
    with RedisNode(directory, settings=settings, password=True):
        yield f"rediss://fl:p%2Fw@{HOST}:{port}/0"
