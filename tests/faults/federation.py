"""A real federation: controller and learners as processes, each behind proxies of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.faults.proxy import Proxies, Proxy

WAIT_S = 90.0
LEARNERS = {"site-1": (1.0, 1), "site-2": (4.0, 2), "site-3": (16.0, 1)}
"""What each adds to the model, and its weight: a version tells who is in it, and how often."""
SIZE = 20_000
"""80 kB of float32: 20 chunks, so that a cut hits the middle of a model."""
BROKER_HEARTBEAT_S = 2
STORE_TIMEOUT_S = 2.0
FENCED = 4


@dataclass(frozen=True, kw_only=True)
class Patience:
    """What controllers are started with."""

    heartbeat_s: float = 1.0
    """Four that are missed, and a learner is lost."""
    lease_s: float = 2.0
    """Less than ``cells.FREEZE_S``."""


IMPATIENT = Patience()
BUSY_MACHINE = Patience(lease_s=6.0)
"""Where processes may be held up for longer than two seconds, and a standby waits."""
NOBODY_IS_LOST = Patience(heartbeat_s=5.0, lease_s=6.0)
"""Nor reminded of a task before 10 s have passed."""

APP = """
import os, time
from pathlib import Path
import numpy as np
from broker_fl.interfaces import Update

FOLDER = Path(os.environ["FAULTS_FOLDER"])

class Adds:
    def __init__(self, context):
        self.name = context.learner
        self.amount, self.weight = os.environ["FAULTS_LEARNER"].split()

    def train(self, model, task):
        with (FOLDER / f"{self.name}.{task.job}.trained").open("a") as file:
            file.write(f"{task.round}\\n")
        gates = [FOLDER / f"gate.{self.name}.{task.job}.{n}" for n in (task.round, "all")]
        while not any(gate.exists() for gate in gates):
            task.progress(0.5)
            time.sleep(0.01)
        return Update(model={"w": model["w"] + np.float32(self.amount)}, num_examples=int(self.weight))

    def evaluate(self, model, task):
        return {"num_examples": 1}

def make_learner(context):
    return Adds(context)
"""


class Process:
    """A daemon that can be killed, frozen, and cut off from its servers."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop it in its tracks (SIGSTOP), and return once it stands still: a signal only asks for it."""
        self.send(signal.SIGSTOP)
        assert self._process is not None
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert self.exit_code is None, f"{self.name} has ended by itself"

    def kill(self) -> None:
        """End it at once; it must have been alive."""
        assert self.exit_code is None, f"{self.name} has ended by itself"
        self.send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(60)

    def stop(self) -> None:
        """End it in good order, whatever state it is in."""
        if self._process is None or self.exit_code is not None:
            return
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._process.wait(60)


class Federation:
    """Its processes, their proxies, and the gates at which learners wait while they train."""

    def __init__(
        self,
        folder: Path,
        *,
        broker: str,
        store: str,
        federation: str,
        joins: Mapping[str, Path] | None = None,
        patience: Patience = IMPATIENT,
    ) -> None:
        """Start nothing yet. ``broker`` and ``store`` are URLs; several nodes have no proxies before them.
        ``joins``: join files by the names of processes, where all are enrolled.
        """
        self.folder = folder
        self.broker = broker
        self.store = store
        self.name = federation
        self._straight = "," in broker
        self._joins = joins
        self._patience = patience
        self._proxies = Proxies()
        self.to_broker: dict[str, Proxy] = {}
        self.to_store: dict[str, Proxy] = {}
        self.processes: dict[str, Process] = {}
        self.environments: dict[str, dict[str, str]] = {}
        """What a process is given besides; by name."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "app.py").write_text(APP)

    def start(self, name: str) -> Process:
        """Start a process of this name, anew if it was there before; ``controller…`` is a controller."""
        if name not in self.processes:
            self.processes[name] = self._process(name)
        self.processes[name].start()
        return self.processes[name]

    def _process(self, name: str) -> Process:
        """Behind proxies, unless the broker is several nodes."""
        broker, store = self.broker, self.store
        if not self._straight:
            self.to_broker[name] = self._proxies.to(_port(broker))
            self.to_store[name] = self._proxies.to(_port(store))
            broker = _with_port(broker, self.to_broker[name].port)
            store = _with_port(store, self.to_store[name].port)
        command = ["-v", "learner", str(self.folder / "app.py:make_learner")]
        if name.startswith("controller"):
            heartbeat, lease = (f"{seconds:g}" for seconds in astuple(self._patience))
            command = ["-v", "controller", "--heartbeat", heartbeat, "--lease", lease]
        amount, weight = LEARNERS.get(name, (0.0, 0))
        environment = {
            **os.environ,
            **self._servers(broker, store),
            "FAULTS_FOLDER": str(self.folder),
            "FAULTS_LEARNER": f"{amount} {weight}",
            "OMP_NUM_THREADS": "1",
        }
        arguments = [*command, *self._place(name), "--connect-timeout", "0"]
        return Process(
            name,
            [sys.executable, "-m", "broker_fl.cli", *arguments],
            self.folder / f"{name}.log",
            environment | self.environments.get(name, {}),
        )

    def _servers(self, broker: str, store: str) -> dict[str, str]:
        """Where they are: not in command lines, which everybody may read. A join file names the broker."""
        found = {"BROKER_FL_STORE": f"{store}?socket_timeout={STORE_TIMEOUT_S}"}
        if self._joins is None:
            found["BROKER_FL_BROKER"] = f"{broker}?heartbeat={BROKER_HEARTBEAT_S}"
        return found

    def _place(self, name: str) -> list[str]:
        """How a process is told who it is."""
        if self._joins is not None:
            required = ["--identities", "required"] if name.startswith("controller") else []
            return ["--join", str(self._joins[name]), *required]
        named = [] if name.startswith("controller") else ["--id", name]
        return ["--federation", self.name, *named]

    def kill(self, name: str) -> None:
        """End a process as when its machine loses power: what it had not got out yet is gone, too."""
        self.processes[name].kill()
        for lines in (self.to_broker, self.to_store):
            if name in lines:
                lines[name].cut("reset")
                lines[name].heal()

    def close(self) -> None:
        """End everything that was started."""
        for path in self.folder.glob("*.trained"):
            self.open_gates(path.name.split(".")[1])
        for process in self.processes.values():
            process.stop()
        self._proxies.close()

    # ------------------------------------------------------------ gates

    def open_gates(self, job: str, *names: str, round: int | None = None) -> None:
        """Let learners, or all of them, finish their training, in this round or in all of the job."""
        for name in names or LEARNERS:
            (self.folder / f"gate.{name}.{job}.{'all' if round is None else round}").touch()

    def trained(self, job: str, name: str) -> list[int]:
        """Rounds that a learner has begun to train in; one that is there twice was trained twice."""
        path = self.folder / f"{name}.{job}.trained"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def wait_training(self, job: str, round: int) -> None:
        """Until all learners train in this round."""
        self.wait(
            lambda: all(round in self.trained(job, name) for name in LEARNERS), f"training in round {round}"
        )

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
        """Until the condition holds.

        Raises:
            AssertionError: it did not in time; with the ends of all logs.
        """
        give_up_at = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < give_up_at, f"{what} did not happen: {self.logs()}"
            time.sleep(0.01)

    def logs(self, length: int = 1500) -> str:
        """The ends of all logs."""
        texts = {path.name: path.read_text()[-length:] for path in sorted(self.folder.glob("*.log"))}
        return "\n".join(f"--- {name}\n{text}" for name, text in texts.items())


def _port(url: str) -> int:
    return urlsplit(url).port or 0


def _with_port(url: str, port: int) -> str:
    old = _port(url)
    return url.replace(f":{old}/", f":{port}/")
