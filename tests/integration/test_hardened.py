"""compose/hardened: a valid file that gives nothing away; its servers and daemons do their work over TLS."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from redis import Redis
from redis import exceptions as redis_errors

from broker_fl.doctor import check_redis
from broker_fl.security import Security
from broker_fl.stores.redis_client import connect
from broker_fl.topology import RedisKeys
from broker_fl.workers.servers import RabbitMQNode, rabbitmq_available
from broker_fl.workers.servers.process import free_port
from tests.integration.daemons import APP, DEADLINE_S, Daemon, started, until

ROOT = Path(__file__).parents[2]
HARDENED = ROOT / "compose" / "hardened"
FEDERATION = "demo"
BANKS = RedisKeys("banks")
"""Another federation in the same Redis."""
OURS = ("controller", "standby", "learner")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((HARDENED / "compose.yaml").read_text())
    return loaded


def test_it_is_a_valid_compose_file(compose: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "tests" / "compose" / "compose-spec.json").read_text())
    jsonschema.Draft7Validator(schema).validate(compose)


def test_every_service_may_do_little(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "cap_add" not in service, name
        assert not service.get("privileged"), name
        assert not str(service["user"]).startswith(("0", "root")), name
        assert service["pids_limit"] > 0, name
        assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys(), name
        assert service["healthcheck"]["test"], name
        assert re.search(r":\d+\.\d+\.\d+", service["image"]), name


def test_no_secret_is_in_the_file_or_an_environment(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert not re.search(
            r"pass|secret|://\S+:\S+@", json.dumps(service.get("environment", {})), re.IGNORECASE
        ), name
    for secret in compose["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    assert "compose/hardened/secrets/" in (ROOT / ".gitignore").read_text()


def test_only_amqps_is_open_to_others_and_only_the_controllers_reach_redis(compose: dict[str, Any]) -> None:
    services = compose["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == ["5671:5671"]
    assert compose["networks"]["inner"]["internal"] is True
    near = {
        name
        for name, service in services.items()
        if set(service["networks"]) & set(services["redis"]["networks"])
    }
    assert near == {"redis", "rabbitmq", "controller", "standby"}
    held = {name for name, service in services.items() if "redis-users.acl" in service.get("secrets", ())}
    assert held == {"redis"}


@dataclass
class Servers:
    """RabbitMQ and Redis with the files of the folder, paths and ports those of this machine."""

    folder: Path
    secrets: Path
    amqps_port: int
    management_port: int
    redis_port: int

    @property
    def environment(self) -> dict[str, str]:
        admin = dict(re.findall(r"(\w+) = (\S+)", (self.secrets / "rabbitmq-admin.conf").read_text()))
        return {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "BROKER_FL_BROKER": f"amqps://localhost:{self.amqps_port}/%2F",
            "BROKER_FL_FEDERATION": FEDERATION,
            "BROKER_FL_TLS_CA": str(self.secrets / "ca.pem"),
            "BROKER_FL_MANAGEMENT": f"https://admin@localhost:{self.management_port}",
            "BROKER_FL_MANAGEMENT_PASSWORD": admin["default_pass"],
        }

    def run(self, *words: str) -> None:
        done = subprocess.run(
            words,
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def here(self, text: str) -> str:
        """A text of the containers' as it is here."""
        text = text.replace("/run/secrets", str(self.secrets)).replace(
            "/opt/broker_fl/examples/digits.py", "app.py"
        )
        return text.replace("@redis:6379", f"@localhost:{self.redis_port}")


@pytest.fixture(scope="module")
def servers(server_root: Path) -> Iterator[Servers]:
    redis_server = shutil.which("redis-server")
    if not rabbitmq_available() or redis_server is None:
        pytest.skip("RabbitMQ or Redis is not installed; the servers of this run are elsewhere")
    folder = server_root / "hardened"
    folder.mkdir()
    found = Servers(folder, folder / "secrets", free_port(), free_port(), free_port())
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for _ in range(2):  # a second time it changes nothing
        subprocess.run(
            ["sh", HARDENED / "prepare.sh", found.secrets], check=True, env={**os.environ, **path}, cwd=folder
        )
    text = (HARDENED / "redis.conf").read_text().replace("tls-port 6379", f"tls-port {found.redis_port}")
    (folder / "redis.conf").write_text(found.here(text).replace("bind 0.0.0.0 -::*", "bind 127.0.0.1"))
    config = folder / "secrets" / "controller.toml"
    config.write_text(found.here(config.read_text()))
    with (folder / "redis.log").open("wb") as log:
        redis = subprocess.Popen(
            [redis_server, folder / "redis.conf", "--dir", folder], stdout=log, stderr=log
        )
    node = RabbitMQNode(folder / "node", settings=_settings(found), plugins=("rabbitmq_management",))
    try:
        node.start()
        until(lambda: redis.poll() is not None or _listens(found.redis_port))
        yield found
    finally:
        node.kill()
        node.stop()
        redis.terminate()
        redis.wait(DEADLINE_S)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), DEADLINE_S):
        return True
    return False


def _settings(found: Servers) -> dict[str, str]:
    """What the two files say; the node keeps a port without TLS, by which it is seen to be up."""
    lines = [
        *found.here((HARDENED / "rabbitmq.conf").read_text()).splitlines(),
        *(found.secrets / "rabbitmq-admin.conf").read_text().splitlines(),
    ]
    settings = {
        name: value
        for name, _, value in (line.partition(" = ") for line in lines)
        if value and name[0] != "#"
    }
    assert settings.pop("listeners.tcp") == "none"
    settings["listeners.ssl.default"] = f"127.0.0.1:{found.amqps_port}"
    settings["management.ssl.port"] = str(found.management_port)
    return settings


def test_the_file_has_each_setting_that_the_docs_give() -> None:
    lines = [line.partition(" = ") for line in (HARDENED / "rabbitmq.conf").read_text().splitlines()]
    settings = {name: value for name, _, value in lines}
    text = (HARDENED.parent.parent / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `([a-z_.]+)` \| ([^|]+) \|", text[text.index("\n## RabbitMQ\n") :], re.MULTILINE)
    rows = rows[: [name for name, _ in rows].index("max_message_size") + 1]
    assert len(rows) >= 7
    for name, value in rows:
        assert name in settings, name
        assert settings[name] == value or not value.isdigit(), name


def test_secrets_are_for_their_owners_only(servers: Servers) -> None:
    for path in servers.secrets.iterdir():
        is_public = path.suffix == ".pem" and "key" not in path.name
        assert stat.S_IMODE(path.stat().st_mode) == (0o644 if is_public else 0o600), path


def test_redis_speaks_tls_only_and_to_nobody_without_an_account(
    servers: Servers, compose: dict[str, Any]
) -> None:
    check = compose["services"]["redis"]["healthcheck"]["test"][1].replace(
        " ping", f" -p {servers.redis_port} ping"
    )
    assert subprocess.run(["sh", "-c", servers.here(check)], check=False, timeout=60).returncode == 0
    with Redis(port=servers.redis_port) as plain, pytest.raises(redis_errors.ConnectionError):
        plain.ping()
    trusted = ssl.create_default_context(cafile=servers.secrets / "ca.pem")
    with (
        socket.create_connection(("localhost", servers.redis_port), DEADLINE_S) as raw,
        trusted.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"AUTH default x\r\n")
        assert connection.recv(200).startswith(b"-WRONGPASS")


def test_the_controllers_redis_account_may_do_what_it_needs_and_nothing_else(servers: Servers) -> None:
    url = tomllib.loads((servers.secrets / "controller.toml").read_text(encoding="utf-8"))["store"]
    trusted = Security(ca_file=servers.secrets / "ca.pem")
    found = check_redis(url, federation=FEDERATION, security=trusted)
    assert not [one for one in found if one.level == "error"], "all that doctor asks for is allowed"
    client: Any = connect(url, timeout_s=DEADLINE_S, security=trusted)
    forbidden = (
        "SET other x",
        "GET other",
        f"GET {BANKS.lease}",
        f"HGETALL {BANKS.jobs}",
        f"HSET {BANKS.controller} epoch 1000000000",
        f"UNLINK {BANKS.versions('job')}",
        f"XADD {BANKS.events('audit')} * e forged",
        "EVAL return(1) 0",
        "SCRIPT FLUSH",
        "KEYS *",
        "SCAN 0",
        "FLUSHALL",
        "CONFIG GET *",
        "CONFIG SET maxmemory 1",
        "ACL LIST",
        "PUBLISH bfl:{demo}:x y",
        "SHUTDOWN NOSAVE",
    )
    try:
        for words in forbidden:
            with pytest.raises(redis_errors.NoPermissionError):
                client.execute_command(*words.split())
    finally:
        client.close()


def test_its_daemons_become_ready_with_join_files(servers: Servers, compose: dict[str, Any]) -> None:
    for name, role, file in (
        ("main", "controller", "controller.join"),
        ("site-0", "learner", "learner.join"),
    ):
        servers.run("broker-fl", "enroll", name, "--role", role, "--out", str(servers.secrets / file))
    (servers.folder / "app.py").write_text(APP)
    # Settings are all in the files that the containers have; but for the port that these processes share.
    environment = {"BROKER_FL_METRICS_PORT": "0", "BROKER_FL_LOG_FORMAT": "json"}
    with started(servers.folder, environment) as start:
        daemons: list[Daemon] = []
        for name in OURS:
            _, *words = compose["services"][name]["command"]
            # Whoever has the lease keeps it, however long this machine holds its process up.
            daemons.append(start(name, *(servers.here(word) for word in words), BROKER_FL_LEASE="300"))
            until(daemons[-1].is_ready)
        held = [daemon.samples()["broker_fl_lease_held"] for daemon in daemons[:2]]
        assert held == [1, 0]
        until(lambda: daemons[0].samples()["broker_fl_learners"] == 1)
        probe = compose["services"]["learner"]["healthcheck"]["test"][1:]
        here = [word.replace("http://127.0.0.1:9400", daemons[2].url) for word in probe]
        command = [sys.executable, *here[1:]]
        until(lambda: subprocess.run(command, check=False, timeout=60).returncode == 0)
