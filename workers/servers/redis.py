"""A private Redis server: its own data, port and, if asked for, password, on loopback only."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from broker_fl.errors import ServerUnavailable, SettingError, StoreUnavailable
from broker_fl.workers.servers.process import Node, ServerProcess, find_program, free_port, write_private


def redis_available() -> bool:
    """Whether Redis is installed, so that a node can be started."""
    return find_program("redis-server") is not None


@dataclass(frozen=True, kw_only=True)
class _Identity:
    """What stays the same over restarts; kept in the node's folder, readable by its owner only."""

    port: int
    password: str | None


class RedisNode(Node):
    """A Redis server in a folder of its own; the same folder is the same server, also in another process.

    It never evicts a key (``noeviction``) and appends every write to a file that is synced each second.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        password: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Start nothing yet; `password` asks for a random one, `settings` are further lines of redis.conf."""
        self.directory = Path(directory).absolute()
        self._wants_password = password
        self._settings = dict(settings or {})
        self._process = ServerProcess("redis", self.directory, logs=[self.directory / "redis.log"])

    @property
    def url(self) -> str:
        """The Redis URL of database 0, with the password in it."""
        return self.url_of(0)

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self._identity.port

    @property
    def pid(self) -> int | None:
        """The process id, or None while it does not run."""
        return self._process.pid

    def url_of(self, database: int) -> str:
        """The Redis URL of a database."""
        account = f":{self._identity.password}@" if self._identity.password else ""
        return f"redis://{account}127.0.0.1:{self._identity.port}/{database}"

    def start(self, *, deadline_s: float = 60) -> Self:
        """Start the server and wait until it answers, its data loaded.

        Raises:
            SettingError: not installed, or this folder's server runs already.
            StoreUnavailable: it ended or was not ready in time; with the end of its log.
        """
        program = find_program("redis-server")
        if program is None:
            raise SettingError("Redis is not installed: redis-server must be on the path")
        self._write_configuration()
        self._process.start([program, str(self.directory / "redis.conf")], environment=os.environ)
        try:
            self._process.wait_ready(self._ready, deadline_s=deadline_s)
        except ServerUnavailable as e:
            self.kill()
            self.stop()
            raise StoreUnavailable(str(e)) from e
        return self

    def stop(self, *, deadline_s: float = 30) -> None:
        """End the server, and nothing else; also when it was killed before."""
        self._process.stop(deadline_s=deadline_s)

    def restart(self) -> Self:
        """Stop the server if it runs, and start it again with the same data, password and port."""
        self.stop()
        return self.start()

    def kill(self) -> None:
        """End the server as a power failure would (SIGKILL); `start` or `restart` brings it back."""
        self._process.kill()

    def freeze(self) -> None:
        """Stop the server in its tracks (SIGSTOP): connections stay open and nothing answers."""
        self._process.freeze()

    def thaw(self) -> None:
        """Let a frozen server go on (SIGCONT)."""
        self._process.thaw()

    @cached_property
    def _identity(self) -> _Identity:
        path = self.directory / "identity.json"
        if not path.exists():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            password = secrets.token_urlsafe(24) if self._wants_password else None
            write_private(path, json.dumps(asdict(_Identity(port=free_port(), password=password))))
        return _Identity(**json.loads(path.read_text(encoding="utf-8")))

    def _write_configuration(self) -> None:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self._identity.port),
            "dir": f'"{self.directory}"',
            "logfile": f'"{self.directory / "redis.log"}"',
            "loglevel": "warning",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
        }
        if self._identity.password:
            settings["requirepass"] = self._identity.password
        lines = [f"{name} {value}\n" for name, value in (settings | self._settings).items()]
        write_private(self.directory / "redis.conf", "".join(lines))

    def _ready(self) -> bool:
        login = f"AUTH {self._identity.password}\r\n" if self._identity.password else ""
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self._identity.port), timeout=5) as client,
            client.makefile("rb") as answers,
        ):
            client.sendall(f"{login}PING\r\n".encode())
            if login:
                answers.readline()
            return answers.readline().startswith(b"+PONG")  # not: -LOADING
        return False
