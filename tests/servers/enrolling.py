"""An operator who enrols parties on a real broker by the real commands, and runs their roles."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from click.testing import CliRunner, Result

from broker_fl.cli.main import commands
from broker_fl.identity.joinfile import read_join_file
from broker_fl.identity.management import ManagementApi
from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.observer import NOBODY, Observer
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.driver import Driver
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.topology import Topology
from broker_fl.transports.rabbitmq import RabbitMQTransport

DEADLINE_S = 60.0


def eventually(condition: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_at, f"{what} did not happen within {DEADLINE_S:g} s"
        time.sleep(0.02)


class Adds:
    """Adds 1 to everything, while its gate is open: after r rounds the model is known exactly."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.at_work = threading.Event()

    def train(self, model: Arrays, task: TaskContext) -> Update:
        self.at_work.set()
        while not self.gate.wait(0.02):
            task.progress(0.5)
        return Update(model={name: array + 1 for name, array in model.items()}, num_examples=1)

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        return {}


class Operator:
    """Enrols parties of one federation by the command line, and runs their roles."""

    def __init__(
        self, folder: Path, url: str, api: ManagementApi, federation: str, *, shown_url: str | None = None
    ) -> None:
        """``url`` is an administrator's; ``shown_url``, if it is another one, is what join files say."""
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
            "BROKER_FL_BROKER": shown_url or url,
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

    def forget_environment(self) -> None:
        """What a site has: nothing but its join file."""
        self._environment.clear()

    def run(self, *arguments: str, ok: bool = True, input: str | None = None) -> Result:  # noqa: A002
        done = CliRunner().invoke(commands, arguments, input=input, env=self._environment)
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

    def controller(self, observer: Observer = NOBODY, *, join: Path | None = None) -> Controller:
        store = SQLiteStore(self.folder / "state.sqlite", federation=self.federation)
        self._stack.callback(store.close)
        transport = self.connect(join or self.enroll("main", "controller"))
        settings = ControllerSettings(federation=self.federation, heartbeat_s=2.0)
        controller = Controller(transport, store, settings)
        controller.observe(observer)
        self._stack.callback(lambda: controller.wait(10.0))
        self._stack.callback(controller.stop)
        controller.start()
        assert controller.wait_active(DEADLINE_S)
        return controller

    def learner(
        self, path: Path, adds: Adds | None = None, *, group: str | None = None, count: int = 1
    ) -> LearnerHost:
        name = read_join_file(path).name
        names = [name] if group is None else [f"{name}-{index}" for index in range(count)]
        settings = LearnerSettings(federation=self.federation, group=group)
        host = LearnerHost(self.connect(path), {one: adds or Adds() for one in names}, settings)
        self._stack.callback(lambda: host.stop(drain_s=0.0))
        host.start()
        return host

    def driver(self, name: str = "ana", role: str = "driver") -> Driver:
        driver = Driver(self.connect(self.enroll(name, role)), self.federation, timeout_s=DEADLINE_S)
        self._stack.callback(driver.close)
        return driver
