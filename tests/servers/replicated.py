"""A Redis with two replicas, three Sentinels that have one take over, and HAProxy, which follows it.

Their settings are the ones that docs/operations.md gives; only times are shorter, and all is on loopback.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from broker_fl.workers.servers import RedisNode
from broker_fl.workers.servers.process import ServerProcess, find_program, free_port

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
NAME = "federations"
"""Of the primary, as Sentinels know it."""
WAIT_S = 60.0


class ReplicatedRedis:
    """Three servers; which of them is the primary changes."""

    def __init__(self, root: Path) -> None:
        """Start nothing yet."""
        self.root = root
        self.nodes = [RedisNode(root / f"redis-{number}") for number in range(3)]
        self._sentinels = [(free_port(), root / f"sentinel-{number}") for number in range(3)]
        self._processes: list[ServerProcess] = []
        self._proxy_port = free_port()
        self._clients: dict[int, Redis] = {}

    @property
    def url(self) -> str:
        """Of whichever is the primary, through HAProxy."""
        return f"redis://127.0.0.1:{self._proxy_port}/0"

    def start(self) -> None:
        """Start all, and wait until each knows the others."""
        self.root.mkdir(parents=True)
        for node in self.nodes:
            self.run(node, of=self.nodes[0])
        self.wait_in_step(self.nodes[0])
        for port, folder in self._sentinels:
            self._start_sentinel(port, folder)
        self._start_proxy()
        for port, _ in self._sentinels:
            until(lambda port=port: self._usable(port), "a quorum of Sentinels")  # type: ignore[misc]

    def close(self) -> None:
        """End all of them."""
        for client in self._clients.values():
            client.close()
        for process in self._processes:
            process.kill()
            process.stop(deadline_s=5)
        for node in self.nodes:
            node.kill()
            node.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    # ------------------------------------------------------------ servers

    def run(self, node: RedisNode, *, of: RedisNode | None) -> None:
        """Start a server, as the replica of another; with None, or of itself, as a primary."""
        settings = block("redis.conf")
        if of is not None and of is not node:
            settings.append(f"replicaof 127.0.0.1 {of.port}")
        lines = dict(line.split(" ", 1) for line in settings)
        RedisNode(node.directory, settings=lines).start()

    def ask(self, port: int, *words: str) -> Any:
        """The answer of a server or Sentinel to a command."""
        if port not in self._clients:
            self._clients[port] = Redis(port=port, decode_responses=True, socket_timeout=WAIT_S)
        client: Any = self._clients[port]
        return client.execute_command(*words)

    def facts(self, node: RedisNode) -> dict[str, Any]:
        """What a server says of its replication."""
        found: dict[str, Any] = self.ask(node.port, "INFO", "replication")
        return found

    @property
    def primary(self) -> RedisNode:
        """The one that Sentinels agree on and HAProxy leads to, once it has replicas."""
        port = self.led_to()
        return next(node for node in self.nodes if node.port == port)

    def led_to(self) -> int:
        """The port of the server to which HAProxy leads, as soon as there is one."""
        ports: list[int] = []

        def look() -> bool:
            with Redis.from_url(self.url, socket_timeout=5) as client:
                ports.append(int(client.config_get("port")["port"]))
            return True

        until(look, "a server behind HAProxy")
        return ports[0]

    def wait_in_step(self, primary: RedisNode, *, num_replicas: int = 2) -> None:
        """Until the replicas have all that the primary has; nothing may be written meanwhile."""

        def are_in_step() -> bool:
            facts = self.facts(primary)
            replicas = [facts[f"slave{n}"] for n in range(facts["connected_slaves"])]
            same = [one for one in replicas if int(one["offset"]) == facts["master_repl_offset"]]
            return facts["role"] == "master" and len(same) == num_replicas

        until(are_in_step, "replicas that have all of the primary")

    def wait_taken_over(self, old: RedisNode) -> RedisNode:
        """Until HAProxy leads to another primary."""
        until(lambda: self.primary is not old, "another primary")
        return self.primary

    # ------------------------------------------------------------ the rest

    def _start_sentinel(self, port: int, folder: Path) -> None:
        folder.mkdir()
        text = "\n".join(block("sentinel.conf"))
        text = text.replace("10.0.0.1 6379", f"127.0.0.1 {self.nodes[0].port}")
        text = text.replace("5000", "4000").replace("10000", "4000")
        lines = [text, f"port {port}", "bind 127.0.0.1", f'dir "{folder}"', f'logfile "{folder / "log"}"']
        (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
        self._spawn("sentinel", folder, ["redis-server", str(folder / "sentinel.conf"), "--sentinel"])

    def _start_proxy(self) -> None:
        folder = self.root / "haproxy"
        folder.mkdir()
        text = "\n".join(block("haproxy.cfg")).replace("127.0.0.1:6380", f"127.0.0.1:{self._proxy_port}")
        for number, node in enumerate(self.nodes, start=1):
            text = text.replace(f"10.0.0.{number}:6379", f"127.0.0.1:{node.port}")
        text = text.replace("inter 1s", "inter 200ms")
        (folder / "haproxy.cfg").write_text(text + "\n")
        self._spawn("haproxy", folder, ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")])

    def _spawn(self, name: str, folder: Path, command: list[str]) -> None:
        program = find_program(command[0])
        assert program is not None
        process = ServerProcess(name, folder)
        process.start([program, *command[1:]], environment={"PATH": "/usr/bin:/bin"})
        self._processes.append(process)

    def _usable(self, port: int) -> bool:
        with contextlib.suppress(RedisError):
            known = self.ask(port, "SENTINEL MASTER", NAME)
            return int(known["num-other-sentinels"]) == 2 and int(known["num-slaves"]) == 2
        return False


def block(file: str) -> list[str]:
    """The lines of a configuration file of docs/operations.md, which begins with its name."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"```\n# {re.escape(file)}[^\n]*\n(.*?)```", page, re.DOTALL)
    assert found is not None, f"{PAGE.name} has no {file}"
    return [line for line in found[1].splitlines() if line]


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that is not told of; servers that do not answer have not done it yet."""
    give_up_at = time.monotonic() + WAIT_S
    while True:
        with contextlib.suppress(RedisError, KeyError):
            if condition():
                return
        assert time.monotonic() < give_up_at, f"{what}: not within {WAIT_S:g} s"
        time.sleep(0.02)


@contextlib.contextmanager
def replicated_redis(root: Path) -> Iterator[ReplicatedRedis]:
    """All of it while the block runs."""
    for program in ("redis-server", "haproxy"):
        if find_program(program) is None:
            pytest.skip(f"{program} is not installed (tests/servers/provide.sh)")
    replicated = ReplicatedRedis(root)
    try:
        replicated.start()
        yield replicated
    finally:
        replicated.close()
