"""broker-fl fleet, through a real sshd on loopback: its daemons take part in a real federation."""

from __future__ import annotations

import json
import os
import signal
import site
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from broker_fl import connect
from broker_fl.cli.main import commands
from tests.integration.daemons import APP, DEADLINE_S, until
from tests.servers.sshd import PROGRAM, Sshd, running_sshd

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="sshd is not installed (tests/servers/provide.sh)")


SECRET = "g3heim"
LOGIN, TOKEN = f"https://ana:{SECRET}@pip.example/simple", f"https://{SECRET}@pip.example/broker_fl.whl"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this checkout, from a copy of it: building leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    wanted = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(wanted, capture_output=True, check=True).stdout.split(b"\0")
    for name in names:
        path = ROOT / name.decode()
        if (
            name
            and name.startswith((b"broker_fl/", b"workers/", b"pyproject", b"README", b"LICENSE"))
            and path.exists()
        ):
            target = source / name.decode()
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                target.symlink_to(path.readlink())
            else:
                target.write_bytes(path.read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
    ]
    subprocess.run([str(word) for word in command], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@dataclass
class Site:
    """The operator's side: a folder with an inventory."""

    folder: Path
    sshd: Sshd

    def run(self, *args: str, code: int | None = 0) -> str:
        """``broker-fl fleet`` with the inventory; what it says, errors included."""
        command, *options = args
        done = subprocess.run(
            [sys.executable, "-m", "broker_fl.cli", "fleet", command, "hosts.toml", *options],
            cwd=self.folder,
            env={**os.environ, "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def outcomes(self, *args: str, code: int | None = 0) -> dict[str, dict[str, Any]]:
        """By daemon."""
        return {one["name"]: one for one in json.loads(self.run(*args, "--json", code=code))}

    def states(self, *args: str, code: int | None = 0) -> dict[str, str]:
        return {name: one["state"] for name, one in self.outcomes(*args, code=code).items()}

    def write(self, package: Path, *, known_hosts: Path | None = None, more: str = "") -> None:
        # The wheel's dependencies are those of the environment that the tests run in.
        (self.folder / "hosts.toml").write_text(
            f"""
package = "{package}"
pip_options = ["--no-deps", "--no-index"]
known_hosts = "{known_hosts or self.sshd.known_hosts}"

[hosts.one]
address = "127.0.0.1"
port = {self.sshd.port}
identity_file = "{self.sshd.key}"
python = "{sys.executable}"
folder = "fleet one"
environment = {{ PYTHONPATH = "{site.getsitepackages()[0]}" }}

[controllers.main]
host = "one"
config = "main.toml"

[learners.site-0]
host = "one"
app = "app.py:make_learner"
config = "sites.toml"
environment = {{ MARK = "from the inventory" }}
{more}
"""
        )


@pytest.fixture
def place(
    sshd: Sshd, wheel: Path, amqp_url: str, redis_url: str, federation: str, tmp_path: Path
) -> Iterator[Site]:
    broker = f'broker = "{amqp_url}"\nfederation = "{federation}"\n'
    (tmp_path / "main.toml").write_text(f'{broker}store = "{redis_url}"\n[controller]\nheartbeat = 1\n')
    (tmp_path / "sites.toml").write_text(broker)
    (tmp_path / "app.py").write_text(APP)
    found = Site(tmp_path, sshd)
    found.write(wheel)
    yield found
    found.write(wheel)
    found.run("stop", "--timeout", "5")


@pytest.mark.timeout(480)
def test_a_federation_is_deployed_started_watched_and_stopped(
    place: Site, wheel: Path, amqp_url: str, federation: str
) -> None:
    home = place.sshd.home / "fleet one"
    assert place.states("status", code=1) == {"main": "not deployed", "site-0": "not deployed"}
    assert "main is not deployed here" in place.run("start", "--only", "main", code=1)
    assert place.states("deploy") == {"main": "deployed", "site-0": "deployed"}
    assert place.states("deploy") == {"main": "unchanged", "site-0": "unchanged"}
    assert place.states("status", code=1) == {"main": "stopped", "site-0": "stopped"}
    # The files have the broker's password: nobody else on that machine reads them.
    for name in ("daemons/main/main.toml", "daemons/site-0/sites.toml", "daemons/site-0/daemon.json"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600, name

    assert place.states("start") == {"main": "running", "site-0": "running"}
    began = place.outcomes("status")
    assert {name: one["state"] for name, one in began.items()} == {"main": "running", "site-0": "running"}
    # The connections that started them are closed long ago: they are seen at work.
    with connect(amqp_url, federation, timeout_s=DEADLINE_S) as driver:
        until(lambda: [one.learner for one in driver.learners()] == ["site-0"])
    pids = {name: one["facts"]["pid"] for name, one in began.items()}
    assert b"MARK=from the inventory" in Path(f"/proc/{pids['site-0']}/environ").read_bytes()
    assert amqp_url.encode() not in Path(f"/proc/{pids['main']}/cmdline").read_bytes()
    again = place.outcomes("start")
    assert {name: one["facts"]["pid"] for name, one in again.items()} == pids  # none was started twice

    # Deployed anew, it goes on as it is until it is restarted; the other one is left alone.
    (place.folder / "app.py").write_text(APP + "\n# newer\n")
    assert place.states("deploy") == {"main": "unchanged", "site-0": "deployed"}
    assert "was deployed anew" in place.outcomes("status")["site-0"]["detail"]
    restarted = place.outcomes("start", "--restart")
    assert restarted["main"]["facts"]["pid"] == pids["main"]
    assert restarted["site-0"]["facts"]["pid"] != pids["site-0"]

    os.kill(pids["main"], signal.SIGKILL)
    until(lambda: place.states("status", code=None) == {"main": "ended", "site-0": "running"})
    place.run("status", code=1)
    place.run("start", "--only", "main")
    assert place.states("stop") == {"main": "stopped", "site-0": "stopped"}
    assert "the learner ends" in (home / "daemons/site-0/log").read_text()  # in good order
    assert place.outcomes("stop")["main"]["detail"] == "did not run"


@pytest.mark.timeout(480)
def test_an_error_of_one_host_is_no_other_s(place: Site, wheel: Path, tmp_path: Path) -> None:
    more = """
[hosts.gone]
address = "127.0.0.1"
port = 1
[learners.far]
host = "gone"
app = "app.py"
[learners.wrong]
host = "one"
app = "app.py"
join = "wrong.join"
"""
    (tmp_path / "wrong.join").write_text("no join file")
    place.write(wheel, more=more)
    deployed = place.outcomes("deploy", code=1)
    assert {name: one["state"] for name, one in deployed.items()} == {
        "main": "deployed",
        "site-0": "deployed",
        "far": "failed",
        "wrong": "deployed",
    }
    assert "it is not reached" in deployed["far"]["detail"]
    sent = place.sshd.home / "fleet one/daemons/wrong/wrong.join"
    assert stat.S_IMODE(sent.stat().st_mode) == 0o600
    started = place.outcomes("start", "--only", "one", code=1)
    assert {name: one["state"] for name, one in started.items()} == {
        "main": "running",
        "site-0": "running",
        "wrong": "failed",
    }
    assert "exit code 2" in started["wrong"]["detail"]
    assert "wrong.join is no join file" in started["wrong"]["detail"]


def test_a_host_with_another_key_is_refused_and_nothing_is_sent(
    place: Site, wheel: Path, tmp_path: Path
) -> None:
    before = sorted(place.sshd.home.rglob("*"))
    known = place.sshd.known_hosts.read_text().split()
    other = subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=False
    )
    assert other.returncode == 0
    wrong = tmp_path / "wrong_hosts"
    for text in ("", f"{known[0]} {(tmp_path / 'other.pub').read_text()}"):
        wrong.write_text(text)
        place.write(wheel, known_hosts=wrong)
        assert "its host key is not the one in" in place.run("deploy", code=1)
        assert wrong.read_text() == text  # never added by itself
    assert sorted(place.sshd.home.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            f'package = "x"\npip_options = ["--index-url={LOGIN}"]\n[hosts.a]\naddress = "a"',
            "hosts.toml: pip_options: a URL with a password is in it",
        ),
        (
            f'package = "broker-fl @ {TOKEN}"\n[hosts.a]\naddress = "a"',
            "hosts.toml: package: a URL with a password is in it",
        ),
        (
            (
                'package = "git+https://h.example:8443/fl.git@v1"\n[hosts.a]\naddress = "a"\n'
                f'[learners.l]\nhost = "a"\napp = "m"\narguments = ["--broker", "amqps://u:{SECRET}@far/fl"]'
            ),
            "hosts.toml: arguments of l: a URL with a password is in it",
        ),
        ("package = 1", "hosts.toml: package = 1 is not allowed: it must be a text; hosts is missing"),
        (
            'package = "x"\n[hosts.a]\naddress = "a"\nusr = "fl"\n[learners.l]\nhost = "b"\napp = "m"',
            (
                "hosts.a.usr: unknown setting: did you mean 'user'? allowed are address, environment, "
                "folder, identity_file, port, python, user; l: there is no host 'b'; there are: a"
            ),
        ),
        (
            'package = "x"\n[hosts.a]\naddress = "a"\nport = 70000',
            "hosts.a.port = 70000 is not allowed: it must be below 65536",
        ),
        (
            'package = "x"\n[hosts.a]\naddress = "a"\n[learners.l]\nhost = "b"\napp = "m"',
            "l: there is no host 'b'; there are: a",
        ),
        (
            'package = "x"\n[hosts.a]\naddress = "a"\n[learners.l]\nhost = "a"\napp = "gone.py"',
            "l: there is no file",
        ),
        (
            (
                'package = "x"\n[hosts.a]\naddress = "a"\n'
                '[learners.l]\nhost = "a"\napp = "m"\nid = "i"\njoin = "j"'
            ),
            "learners.l: the join file names the learner: leave out id",
        ),
        ('package = "gone.whl"\n[hosts.a]\naddress = "a"', "package: there is no file"),
        ("package", "hosts.toml is not valid TOML"),
    ],
)
def test_an_inventory_that_is_wrong(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "hosts.toml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "broker_fl.cli", "fleet", "status", "hosts.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert reason in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_of_a_host_that_is_not_reached_nothing_is_known(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        host = f'[hosts.a]\naddress = "127.0.0.1"\nport = {port}\n'
        text = f'package = "x"\nknown_hosts = "known"\n{host}[learners.l]\nhost = "a"\napp = "m"\n'
        (tmp_path / "hosts.toml").write_text(text)
        (tmp_path / "known").write_text("")
        done = CliRunner().invoke(commands, ["fleet", "stop", str(tmp_path / "hosts.toml"), "--json"])
    assert done.exit_code == 1
    (told,) = json.loads(done.stdout)
    assert told["state"] == "unknown"
    nothing = f"nothing listens at 127.0.0.1, port {port} (connection refused)"
    assert told["detail"] == f"it is not reached: {nothing}"
