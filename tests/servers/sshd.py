"""A real sshd on loopback: its own configuration, host key and home, and one throw-away key that lets in."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from broker_fl.workers.servers.process import free_port

SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
PROGRAM = shutil.which("sshd", path=SBIN)
DEADLINE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Sshd:
    """Where it is, and what one needs to come in."""

    port: int
    key: Path
    known_hosts: Path
    home: Path
    """Of who comes in, instead of the user's own."""
    user: str = getpass.getuser()


@contextlib.contextmanager
def running_sshd(folder: Path) -> Iterator[Sshd]:
    """Run one while the block runs. sshd wants its path in full, and as root a folder in /run."""
    assert PROGRAM is not None
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(command, check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    home = folder / "home"
    home.mkdir()
    port = free_port()
    host_key = (folder / "host.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    (folder / "sshd_config").write_text(
        f"""
ListenAddress 127.0.0.1:{port}
HostKey {folder / "host"}
PidFile none
AuthorizedKeysFile {folder / "authorized"}
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv HOME={home}
Subsystem sftp internal-sftp
"""
    )
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM, "-D", "-e", "-f", str(folder / "sshd_config")],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait(port, process)
        yield Sshd(port=port, key=folder / "user", known_hosts=folder / "known_hosts", home=home)
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + DEADLINE_S
    while True:
        assert process.poll() is None, "sshd did not start"
        try:
            socket.create_connection(("127.0.0.1", port), DEADLINE_S).close()
        except OSError:
            assert time.monotonic() < give_up_at, "sshd does not answer"
            time.sleep(0.05)
        else:
            return
