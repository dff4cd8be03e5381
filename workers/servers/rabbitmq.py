"""A private RabbitMQ node: its own data, account, Erlang cookie, epmd and ports, on loopback only."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self
from urllib.parse import quote

from broker_fl.errors import BrokerUnavailable, ServerUnavailable, SettingError
from broker_fl.identity.management import ManagementApi
from broker_fl.workers.servers.process import Node, ServerProcess, find_program, free_port, write_private

_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = b"\x01"
_CONTROL_TIMEOUT_S = 180.0

# Debian's and Red Hat's /usr/sbin/rabbitmq-server becomes the user rabbitmq, or refuses; the real one:
_REAL_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def rabbitmq_available() -> bool:
    """Whether RabbitMQ and Erlang are installed, so that a node can be started."""
    return _server_program() is not None and _epmd_program() is not None


@dataclass(frozen=True, kw_only=True)
class _Identity:
    """What stays the same over restarts; kept in the node's folder, readable by its owner only."""

    node: str
    user: str
    password: str
    cookie: str
    amqp_port: int
    distribution_port: int
    epmd_port: int
    management_port: int

    @classmethod
    def new(cls) -> _Identity:
        return cls(
            node=f"broker-fl-{secrets.token_hex(4)}@localhost",
            user="broker-fl",
            password=secrets.token_urlsafe(24),
            cookie=secrets.token_hex(16),
            amqp_port=free_port(),
            distribution_port=free_port(),
            epmd_port=free_port(),
            management_port=free_port(),
        )

    def peer(self) -> _Identity:
        """For a further node of the same cluster: it shares account, cookie and port mapper."""
        return replace(
            self.new(),
            user=self.user,
            password=self.password,
            cookie=self.cookie,
            epmd_port=self.epmd_port,
        )


class RabbitMQNode(Node):
    """A RabbitMQ server in a folder of its own; the same folder is the same server, also in another process.

    Starting takes 6 to 8 s on two cores, nearly all of it Erlang loading code (as long on existing data).
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        management: bool = False,
        schedulers: int = 2,
        settings: Mapping[str, str] | None = None,
        plugins: Sequence[str] = (),
        joins: RabbitMQNode | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            directory: everything of the node is in it; made when it is not there.
            management: also run the HTTP interface (without its statistics, which cost the broker time).
            schedulers: threads of the Erlang machine.
            settings: further lines of rabbitmq.conf, for this and later starts by this object.
            plugins: to be enabled besides.
            joins: a node, which runs, whose cluster this one joins at its first start.
        """
        self.directory = Path(directory).absolute()
        self._management = management
        self._schedulers = schedulers
        self._settings = dict(settings or {})
        self._plugins = tuple(plugins)
        self._log = self.directory / "log" / "rabbitmq.log"
        self._process = ServerProcess("rabbitmq", self.directory, logs=[self._log])
        self._joins = joins
        # All nodes of a cluster are found through one port mapper, which ends with the first of them.
        self._epmd = ServerProcess("epmd", joins.directory if joins else self.directory)

    @property
    def url(self) -> str:
        """The AMQP URL of the default virtual host, with the account in it."""
        return self.url_of("/")

    @property
    def management_url(self) -> str:
        """The root of the HTTP interface; answers only with ``management=True``."""
        return f"http://127.0.0.1:{self._identity.management_port}"

    @property
    def user(self) -> str:
        """The administrator's name."""
        return self._identity.user

    @property
    def password(self) -> str:
        """The administrator's password."""
        return self._identity.password

    @property
    def port(self) -> int:
        """The AMQP port on 127.0.0.1."""
        return self._identity.amqp_port

    @property
    def pid(self) -> int | None:
        """The process id, or None while it does not run."""
        return self._process.pid

    @property
    def name(self) -> str:
        """Erlang's name of it, by which a cluster knows its nodes."""
        return self._identity.node

    def url_of(self, vhost: str) -> str:
        """The AMQP URL of a virtual host."""
        who = self._identity
        return f"amqp://{who.user}:{who.password}@127.0.0.1:{who.amqp_port}/{quote(vhost, safe='')}"

    def start(self, *, deadline_s: float = 120) -> Self:
        """Start the node and wait until it takes connections wherever it listens.

        Raises:
            SettingError: not installed, or this folder's node runs already.
            BrokerUnavailable: it ended or was not ready in time; with the end of its log.
        """
        server, epmd = _server_program(), _epmd_program()
        if server is None or epmd is None:
            raise SettingError(
                "RabbitMQ is not installed: rabbitmq-server and Erlang's epmd must be on the path"
            )
        self._write_configuration()
        try:
            self._start_epmd(epmd)
            # -noinput with RABBITMQ_ALLOW_INPUT: the script becomes the server instead of watching over it.
            self._process.start([server, "-noinput"], environment=self._environment)
            self._process.wait_ready(self._ready, deadline_s=deadline_s)
        except ServerUnavailable as e:
            self.kill()
            self.stop()
            raise BrokerUnavailable(str(e)) from e
        return self

    def stop(self, *, deadline_s: float = 30) -> None:
        """End the node and its epmd, and nothing else; also when the node was killed before."""
        self._process.stop(deadline_s=deadline_s)
        if self._joins is None:
            self._epmd.kill()

    def restart(self) -> Self:
        """Stop the node if it runs, and start it again with the same data, account and ports."""
        self.stop()
        return self.start()

    def kill(self) -> None:
        """End the node as a power failure would (SIGKILL); `start` or `restart` brings it back.

        RabbitMQ 3 keeps what was declared last (virtual hosts, queues, bindings) in memory for some seconds,
        durable or not, and loses it: see `flush`.
        """
        self._process.kill()

    def flush(self) -> None:
        """Have everything declared so far written to files, so that `kill` does not lose it (about 0.5 s)."""
        self.control(
            "eval", "catch mnesia:sync_log()."
        )  # absent in RabbitMQ 4 with Khepri, which writes at once

    def freeze(self) -> None:
        """Stop the node in its tracks (SIGSTOP): connections stay open and nothing answers."""
        self._process.freeze()

    def thaw(self) -> None:
        """Let a frozen node go on (SIGCONT)."""
        self._process.thaw()

    def add_vhost(self, name: str) -> str:
        """Make a virtual host on which the account may do everything, and return its URL."""
        if self._management:
            self._api.add_vhost(name)
        else:
            self.control("add_vhost", name)
            self.control("set_permissions", "-p", name, self.user, ".*", ".*", ".*")
        return self.url_of(name)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host and everything in it."""
        if self._management:
            self._api.delete_vhost(name)
        else:
            self.control("delete_vhost", name)

    def control(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` on this node (about 0.5 s) and return what it printed.

        Raises:
            BrokerUnavailable: it failed; with what it printed.
        """
        program = (
            find_program("rabbitmqctl")
            if not _REAL_SERVER.exists()
            else _REAL_SERVER.with_name("rabbitmqctl")
        )
        if program is None:
            raise SettingError("rabbitmqctl is not installed")
        done = subprocess.run(
            [program, "-q", "-n", self._identity.node, *arguments],
            env=self._environment,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CONTROL_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise BrokerUnavailable(f"rabbitmqctl {' '.join(arguments[:1])}: {done.stderr or done.stdout}")
        return done.stdout

    @cached_property
    def _identity(self) -> _Identity:
        path = self.directory / "identity.json"
        if not path.exists():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = _Identity.new() if self._joins is None else self._joins._identity.peer()  # noqa: SLF001
            write_private(path, json.dumps(asdict(new)))
        return _Identity(**json.loads(path.read_text(encoding="utf-8")))

    @cached_property
    def _api(self) -> ManagementApi:
        return ManagementApi(self.management_url, user=self.user, password=self.password)

    @cached_property
    def _environment(self) -> dict[str, str]:
        """The caller's environment, with nothing in it of another RabbitMQ or Erlang."""
        here, who = self.directory, self._identity
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        foreign = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET")
        return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
            "HOME": str(here),  # of .erlang.cookie
            "ERL_CRASH_DUMP_SECONDS": "0",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(who.epmd_port),
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(here / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(here / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(here / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(who.distribution_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(here / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(here / "generated"),
            "RABBITMQ_LOG_BASE": str(here / "log"),
            "RABBITMQ_LOGS": str(self._log),
            "RABBITMQ_MAX_NUMBER_OF_PROCESSES": "131072",
            "RABBITMQ_MNESIA_BASE": str(here / "data"),
            "RABBITMQ_NODENAME": who.node,
            "RABBITMQ_PID_FILE": str(here / "erlang.pid"),
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",  # bound, all nodes of a machine would share its first cores
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"+S {self._schedulers}:{self._schedulers} {loopback}",
            "RABBITMQ_CTL_ERL_ARGS": loopback,
        }

    def _write_configuration(self) -> None:
        who = self._identity
        settings = {
            "listeners.tcp.1": f"127.0.0.1:{who.amqp_port}",
            "default_user": who.user,
            "default_pass": who.password,
            "log.file.level": "warning",
        }
        if self._management:
            settings |= {
                "management.tcp.ip": "127.0.0.1",
                "management.tcp.port": str(who.management_port),
                "management.disable_stats": "true",
                "management_agent.disable_metrics_collector": "true",
            }
        if self._joins is not None:
            settings |= {
                "cluster_formation.peer_discovery_backend": "classic_config",
                "cluster_formation.classic_config.nodes.1": self._joins.name,
                "cluster_formation.classic_config.nodes.2": who.node,
            }
        plugins = ",".join((*self._plugins, *(("rabbitmq_management",) if self._management else ())))
        lines = [f"{name} = {value}\n" for name, value in (settings | self._settings).items()]
        write_private(self.directory / "rabbitmq.conf", "".join(lines))
        write_private(self.directory / "enabled_plugins", f"[{plugins}].\n")
        write_private(self.directory / ".erlang.cookie", who.cookie)

    def _start_epmd(self, program: str) -> None:
        """Start Erlang's port mapper ourselves: one that Erlang starts outlives the node, its id unknown."""
        port = self._identity.epmd_port
        if self._epmd.pid is None:
            self._epmd.start(
                [program, "-address", "127.0.0.1", "-port", str(port)], environment=self._environment
            )
        self._epmd.wait_ready(lambda: _connects("127.0.0.1", port), deadline_s=60)

    def _ready(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self._identity.amqp_port), timeout=5) as client,
        ):
            client.sendall(_PROTOCOL_HEADER)
            if client.recv(1) == _METHOD_FRAME:
                return all(_connects(*address) for address in self._further_addresses())
        return False

    def _further_addresses(self) -> Iterator[tuple[str, int]]:
        """Where it listens besides: RabbitMQ opens its listeners one after the other, those of TLS last."""
        if self._management:
            yield "127.0.0.1", self._identity.management_port
        for name, value in self._settings.items():
            if name.startswith("listeners.") and value != "none":
                host, _, port = value.rpartition(":")
                yield host or "127.0.0.1", int(port)


def _connects(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False


def _server_program() -> str | None:
    return str(_REAL_SERVER) if _REAL_SERVER.exists() else find_program("rabbitmq-server")


def _epmd_program() -> str | None:
    if found := find_program("epmd"):
        return found
    erlang = find_program("erl")
    runtimes = Path(erlang).resolve().parent.parent.glob("erts-*/bin/epmd") if erlang else ()
    return next((str(path) for path in sorted(runtimes)), None)
