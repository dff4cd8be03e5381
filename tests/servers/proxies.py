"""An HTTP proxy of our own: tinyproxy, on loopback, with and without credentials."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker_fl.workers.servers.process import ServerProcess, find_program, free_port


@dataclass(frozen=True, kw_only=True)
class ProxyServer:
    """One that runs."""

    port: int
    log: Path

    def url(self, account: str = "") -> str:
        """``account`` is ``user:password`` or nothing."""
        return f"http://{account}{'@' if account else ''}127.0.0.1:{self.port}"

    def connects(self) -> list[str]:
        """Tunnels that were asked for, by host and port."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        asked = [line.partition("): CONNECT ")[2] for line in lines]
        return [one.split()[0] for one in asked if one]


@contextlib.contextmanager
def proxy_server(
    directory: Path,
    *,
    account: str = "",
    connect_port: int | None = None,
    port: int = 0,
    hosts: Mapping[str, str] | None = None,
) -> Iterator[ProxyServer]:
    """A proxy that wants this account (``user:password``), and lets only this port be reached; ``hosts``:
    addresses by names that nobody but the proxy knows.
    """
    program = find_program("tinyproxy")
    if program is None:
        pytest.skip("tinyproxy is not installed (tests/servers/provide.sh)")
    directory.mkdir(parents=True)
    server = ProxyServer(port=port or free_port(), log=directory / "tinyproxy.log")
    lines = [
        f"Port {server.port}",
        "Listen 127.0.0.1",
        "Timeout 600",
        f'LogFile "{server.log}"',
        "LogLevel Connect",
        "MaxClients 50",
        "Allow 127.0.0.1",
        *([f"BasicAuth {account.replace(':', ' ')}"] if account else []),
        *([f"ConnectPort {connect_port}"] if connect_port else []),
    ]
    (directory / "tinyproxy.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    process = ServerProcess("tinyproxy", directory, logs=[server.log])
    command = [program, "-d", "-c", str(directory / "tinyproxy.conf")]
    process.start([*_with_hosts(directory, hosts), *command] if hosts else command, environment={})
    try:
        process.wait_ready(lambda: _listens(server.port), deadline_s=60)
        yield server
    finally:
        process.kill()
        process.stop(deadline_s=5)
        shutil.rmtree(directory, ignore_errors=True)


def _with_hosts(directory: Path, hosts: Mapping[str, str]) -> list[str]:
    """What a command begins with that has an /etc/hosts of its own: a mount that only its process sees."""
    file = directory / "hosts"
    file.write_text("".join(f"{address} {name}\n" for name, address in hosts.items()), encoding="utf-8")
    unshare, root = find_program("unshare"), [] if os.getuid() == 0 else ["--map-root-user"]
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    command = [unshare or "unshare", "--mount", *root, "/bin/sh", "-c", script, str(file)]
    with contextlib.suppress(OSError):
        if subprocess.run([*command, "/bin/true"], capture_output=True, check=False).returncode == 0:
            return command
    pytest.skip("a process cannot have an /etc/hosts of its own here (unshare --mount)")


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False
