"""Enrolled accounts on a real broker: what a join file opens, and what it does not; by the real commands."""

from __future__ import annotations

import stat
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from click.testing import CliRunner, Result

from broker_fl.cli.main import commands
from broker_fl.errors import AccessDenied, RequestRefused, SettingError
from broker_fl.identity.accounts import Account
from broker_fl.identity.joinfile import read_join_file
from broker_fl.identity.management import ManagementApi
from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.driver import Driver
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.topology import Topology
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.wire.job import JobSpec
from tests.servers.provision import Broker

DEADLINE_S = 60.0


def eventually(condition: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_at, f"{what} did not happen within {DEADLINE_S:g} s"
        time.sleep(0.02)


class Adds:
    """Adds 1 to everything: after r rounds the model is known exactly."""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        return Update(model={name: array + 1 for name, array in model.items()}, num_examples=1)

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        return {}


class Operator:
    """Enrols parties of one federation by the command line, and runs their roles."""

    def __init__(self, folder: Path, url: str, api: ManagementApi, federation: str) -> None:
        self.folder = folder
        self.url = url
        self.api = api
        self.federation = federation
        self.topology = Topology(federation)
        self.vhost = urlsplit(url).path[1:]
        self._stack = ExitStack()
        account = urlsplit(url)
        self._environment = {
            "BROKER_FL_MANAGEMENT": f"http://{account.username}@{urlsplit(api.place).netloc}",
            "BROKER_FL_MANAGEMENT_PASSWORD": str(account.password),
            "BROKER_FL_BROKER": url,
            "BROKER_FL_FEDERATION": federation,
        }

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for user in self.api.users():
            if user.startswith(f"{self.federation}."):
                self.api.delete_user(user)
        for user in self.api.records(f"broker_fl.{self.federation}."):
            self.api.delete_record(f"broker_fl.{self.federation}.{user}")

    def run(self, *arguments: str, ok: bool = True) -> Result:
        done = CliRunner().invoke(commands, arguments, env=self._environment)
        assert (done.exit_code == 0) is ok, done.output
        return done

    def enroll(self, name: str, role: str = "learner") -> Path:
        path = self.folder / f"{role}-{name}.join"
        self.run("enroll", name, "--role", role, "--out", str(path))
        return path

    def connect(self, path: Path) -> RabbitMQTransport:
        transport = RabbitMQTransport(read_join_file(path).url)
        self._stack.callback(transport.close)
        return transport

    def controller(self) -> Controller:
        store = SQLiteStore(self.folder / "state.sqlite", federation=self.federation)
        self._stack.callback(store.close)
        transport = self.connect(self.enroll("main", "controller"))
        settings = ControllerSettings(federation=self.federation, heartbeat_s=0.2)
        controller = Controller(transport, store, settings)
        self._stack.callback(lambda: controller.wait(10.0))
        self._stack.callback(controller.stop)
        controller.start()
        assert controller.wait_active(DEADLINE_S)
        return controller

    def learner(self, path: Path, *, group: str | None = None, count: int = 1) -> LearnerHost:
        name = read_join_file(path).name
        names = [name] if group is None else [f"{name}-{index}" for index in range(count)]
        settings = LearnerSettings(federation=self.federation, group=group)
        host = LearnerHost(self.connect(path), {one: Adds() for one in names}, settings)
        self._stack.callback(lambda: host.stop(drain_s=0.0))
        host.start()
        return host

    def driver(self, name: str = "ana", role: str = "driver") -> Driver:
        driver = Driver(self.connect(self.enroll(name, role)), self.federation, timeout_s=DEADLINE_S)
        self._stack.callback(driver.close)
        return driver


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


def test_a_password_that_is_typed_is_refused(operator: Operator) -> None:
    for typed in (["--management", "http://admin:geheim@127.0.0.1:1"], ["--management-password", "geheim"]):
        done = operator.run("members", *typed, ok=False)
        assert "command line" in done.output
        assert "geheim" not in done.output
