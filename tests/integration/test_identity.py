"""Enrolled accounts on a real broker: what a join file opens, and what it does not; by the real commands."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_fl.errors import AccessDenied, RequestRefused, SettingError
from broker_fl.identity.accounts import Account
from broker_fl.identity.joinfile import read_join_file
from broker_fl.identity.management import ManagementApi
from broker_fl.roles.driver import Driver
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.wire.job import JobSpec
from tests.servers.enrolling import DEADLINE_S, Adds, Operator, eventually
from tests.servers.provision import Broker
from tests.servers.secured import SecuredRabbitMQ


@pytest.fixture
def operator(tmp_path: Path, rabbitmq: Broker, amqp_url: str, federation: str) -> Iterator[Operator]:
    if rabbitmq.management is None:
        pytest.skip("needs a management interface")
    with Operator(tmp_path, amqp_url, rabbitmq.management, federation) as operator:
        yield operator


def spec(**settings: Any) -> JobSpec:
    return JobSpec.model_validate({"termination": {"rounds": 2}, **settings})


def test_a_join_file_is_for_its_owner_alone_and_is_never_written_over(operator: Operator) -> None:
    path = operator.enroll("hospital-a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    fields = tomllib.loads(path.read_text(encoding="utf-8"))
    assert (fields["name"], fields["federation"], fields["format"]) == ("hospital-a", operator.federation, 1)
    assert "@" not in fields["broker"]
    assert len(fields["password"]) >= 43
    before = path.read_text(encoding="utf-8")
    done = operator.run("enroll", "hospital-b", "--out", str(path), ok=False)
    assert "there already" in done.output
    assert path.read_text(encoding="utf-8") == before
    assert Account.new(operator.federation, "learner", "hospital-b").user not in operator.api.users()
    assert fields["password"] not in done.output


def test_everybody_with_an_account_of_their_own_runs_a_job(operator: Operator) -> None:
    operator.controller()
    for name in ("hospital-a", "hospital-b"):
        assert operator.learner(operator.enroll(name)).wait_welcomed(DEADLINE_S)
    assert operator.learner(operator.enroll("site", "group"), group="site", count=3).wait_welcomed(DEADLINE_S)
    driver = operator.driver()
    job = driver.submit(spec(protocol={"min_learners": 5}), {"w": np.zeros(3, np.float32)})
    assert job.wait().state == "done"
    np.testing.assert_array_equal(job.model()["w"], np.full(3, 2.0, np.float32))
    assert len(driver.learners()) == 5


def test_an_observer_watches_and_may_do_nothing_else(operator: Operator) -> None:
    operator.controller()
    assert operator.learner(operator.enroll("hospital-a")).wait_welcomed(DEADLINE_S)
    job = operator.driver().submit(spec(), {"w": np.zeros(3, np.float32)})
    observer = operator.driver("bob", "observer")
    seen = observer.job(job.id)
    assert [event.KIND for event in seen.events()][-1] == "job_finished"
    assert len(observer.learners()) == 1
    for forbidden in (seen.stop, seen.model):
        with pytest.raises(RequestRefused, match="only watches"):
            forbidden()


def test_a_mailbox_that_is_lost_is_declared_again_for_who_may_not_declare_it(operator: Operator) -> None:
    operator.controller()
    path = operator.enroll("hospital-a")
    mailbox = operator.topology.mailbox("hospital-a")
    operator.api.delete_queue(operator.vhost, mailbox)
    assert operator.learner(path).wait_welcomed(DEADLINE_S)
    operator.api.delete_queue(operator.vhost, mailbox)  # while it is read
    job = operator.driver().submit(spec(), {"w": np.zeros(3, np.float32)})
    assert job.wait().state == "done"


def test_an_account_works_for_nobody_else(operator: Operator) -> None:
    path = operator.enroll("hospital-a")
    settings = LearnerSettings(federation=operator.federation)
    host = LearnerHost(operator.connect(path), {"hospital-b": Adds()}, settings)
    with pytest.raises(SettingError, match="this is learner hospital-b"):
        host.start()
    host.abandon()
    with pytest.raises(SettingError, match="no driver"):
        Driver(operator.connect(path), operator.federation)


def test_rotation_closes_what_the_old_password_opened(operator: Operator) -> None:
    old = operator.enroll("hospital-a")
    transport = operator.connect(old)
    account = read_join_file(old).account
    eventually(lambda: operator.api.connections().get(account.user) == 2, "two connections")
    new = operator.folder / "new.join"
    operator.run("rotate", "hospital-a", "--out", str(new))
    eventually(lambda: not operator.api.connections().get(account.user), "connections being closed")
    transport.close()
    with pytest.raises(AccessDenied):
        operator.connect(old)
    operator.connect(new)


def test_revocation_takes_account_connections_and_mailbox(operator: Operator) -> None:
    path = operator.enroll("hospital-a")
    transport = operator.connect(path)
    operator.run("revoke", "hospital-a")
    account = read_join_file(path).account
    eventually(lambda: not operator.api.connections().get(account.user), "connections being closed")
    assert operator.api.queue(operator.vhost, operator.topology.mailbox("hospital-a")) is None
    transport.close()
    with pytest.raises(AccessDenied):
        operator.connect(path)
    assert "revoked" in operator.run("members").output
    operator.run("enroll", "hospital-a", "--out", str(path), "--force")
    operator.connect(path)


def test_members_are_listed_with_connections_and_expiry(operator: Operator) -> None:
    operator.connect(operator.enroll("hospital-a"))
    out = str(operator.folder / "b.join")
    operator.run("enroll", "hospital-b", "--out", out, "--expires", "90d")
    lines = operator.run("members").output.splitlines()
    (first,) = (line.split() for line in lines if "hospital-a" in line)
    (second,) = (line.split() for line in lines if "hospital-b" in line)
    assert (first[-2], first[-1], first[4]) == ("2", "active", "now")
    assert second[-1] == "active"
    assert second[-3] == tomllib.loads(Path(out).read_text(encoding="utf-8"))["expires"].split()[0]


def test_learners_that_could_be_taken_for_members_of_a_group_are_not_enrolled(operator: Operator) -> None:
    operator.enroll("site", "group")
    for name in ("site-7", "site"):
        done = operator.run("enroll", name, "--out", str(operator.folder / "x.join"), ok=False)
        assert "site" in done.output
    operator.enroll("site-a")
    assert not (operator.folder / "x.join").exists()


@pytest.mark.parametrize(("first", "second"), [("driver", "observer"), ("observer", "driver")])
def test_who_watches_cannot_be_enrolled_under_the_name_of_who_submits(
    operator: Operator, first: str, second: str
) -> None:
    """The queues of both would be named after it, so each could take the other's models and answers."""
    operator.enroll("ana", first)
    token = operator.folder / "ana.token"
    for command in (("enroll", "--out", str(operator.folder / "b.join")), ("token", "--out", str(token))):
        done = operator.run(command[0], "ana", "--role", second, *command[1:], ok=False)
        assert "share its queues" in done.output
    assert f"{operator.federation}.{second}.ana" not in operator.api.users()
    assert not token.exists()
    operator.run("revoke", "ana", "--role", first)
    operator.enroll("ana", second)  # the name is free again


@pytest.mark.parametrize("role", ["learner", "group", "driver", "observer"])
def test_doctor_finds_nothing_wrong_with_an_enrolled_account(operator: Operator, role: str) -> None:
    by = operator.enroll("hospital-a", role)
    operator.forget_environment()
    done = operator.run("doctor", "--join", str(by), "--json")
    found = [one for one in json.loads(done.output) if one["about"] == "Broker"]
    wrong = [one for one in found if one["level"] == "error"]
    assert not wrong
    assert any("has the permissions" in one["what"] for one in found)


def test_a_password_that_is_typed_is_refused(operator: Operator) -> None:
    for typed in (["--management", "http://admin:geheim@127.0.0.1:1"], ["--management-password", "geheim"]):
        done = operator.run("members", *typed, ok=False)
        assert "command line" in done.output
        assert "geheim" not in done.output


def test_what_an_operator_does_is_written_down(operator: Operator) -> None:
    operator.enroll("hospital-a")
    for command in ("rotate", "revoke"):
        out = ["--out", str(operator.folder / "new.join")] if command == "rotate" else []
        operator.run(command, "hospital-a", *out)
    entries = json.loads(operator.run("audit", "show", "--file", "own", "--json").output)
    assert [one["action"] for one in entries] == ["enroll", "rotate", "revoke"]
    assert {one["subject"] for one in entries} == {f"account {operator.federation}.learner.hospital-a"}
    assert "3 entries, and all fit" in operator.run("audit", "verify", "--file", "own").output
    unwritable = operator.folder / "no" / "folder"
    (operator.folder / "no").write_text("")
    operator.run("enroll", "hospital-b", "--audit", str(unwritable), "--out", "b.join", ok=False)
    assert not any("hospital-b" in user for user in operator.api.users()), "nothing is done unwritten"


APP = """
import numpy as np
from broker_fl import Update

class Adder:
    def train(self, model, task):
        return Update(model={"w": model["w"] + 1}, num_examples=1)

    def evaluate(self, model, task):
        return {}

def make_learner(context):
    return Adder()

def initial_model():
    return {"w": np.zeros(8, "f4")}
"""
JOB = """
name = "adding"
[model]
app = "app.py"
[protocol]
min_learners = 2
[termination]
rounds = 2
"""


def test_processes_need_nothing_but_their_join_files(operator: Operator, redis_url: str) -> None:
    """What a site types: no URL, no federation, no name, and nothing secret."""
    roles = {"main": "controller", "ana": "driver", "hospital-a": "learner", "site": "group"}
    files = {name: operator.enroll(name, role) for name, role in roles.items()}
    (operator.folder / "app.py").write_text(APP, encoding="utf-8")
    (operator.folder / "job.toml").write_text(JOB, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_FL_")}

    def command(*arguments: str) -> list[str]:
        assert not any(str(read_join_file(file).password) in " ".join(arguments) for file in files.values())
        return [sys.executable, "-m", "broker_fl.cli", *arguments]

    daemons = [
        subprocess.Popen(command(*arguments), cwd=operator.folder, env=environment, stderr=subprocess.DEVNULL)
        for arguments in (
            ("controller", "--join", str(files["main"]), "--store", redis_url),
            ("learner", "--join", str(files["hospital-a"]), "app.py:make_learner"),
            ("learner", "--join", str(files["site"]), "--count", "2", "app.py:make_learner"),
        )
    ]
    try:
        submit = command("submit", "job.toml", "--join", str(files["ana"]), "--app", "app.py", "--watch")
        done = subprocess.run(
            submit,
            cwd=operator.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(60)


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
        file = read_join_file(out)
        assert file.password is None
        transport = RabbitMQTransport(file.url, security=file.security(out))
        transport.consume(by.topology.mailbox("hospital-a"), print, prefetch=1, exclusive=True)
        assert transport.user == user
        transport.close()
        for password in ("", "guess"):
            with pytest.raises(AccessDenied):
                RabbitMQTransport(f"amqp://{user}:{password}@127.0.0.1:{node.port}/")
