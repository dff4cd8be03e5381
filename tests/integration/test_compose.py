"""compose/: the file is valid, keeps to itself, and every command in it does its job as a process."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from broker_fl import connect
from broker_fl.workers.servers import RabbitMQNode, rabbitmq_available

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
OURS = ("controller", "learner", "driver")
READY_S = 60.0


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file, its variables at their defaults."""
    text = (COMPOSE / "compose.yaml").read_text()
    loaded: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))
    return loaded


def test_it_is_a_valid_compose_file(compose: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "tests" / "compose" / "compose-spec.json").read_text())
    jsonschema.Draft7Validator(schema).validate(compose)


@pytest.mark.skipif(
    subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0
    if shutil.which("docker")
    else True,
    reason="docker has no compose plugin here; the schema was checked instead",
)
def test_compose_itself_takes_it() -> None:
    subprocess.run(
        ["docker", "compose", "-f", COMPOSE / "compose.yaml", "--profile", "driver", "config", "--quiet"],
        check=True,
    )


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    images = [service["image"] for service in compose["services"].values()]
    froms = re.findall(r"^FROM (\S+)", (COMPOSE / "Dockerfile").read_text(), re.MULTILINE)
    for image in [*images, *froms]:
        assert re.search(r":v?\d+\.\d+\.\d+", image), f"{image} is not pinned to a version"


def test_nothing_is_published_beyond_loopback(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(str(port).startswith("127.0.0.1:") for port in ports)


def test_every_service_has_limits_and_every_lasting_one_a_health_check(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys(), name
        assert "healthcheck" in service or service.get("profiles") == ["driver"], name


def test_what_must_last_is_on_volumes(compose: dict[str, Any]) -> None:
    for name in ("rabbitmq", "redis"):
        sources = [volume.split(":")[0] for volume in compose["services"][name]["volumes"]]
        assert set(sources) & set(compose["volumes"]), name


def test_files_that_it_mounts_and_copies_exist(compose: dict[str, Any]) -> None:
    mounted = [v.split(":")[0] for s in compose["services"].values() for v in s.get("volumes", [])]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (COMPOSE / "Dockerfile").read_text(), re.MULTILINE)
    for path in [source for source in mounted if source.startswith(".")]:
        assert (COMPOSE / path).exists(), path
    for path in " ".join(copied).split():
        assert (ROOT / path).exists(), path


def test_redis_takes_its_configuration_and_its_probe_is_answered(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    """A Redis that reads the file, and says so, before it is told to end."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not installed; the servers of this run are elsewhere")
    address = tmp_path / "redis.sock"
    arguments = ["--port", "0", "--unixsocket", str(address), "--dir", str(tmp_path)]
    process = subprocess.Popen(
        [server, COMPOSE / "redis.conf", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if "Ready to accept connections" in line or "ready to accept connections" in line:
                break
        else:
            pytest.fail("redis-server did not start: " + "".join(lines))
        program, *words = compose["services"]["redis"]["healthcheck"]["test"][1:]
        pong = subprocess.run(
            [program, "-s", address, *words], capture_output=True, text=True, timeout=60, check=True
        )
        assert pong.stdout == "PONG\n"
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def configured_rabbitmq(server_root: Path) -> Iterator[RabbitMQNode]:
    """A RabbitMQ that has read our lines; it does not start on one that it does not know."""
    if not rabbitmq_available():
        pytest.skip("rabbitmq-server is not installed; the servers of this run are elsewhere")
    node = RabbitMQNode(server_root / "compose-rabbitmq", settings=_rabbitmq_settings())
    try:
        yield node.start()
    finally:
        node.kill()
        node.stop()


def test_rabbitmq_takes_its_configuration_and_its_probe_tells_whether_it_runs(
    compose: dict[str, Any], configured_rabbitmq: RabbitMQNode
) -> None:
    node, settings = configured_rabbitmq, _rabbitmq_settings()
    asked = "[application:get_env(rabbit, Name) || Name <- [heartbeat, consumer_timeout, disk_free_limit]]."
    taken = node.control("eval", asked)
    assert f"{{ok,{settings['heartbeat']}}},{{ok,{settings['consumer_timeout']}}}" in taken
    assert settings["disk_free_limit.absolute"] in taken

    probe = compose["services"]["rabbitmq"]["healthcheck"]["test"][1:]
    ran = _on_node(probe, node)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    node.kill()
    assert _on_node(probe, node).returncode != 0


def _rabbitmq_settings() -> dict[str, str]:
    lines = (COMPOSE / "rabbitmq.conf").read_text().splitlines()
    pairs = (line.partition(" = ") for line in lines if not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def _on_node(words: list[str], node: RabbitMQNode) -> subprocess.CompletedProcess[str]:
    """Run one of RabbitMQ's own programs where it finds that node, as it does in the node's container."""
    identity = json.loads((node.directory / "identity.json").read_text())
    # Debian's own programs in sbin insist on root or on its account; the folder has the real ones.
    path = os.pathsep.join(["/usr/lib/rabbitmq/bin", os.environ["PATH"], "/usr/sbin"])
    environment = {
        "PATH": path,
        "HOME": str(node.directory),  # of the Erlang cookie
        "ERL_EPMD_PORT": str(identity["epmd_port"]),
        "RABBITMQ_NODENAME": identity["node"],
        "RABBITMQ_CONF_ENV_FILE": str(node.directory / "rabbitmq-env.conf"),
        "LANG": "C.UTF-8",
    }
    program = shutil.which(words[0], path=path)
    assert program, words[0]
    return subprocess.run(
        [program, *words[1:]],
        env=environment,
        cwd=node.directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
    )


class Cluster:
    """The commands of the compose file as processes on this machine, with its environment."""

    def __init__(
        self, compose: dict[str, Any], amqp_url: str, redis_url: str, federation: str, folder: Path
    ) -> None:
        self._compose = compose
        self._servers = {"BROKER_FL_BROKER": amqp_url, "BROKER_FL_FEDERATION": federation}
        self._store = {"BROKER_FL_STORE": redis_url}
        self._folder = folder

    def command(self, service: str) -> list[str]:
        """What the container runs, with the image's paths in the checkout's place."""
        return [_here(word) for word in self._compose["services"][service]["command"]]

    def environment(self, service: str, **more: str) -> dict[str, str]:
        """What the container is told, with the URLs of this test's servers."""
        declared = self._compose["services"][service]["environment"]
        told = {name: _here(str(value)) for name, value in declared.items()}
        servers = self._servers | (self._store if "BROKER_FL_STORE" in declared else {})
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {
            "PATH": path,
            "HOME": str(self._folder),
            "TMPDIR": str(self._folder),
            **told,
            **servers,
            "BROKER_FL_METRICS_PORT": "0",  # containers have an address each; these processes share one
            "BROKER_FL_METRICS_ADDR": "127.0.0.1",
            **more,
        }

    def start(self, service: str, **more: str) -> subprocess.Popen[bytes]:
        """Start it as a daemon."""
        path = self._folder / f"{service}-{more.get('BROKER_FL_ID', 'derived')}.log"
        with path.open("wb") as log:
            return subprocess.Popen(
                self.command(service),
                env=self.environment(service, **more),
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )

    def run(self, words: list[str], service: str) -> subprocess.CompletedProcess[str]:
        """Run a command in its surroundings to the end."""
        return subprocess.run(
            words,
            env=self.environment(service),
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )


def _here(word: str) -> str:
    return word.replace("/opt/broker_fl/", f"{ROOT}/")


@pytest.fixture
def cluster(
    compose: dict[str, Any], amqp_url: str, redis_url: str, federation: str, tmp_path: Path
) -> Cluster:
    return Cluster(compose, amqp_url, redis_url, federation, tmp_path)


def test_its_commands_make_a_federation_that_finishes_the_example_job(
    compose: dict[str, Any], cluster: Cluster, amqp_url: str, federation: str, tmp_path: Path
) -> None:
    services = compose["services"]
    with ExitStack() as stack:
        daemons = [cluster.start("controller")]
        daemons += [cluster.start("learner", BROKER_FL_ID=f"site-{number}") for number in range(2)]
        derived = tmp_path / "derived"
        derived.mkdir()
        daemons.append(cluster.start("learner", TMPDIR=str(derived)))
        for daemon in daemons:
            stack.callback(_end, daemon)
        with connect(amqp_url, federation, timeout_s=READY_S) as driver:
            assert driver.jobs() == ()

        healthy = cluster.run(
            [_here(word) for word in services["controller"]["healthcheck"]["test"][1:]], "controller"
        )
        assert healthy.returncode == 0, healthy.stderr

        submitted = cluster.run(cluster.command("driver"), "driver")
        assert submitted.returncode == 0, submitted.stderr

        # The job waits for three learners: the one without an id is one of them.
        name = re.sub("[^A-Za-z0-9_-]", "-", socket.gethostname())
        assert (derived / "learner-id").read_text() == f"site-{name}"
        listed = cluster.run(["broker-fl", "learners", "--json"], "learner").stdout
        assert f'"site-{name}"' in listed

        check = (
            services["learner"]["healthcheck"]["test"][1].replace("$$", "$").replace("/tmp/", f"{tmp_path}/")
        )
        known = cluster.run(["sh", "-c", check], "learner")
        assert known.returncode == 0, cluster.run(["broker-fl", "learners", "--json"], "learner")
        (tmp_path / "learner-id").write_text("somebody-else")
        assert cluster.run(["sh", "-c", check], "learner").returncode != 0

        for daemon in daemons:
            daemon.terminate()
        assert [daemon.wait(60) for daemon in daemons] == [0, 0, 0, 0]


def _end(daemon: subprocess.Popen[bytes]) -> None:
    if daemon.poll() is None:
        daemon.kill()
        daemon.wait(60)
