"""One server program: started in its own session, watched until it is ready, found again from its folder."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from broker_fl.errors import ServerUnavailable, SettingError

_POLL_S = 0.01
_FREEZE_S = 30.0
_HAS_PROC = Path("/proc/self/stat").exists()
_LOG_TAIL_LINES = 80  # RabbitMQ says first why it ends, then at length how

# Below the ports that Linux (32768), macOS (49152) and gVisor (16000) give to outgoing connections. A client
# that tries to reach a stopped server on such a port can be given that very port, and connects to itself.
_PORTS = range(10240, 16000)

# Where packages put servers, and where the path of an ordinary user does not lead.
_SERVER_FOLDERS = (
    "/usr/lib/rabbitmq/bin",
    "/usr/local/sbin",
    "/usr/sbin",
    "/opt/homebrew/sbin",
)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, outside the range of outgoing connections.

    No other process gets it from this function while this one lives, so that it stays free while a server
    starts or is restarted.
    """
    for port in random.sample(_PORTS, k=len(_PORTS)):
        with (
            contextlib.suppress(OSError),
            socket.socket(type=socket.SOCK_DGRAM) as reservation,
            socket.socket() as probe,
        ):
            # The servers use TCP only: the UDP port of the same number is a lock that ends with its process.
            reservation.bind(("127.0.0.1", port))
            probe.bind(("127.0.0.1", port))
            reservation.detach()
            return port
    raise SettingError(f"no free TCP port on 127.0.0.1 from {_PORTS.start} to {_PORTS.stop - 1}")


def find_program(name: str) -> str | None:
    """The path of an installed program, also from folders that only root has on its path."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(_SERVER_FOLDERS))


class Node:
    """A server as the block of a ``with`` statement: started before it, ended after it."""

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it; nothing happens where it does not run."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            return self.start()
        except (KeyboardInterrupt, SystemExit):  # ``__exit__`` would not be called, and nobody end it
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)


class ServerProcess:
    """A program in a process group of its own; its identity is kept in ``<directory>/<name>.pid``."""

    def __init__(self, name: str, directory: Path, *, logs: Sequence[Path] = ()) -> None:
        """Start nothing; `logs` are further files whose ends explain why the program died."""
        self.name = name
        self._directory = directory
        self._pid_file = directory / f"{name}.pid"
        self._output = directory / f"{name}.out"
        self._logs = (self._output, *logs)

    @property
    def pid(self) -> int | None:
        """The process id (also that of the group), or None when the program does not run."""
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            known = json.loads(self._pid_file.read_text(encoding="utf-8"))
            if known["born"] is not None and _begin(int(known["pid"])) == known["born"]:
                return int(known["pid"])
        return None

    def start(self, command: Sequence[str], *, environment: Mapping[str, str]) -> None:
        """Start the program; an old one of this folder must have ended.

        Raises:
            SettingError: it runs already, or the program cannot be executed.
        """
        if (pid := self.pid) is not None:
            raise SettingError(f"{self.name} of {self._directory} runs already, as process {pid}")
        writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            # Not subprocess.Popen: the server may outlive this object, which Popen takes for a mistake.
            pid = os.posix_spawn(
                command[0],
                list(command),
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(self._output), writing, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
            )
        except OSError as e:
            raise SettingError(f"cannot start {command[0]}: {e}") from e
        write_private(self._pid_file, json.dumps({"pid": pid, "born": _begin(pid)}))

    def wait_ready(self, ready: Callable[[], bool], *, deadline_s: float) -> None:
        """Return as soon as `ready` says so.

        Raises:
            ServerUnavailable: the program ended, or was not ready in time; with the end of its logs.
        """
        give_up = time.monotonic() + deadline_s
        while not ready():
            if self.pid is None:
                raise ServerUnavailable(f"{self.name} ended while it started\n{self.log_tail()}")
            if time.monotonic() > give_up:
                raise ServerUnavailable(f"{self.name} was not ready in {deadline_s:g} s\n{self.log_tail()}")
            time.sleep(_POLL_S)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group; nothing happens when it has ended."""
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)

    def freeze(self) -> None:
        """Stop the group in its tracks (SIGSTOP), and return once it stands still: a signal only asks for it.

        Raises:
            ServerUnavailable: it still runs.
        """
        self.send(signal.SIGSTOP)
        give_up = time.monotonic() + _FREEZE_S
        while (pid := self.pid) is not None and any(state not in "TZX" for state in _states(pid)):
            if time.monotonic() > give_up:
                raise ServerUnavailable(f"{self.name} did not stop in {_FREEZE_S:g} s\n{self.log_tail()}")
            time.sleep(_POLL_S)

    def thaw(self) -> None:
        """Let a frozen group go on (SIGCONT)."""
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        """End the program at once, without a chance to tidy up, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self._wait_gone(deadline_s=30)

    def stop(self, *, deadline_s: float) -> None:
        """Ask the program to end; kill it when it has not in time. A frozen one is thawed first."""
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)
        if not self._wait_gone(deadline_s=deadline_s):
            self.kill()
        self._pid_file.unlink(missing_ok=True)

    def log_tail(self) -> str:
        """The last lines of everything that the program has written."""
        tails = []
        for log in self._logs:
            with contextlib.suppress(FileNotFoundError):
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                tails.append("\n".join([f"--- {log}", *lines[-_LOG_TAIL_LINES:]]))
        return "\n".join(tails)

    def _wait_gone(self, *, deadline_s: float) -> bool:
        give_up = time.monotonic() + deadline_s
        while self.pid is not None:
            if time.monotonic() > give_up:
                return False
            time.sleep(_POLL_S)
        return True


def _begin(pid: int) -> str | None:
    """When the process began, which tells it from a later one of the same number; None when it has ended."""
    begin = _begin_in_proc(pid) if _HAS_PROC else _begin_in_ps(pid)
    if begin is None:
        with contextlib.suppress(ChildProcessError):  # somebody else's, or collected already
            os.waitpid(pid, 0)
    return begin


def _begin_in_proc(pid: int) -> str | None:
    fields = _stat(Path(f"/proc/{pid}"))
    return None if not fields or fields[0] in "ZX" else fields[19]


def _begin_in_ps(pid: int) -> str | None:
    state, _, begin = _ps("-o", "stat=,lstart=", "-p", str(pid)).strip().partition(" ")
    return None if not state or state.startswith("Z") else begin.strip()


def _states(group: int) -> list[str]:
    """The letter of each process of a group, on Linux of each thread: T is stopped, Z has ended."""
    if not _HAS_PROC:
        listed = [line.split() for line in _ps("-A", "-o", "pgid=,stat=").splitlines()]
        return [state[0] for of, state in listed if of == str(group)]
    members = [
        process
        for process in Path("/proc").glob("[0-9]*")
        if (fields := _stat(process)) and fields[2] == str(group)
    ]
    threads = [_stat(thread) for process in members for thread in process.glob("task/*")]
    return [fields[0] for fields in threads if fields]


def _stat(folder: Path) -> list[str]:
    """What Linux says of a process or thread, from its state on (proc(5)); nothing once it is gone."""
    try:
        stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The second field, the program's name, may hold blanks and brackets: count from its closing one.
    return stat.rpartition(")")[2].split()


def _ps(*options: str) -> str:
    return subprocess.run(["ps", *options], capture_output=True, text=True, check=False).stdout
