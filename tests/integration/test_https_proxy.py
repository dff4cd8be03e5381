"""A learner as behind a hospital's firewall: by the proxy of ``HTTPS_PROXY`` only, and to port 443 only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.driver import Driver
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.wire.job import JobSpec, Termination
from tests.integration.daemons import APP, DEADLINE_S, Daemon, started
from tests.servers.proxies import proxy_server
from tests.servers.secured import HOST, HTTPS, NAME, SecuredRabbitMQ

ACCOUNT = "site:pr0xy-s3cret"
FEDERATION = "outbound"


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a learner's process is given; the broker's name is one that nobody but the proxy can look up."""

    folder: Path
    server: SecuredRabbitMQ
    vhost: str

    @property
    def port(self) -> int:
        return HTTPS if self.server.https else self.server.port

    def near(self) -> RabbitMQTransport:
        """A connection of somebody who needs no proxy."""
        url = self.server.url(self.server.administrator, vhost=self.vhost)
        return RabbitMQTransport(url, security=self.server.certificates.of("anybody"))

    @property
    def environment(self) -> dict[str, str]:
        url = f"amqps://{self.server.administrator}@{NAME}:{self.port}/{self.vhost}"
        return {"BROKER_FL_BROKER": url}

    def arguments(self) -> list[str]:
        files = self.server.certificates.of("anybody")
        tls = ("--tls-ca", files.ca_file, "--tls-cert", files.cert_file, "--tls-key", files.key_file)
        place = ("--federation", FEDERATION, *map(str, tls))
        return ["-v", "learner", "app.py:make_learner", "--id", "site", *place, "--connect-timeout", "1"]


@pytest.fixture
def site(tmp_path: Path, secured_rabbitmq: SecuredRabbitMQ, federation: str) -> Iterator[Site]:
    (tmp_path / "app.py").write_text(APP)
    secured_rabbitmq.node.add_vhost(federation)
    try:
        yield Site(folder=tmp_path, server=secured_rabbitmq, vhost=federation)
    finally:
        secured_rabbitmq.node.delete_vhost(federation)


def run_job(site: Site) -> None:
    """With the one learner that there is."""
    store = SQLiteStore(site.folder / "state.sqlite", federation=FEDERATION)
    transport = site.near()
    controller = Controller(transport, store, ControllerSettings(federation=FEDERATION, heartbeat_s=2.0))
    controller.start()
    try:
        assert controller.wait_active(DEADLINE_S)
        with Driver(site.near(), FEDERATION, timeout_s=DEADLINE_S) as driver:
            job = driver.submit(JobSpec(termination=Termination(rounds=2)), {"w": np.zeros(1000, np.float32)})
            assert job.wait().state == "done"
            assert np.array_equal(job.model()["w"], np.full(1000, 2.0, np.float32))
    finally:
        controller.stop()
        controller.wait(10.0)
        transport.close()
        store.close()


@pytest.mark.parametrize("account", ["", ACCOUNT], ids=["open", "with credentials"])
def test_a_learner_takes_part_through_the_proxy_of_its_environment(
    server_root: Path, site: Site, account: str
) -> None:
    hosts = {NAME: site.server.https or HOST}
    folder = server_root / f"https-proxy-{bool(account)}"
    with (
        proxy_server(folder, account=account, connect_port=site.port, hosts=hosts) as proxy,
        started(
            site.folder,
            site.environment | {"HTTPS_PROXY": proxy.url(account), "NO_PROXY": "other.test"},
        ) as start,
    ):
        learner = start("site", *site.arguments())
        run_job(site)
        assert proxy.connects() == [f"{NAME}:{site.port}"] * 2
        assert "s3cret" not in learner.said


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"HTTPS_PROXY": "PROXY", "NO_PROXY": ".hospital.test"}, "the host name is not known"),
        ({"HTTPS_PROXY": "PROXY"}, "it wants credentials"),
    ],
    ids=["NO_PROXY", "no credentials"],
)
def test_without_the_proxy_there_is_no_way(
    server_root: Path, site: Site, environment: dict[str, str], words: str
) -> None:
    """Else the tests above would show nothing."""
    hosts = {NAME: site.server.https or HOST}
    with proxy_server(server_root / "https-proxy-closed", account=ACCOUNT, hosts=hosts) as proxy:
        given = {name: value.replace("PROXY", proxy.url()) for name, value in environment.items()}
        with started(site.folder, site.environment | given) as start:
            learner: Daemon = start("site", *site.arguments())
            assert learner.process.wait(DEADLINE_S) == (2 if "credentials" in words else 3), learner.said
        assert words in learner.said
        assert bool(proxy.connects()) == ("credentials" in words)


def test_port_443_needs_no_proxy(site: Site) -> None:
    if site.server.https is None:
        pytest.skip("this user may not listen on port 443")
    url = f"amqps://{site.server.administrator}@{site.server.https}:{HTTPS}/{site.vhost}"
    transport = RabbitMQTransport(url, security=site.server.certificates.of("anybody"))
    try:
        assert transport.user == site.server.node.user
    finally:
        transport.close()
