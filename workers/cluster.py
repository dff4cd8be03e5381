"""A whole cluster on this machine: private servers, a controller and learners, all in one folder.

======================  ==============================================================================
``broker-fl.toml``      settings with the URLs and their passwords, for ``--config``; only its owner reads it
``rabbitmq/, redis/``   the servers, with their data: what is started again goes on with the same jobs
``<daemon>.pid``        process id and start time, so that only what was started here is ended
``<daemon>.out``        its log
======================  ==============================================================================
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker_fl.errors import BrokerUnavailable, ServerUnavailable, SettingError
from broker_fl.roles.driver import Driver
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.workers.servers import RabbitMQNode, RedisNode
from broker_fl.workers.servers.process import ServerProcess, write_private

SETTINGS = "broker-fl.toml"
JOIN_DEADLINE_S = 120.0
STOP_DEADLINE_S = 40.0
_ANSWER_TIMEOUT_S = 2.0
"""Short: between two questions it is looked whether a daemon has ended."""
_LOOK_EVERY_S = 0.2
_MAX_NAMED = 4
_CONTROLLER = "controller"
_LEARNER = "learner-"
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process of a cluster."""

    name: str
    pid: int | None
    """None: it does not run."""
    log: Path


class Cluster:
    """What runs in a folder; another process that names the same folder means the same cluster."""

    def __init__(self, folder: str | Path, *, federation: str = "default") -> None:
        self.folder = Path(folder).absolute()
        self.settings = self.folder / SETTINGS
        self._federation = federation
        self._rabbitmq = RabbitMQNode(self.folder / "rabbitmq")
        self._redis = RedisNode(self.folder / "redis", password=True)

    # ------------------------------------------------------------ up

    def up(self, app: str, num_learners: int, tell: Tell, *, has_own_rules: bool = False) -> None:
        """Start everything, and return when all learners have joined; whatever fails, nothing stays behind.

        The controller loads the app too if it ``has_own_rules``, or selectors, that jobs may name.

        Raises:
            SettingError: it runs already, a server is not installed, or a daemon did not like its settings.
            ServerUnavailable: something did not start in time.
        """
        self._refuse_second()
        self._make_folder()
        try:
            self._start_servers(tell)
            self._write_settings()
            tell("starting controller and learners")
            self._start(_CONTROLLER, ["controller", *(["--app", app] if has_own_rules else [])])
            for index in range(num_learners):
                name = f"{_LEARNER}{index}"
                self._start(name, ["learner", app, "--id", name])
            self._wait_joined(num_learners)
        except BaseException:
            self.down(tell=lambda _: None)
            raise

    def _refuse_second(self) -> None:
        if running := [part.name for part in self.parts() if part.pid is not None]:
            more = f" and {len(running) - _MAX_NAMED} more" if len(running) > _MAX_NAMED else ""
            raise SettingError(
                f"{', '.join(running[:_MAX_NAMED])}{more} of {self.folder} run already; "
                f"broker-fl down --folder {self.folder} ends them"
            )

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(f"{self.folder} cannot be made: {error.strerror}") from error

    def _start_servers(self, tell: Tell) -> None:
        tell("starting Redis")
        self._redis.start()
        tell("starting RabbitMQ (takes some seconds)")
        self._rabbitmq.start()

    def _write_settings(self) -> None:
        lines = (
            "# Written by broker-fl up. Use it with --config; keep it private: there are passwords in it.",
            f'broker = "{self._rabbitmq.url}"',
            f'store = "{self._redis.url}"',
            f'federation = "{self._federation}"',
        )
        write_private(self.settings, "\n".join(lines) + "\n")

    def _start(self, name: str, command: Sequence[str]) -> None:
        program = [sys.executable, "-m", "broker_fl.cli", "--config", str(self.settings), *command]
        # The folder's settings count, not the environment of whoever calls this.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("BROKER_FL_")}
        process = self._process(name)
        process.start(program, environment=environment)

    def _wait_joined(self, num_learners: int) -> None:
        give_up_at = time.monotonic() + JOIN_DEADLINE_S
        transport = RabbitMQTransport(self._rabbitmq.url, name="broker-fl up")
        with Driver(transport, self._federation, timeout_s=_ANSWER_TIMEOUT_S) as driver:
            while True:
                self._refuse_dead()
                joined = _num_joined(driver)
                if joined >= num_learners:
                    return
                if time.monotonic() > give_up_at:
                    raise ServerUnavailable(
                        f"{joined} of {num_learners} learners joined within {JOIN_DEADLINE_S:.0f} s; "
                        f"the others' logs are in {self.folder}"
                    )
                time.sleep(_LOOK_EVERY_S)

    def _refuse_dead(self) -> None:
        for part in self.parts():
            if part.pid is None:
                lines = part.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                last = lines[-1].removeprefix("Error: ") if lines else f"its log {part.log} is empty"
                raise SettingError(f"{part.name} ended while it started: {last}")

    # ------------------------------------------------------------ down and status

    def down(self, *, tell: Tell, delete: bool = False) -> int:
        """End what runs, learners first; how many processes that were. ``delete`` removes data too."""
        num_running = sum(part.pid is not None for part in self.parts())
        daemons = [self._process(name) for name in self._daemon_names()]
        learners = [one for one in daemons if one.name != _CONTROLLER]
        for group in (learners, [one for one in daemons if one.name == _CONTROLLER]):
            self._end(group, tell)
        for name, server in (("rabbitmq", self._rabbitmq), ("redis", self._redis)):
            if server.directory.is_dir():
                if server.pid is not None:
                    tell(f"ending {name}")
                server.stop()
        if delete and (self.settings.is_file() or self._redis.directory.is_dir()):
            shutil.rmtree(self.folder)
        return num_running

    def _end(self, processes: Sequence[ServerProcess], tell: Tell) -> None:
        """All of them at the same time: each may have a task to finish."""
        for process in processes:
            if process.pid is not None:
                tell(f"ending {process.name}")
                process.send(signal.SIGTERM)
        give_up_at = time.monotonic() + STOP_DEADLINE_S
        for process in processes:
            while process.pid is not None and time.monotonic() < give_up_at:
                time.sleep(0.02)
            if process.pid is not None:
                process.kill()
            process.stop(deadline_s=1.0)

    def parts(self) -> list[Part]:
        """What was started in the folder and not ended by ``down``."""
        found = [
            Part(name=name, pid=node.pid, log=log)
            for name, node, log in (
                ("rabbitmq", self._rabbitmq, self.folder / "rabbitmq" / "log" / "rabbitmq.log"),
                ("redis", self._redis, self.folder / "redis" / "redis.log"),
            )
            if (self.folder / name / f"{name}.pid").is_file()
        ]
        daemons = [
            Part(name=name, pid=self._process(name).pid, log=self.folder / f"{name}.out")
            for name in self._daemon_names()
        ]
        return found + daemons

    def _daemon_names(self) -> list[str]:
        names = [path.stem for path in self.folder.glob("*.pid")]
        return sorted(names, key=lambda name: (name != _CONTROLLER, len(name), name))

    def _process(self, name: str) -> ServerProcess:
        return ServerProcess(name, self.folder)


def _num_joined(driver: Driver) -> int:
    try:
        return sum(one.learner.startswith(_LEARNER) for one in driver.learners())
    except BrokerUnavailable:  # the controller is not there yet
        return 0
