"""`make env`, `make demo-env` and the tests' servers on machines that have other things than this one.

What they would find or call is in a folder of small scripts, the whole path of the commands under test;
nothing is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from broker_fl.errors import BrokerUnavailable
from broker_fl.workers.servers import ManagementApi
from broker_fl.workers.servers.process import free_port
from tests.servers.provision import wait_management

ROOT = Path(__file__).parents[2]
TOOLS = ("sh", "env", "sed", "cat", "uname", "tr")
SERVERS = ("rabbitmq-server", "redis-server")

# `apt-get install` puts what it was asked for onto the path, as the real one does.
# Of sudo's work, only that is done.
APT = '#!/bin/sh\nfor word in "$@"; do case "$word" in *-server) cp "$BIN/sh" "$BIN/$word";; esac; done\n'
SUDO = '#!/bin/sh\ncase "$*" in *apt-get*) shift; exec "$@";; esac\n'


@dataclass
class Machine:
    """A path with little on it."""

    programs: Path

    def add(self, name: str, script: str) -> None:
        (self.programs / name).write_text(script)
        (self.programs / name).chmod(0o755)

    def add_apt(self, script: str = APT) -> None:
        self.add("apt-get", script)
        self.add("sudo", SUDO)

    def provide(self, **urls: str) -> subprocess.CompletedProcess[str]:
        surroundings = {"PATH": str(self.programs), "BIN": str(self.programs), "SERVER_FOLDERS": ""}
        return subprocess.run(
            ["/bin/sh", ROOT / "tests" / "servers" / "provide.sh"],
            env=surroundings | urls,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def has(self, name: str) -> bool:
        return (self.programs / name).exists()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    for name in (*TOOLS, "cp"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    bare = Machine(tmp_path)
    bare.add("id", "#!/bin/sh\necho 1000\n")
    return bare


URLS = {"BROKER_FL_TEST_AMQP_URL": "amqp://elsewhere", "BROKER_FL_TEST_REDIS_URL": "redis://elsewhere"}
DOCKER = "#!/bin/sh\necho 28.0.0\n"


@pytest.mark.parametrize("elsewhere", ["nowhere", "urls", "docker"])
def test_where_it_may_it_installs_the_servers_also_when_others_are_there(
    machine: Machine, elsewhere: str
) -> None:
    machine.add_apt()
    if elsewhere == "docker":
        machine.add("docker", DOCKER)
    done = machine.provide(**(URLS if elsewhere == "urls" else {}))
    assert done.returncode == 0, done.stderr
    assert "Installing rabbitmq-server redis-server" in done.stdout
    assert all(machine.has(name) for name in SERVERS)


@pytest.mark.parametrize("apt", ["absent", "fails"])
@pytest.mark.parametrize("elsewhere", ["urls", "docker"])
def test_where_it_cannot_but_others_are_there_it_says_what_will_be_skipped(
    machine: Machine, elsewhere: str, apt: str
) -> None:
    if apt == "fails":
        machine.add_apt("#!/bin/sh\nexit 100\n")
    if elsewhere == "docker":
        machine.add("docker", DOCKER)
    done = machine.provide(**(URLS if elsewhere == "urls" else {}))
    assert done.returncode == 0, done.stderr
    assert "will be skipped" in done.stderr
    assert "rabbitmq-server redis-server" in done.stderr


@pytest.mark.parametrize("given", [{}, {"BROKER_FL_TEST_AMQP_URL": "amqp://elsewhere"}])
def test_where_it_cannot_and_a_server_is_nowhere_it_ends_and_says_what_to_install(
    machine: Machine, given: dict[str, str]
) -> None:
    done = machine.provide(**given)
    assert done.returncode == 1
    missing = "redis-server" if given else "rabbitmq-server redis-server"
    assert f"--no-install-recommends {missing}\n" in done.stderr


def test_what_is_installed_is_left_alone(machine: Machine) -> None:
    for name in SERVERS:
        machine.add(name, "#!/bin/sh\n")
    done = machine.provide()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# A Python that says it is of that version, and goes no further than that.
PYTHON = """#!/bin/sh
case "$2" in *version_info*) ;; *) exit 1 ;; esac
exec {python} -c 'import sys; sys.version_info = (3, {minor}); exec(sys.argv[1])' "$2"
"""


@pytest.mark.parametrize(
    ("target", "minor", "taken"),
    [
        ("env", 10, False),
        ("env", 11, True),
        ("env", 13, True),
        ("env", 14, False),
        ("demo-env", 10, False),
        ("demo-env", 13, True),
        ("demo-env", 14, True),
    ],
)
def test_only_the_environment_with_tensorflow_refuses_a_newer_python(
    target: str, minor: int, taken: bool, tmp_path: Path
) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable, minor=minor))
    python.chmod(0o755)
    done = subprocess.run(
        ["make", target, f"PYTHON={python}"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert ("cannot make a virtual environment" if taken else "is needed; none among") in done.stderr


def test_a_management_interface_that_comes_later_is_waited_for() -> None:
    """As that of a container, which takes AMQP connections before HTTP."""
    port = free_port()
    answers = [503, 200]

    class Late(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.pop(0))
            self.end_headers()

    api = ManagementApi(f"http://127.0.0.1:{port}", user="tests", password="tests")
    with pytest.raises(BrokerUnavailable):
        wait_management(api, deadline_s=0.2)
    with HTTPServer(("127.0.0.1", port), Late) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        wait_management(api)
        server.shutdown()
    assert not answers
