"""compose/systemd: units that systemd takes, that give little away, and whose commands do their work."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.daemons import APP, DEADLINE_S
from tests.servers.enrolling import Operator
from tests.servers.provision import Broker

UNITS = sorted((Path(__file__).parents[2] / "compose" / "systemd").glob("*.service"))
TIMER = UNITS[0].with_name("broker-fl-expired.timer")
DAEMONS = [unit for unit in UNITS if unit.stem != TIMER.stem]
PROGRAM = Path(sys.executable).with_name("broker-fl")
MAX_EXPOSURE = 15
"""Of systemd-analyze security, in tenths. Most units of a distribution have above 90."""
wants_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian: systemd)"
)


def _analyze(*words: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@wants_systemd
@pytest.mark.parametrize("unit", [*UNITS, TIMER], ids=lambda unit: unit.name)
def test_systemd_takes_it(unit: Path, tmp_path: Path) -> None:
    name = unit.name.replace("@", "@hospital-a")
    for one in (unit, unit.with_suffix(".service")):
        text = one.read_text().replace("/opt/broker-fl/bin/broker-fl", str(PROGRAM))
        (tmp_path / one.name.replace("@", "@hospital-a")).write_text(text)
    said = _analyze("verify", "--man=no", str(tmp_path / name))
    assert not [line for line in said.splitlines() if "broker-fl" in line]  # not even a warning


@wants_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_it_may_do_little(unit: Path) -> None:
    said = _analyze("security", "--offline=yes", f"--threshold={MAX_EXPOSURE}", "--no-pager", str(unit))
    assert "Overall exposure level" in said


@pytest.mark.parametrize("unit", DAEMONS, ids=lambda unit: unit.name)
def test_a_wrong_setting_is_not_tried_again_and_all_else_is(unit: Path) -> None:
    settings = dict(re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE))
    assert settings["Restart"] == "on-failure"
    assert settings["RestartPreventExitStatus"] == "2"  # ExitCode.SETTING
    assert settings["Type"] == "notify"
    assert float(settings["WatchdogSec"]) > 0


def _command(unit: Path, folder: Path, instance: str = "") -> list[str]:
    """What the unit starts, with its credentials and its state in ``folder``."""
    command = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)[0]
    for letter, meant in (("%d", str(folder)), ("%S", str(folder)), ("%i", instance)):
        command = command.replace(letter, meant)
    return [str(PROGRAM), *shlex.split(command.replace("9400", "0"))[1:]]


def test_the_drop_in_of_a_policy_counts_where_the_learner_may_write(tmp_path: Path) -> None:
    """The command of its comment reads the policy, and keeps the bytes of the day in its state folder."""
    (unit,) = [one for one in UNITS if "learner" in one.name]
    drop_in = re.sub(r"^#   ", "", unit.read_text().partition("policy, in a drop-in")[2], flags=re.MULTILINE)
    (command,) = re.findall(r"^ExecStart=\S+/broker-fl learner (.+ --policy .*)$", drop_in, re.MULTILINE)
    for letter, folder in (("%d", "credentials"), ("%S", "state"), ("%i", "hospital-a")):
        command = command.replace(letter, str(tmp_path / folder) if letter != "%i" else folder)
    (tmp_path / "credentials").mkdir()
    (tmp_path / "state/broker-fl/hospital-a").mkdir(parents=True)
    (tmp_path / "credentials/policy.toml").write_text("limits.max_bytes_per_day = 1\n")
    words = shlex.split(command.replace(f"--join {tmp_path}/credentials/learner.join", "--id hospital-a"))
    given = ["learner", *words, "--broker", "amqp://nobody@127.0.0.1:1/", "--connect-timeout", "0.1"]
    (tmp_path / "app.py").write_text(APP)
    told = subprocess.run(
        [str(PROGRAM), *given], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode == 3, told.stderr  # all that is wrong is that no broker is there
    assert json.loads((tmp_path / "state/broker-fl/hospital-a/policy.usage").read_text())["bytes"] == 0
    assert [one.name for one in (tmp_path / "credentials").iterdir()] == ["policy.toml"]


@contextmanager
def _service(unit: Path, folder: Path, instance: str) -> Iterator[socket.socket]:
    """What the unit starts, with its credentials in ``folder``; the socket hears what it tells systemd."""
    address = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        systemd.settimeout(DEADLINE_S)
        process = subprocess.Popen(
            _command(unit, folder, instance),
            cwd=folder,
            env={**os.environ, "NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "600000"},
        )
        try:
            yield systemd
        finally:
            process.terminate()
            assert process.wait(DEADLINE_S) == 0


def test_what_they_start_becomes_ready_and_keeps_its_watchdog_quiet(
    rabbitmq: Broker, amqp_url: str, redis_url: str, federation: str, tmp_path: Path
) -> None:
    if rabbitmq.management is None:
        pytest.skip("needs a RabbitMQ on which accounts may be made")
    with Operator(tmp_path, amqp_url, rabbitmq.management, federation) as operator:
        for kind, name in (("controller", "main"), ("learner", "hospital-a")):
            (unit,) = [one for one in UNITS if kind in one.name]
            folder = tmp_path / kind
            folder.mkdir()
            operator.enroll(name, kind).rename(folder / f"{kind}.join")
            (folder / f"{kind}.toml").write_text(f'store = "{redis_url}"\n')
            (folder / "app.py").write_text(APP)
            with _service(unit, folder, name) as systemd:
                assert systemd.recv(100) == b"READY=1"
                assert systemd.recv(100) == b"WATCHDOG=1"


def test_the_timer_takes_out_accounts_and_tokens_whose_time_is_over(
    rabbitmq: Broker, amqp_url: str, federation: str, tmp_path: Path
) -> None:
    if rabbitmq.management is None:
        pytest.skip("needs a RabbitMQ on which accounts may be made")
    with Operator(tmp_path, amqp_url, rabbitmq.management, federation) as operator:
        for name in ("over", "not-over"):
            operator.enroll(name)
            operator.run("token", f"asks-{name}", "--out", str(tmp_path / f"{name}.token"))
        for user in (f"{federation}.learner.over", f"{federation}.candidate.asks-over"):
            record = operator.api.records("broker_fl.")[user]
            operator.api.put_record(f"broker_fl.{user}", {**record, "expires": 1.0})
        url = urlsplit(amqp_url)
        settings = {
            "broker": amqp_url,
            "federation": federation,
            "management": f"http://{url.username}@{urlsplit(operator.api.place).netloc}",
            "management_password": url.password,
        }
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items()]
        (tmp_path / "operator.toml").write_text("".join(lines))
        (tmp_path / "operator.toml").chmod(0o600)
        (tmp_path / TIMER.stem).mkdir()
        done = subprocess.run(
            _command(TIMER.with_suffix(".service"), tmp_path), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        left = {user for user in operator.api.users() if user.startswith(f"{federation}.")}
        assert left == {f"{federation}.learner.not-over", f"{federation}.candidate.asks-not-over"}
