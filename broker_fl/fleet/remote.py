"""One machine over SSH. Its key is verified, always: a host that ``known_hosts`` does not know is refused."""

from __future__ import annotations

import errno
import importlib.resources
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker_fl.errors import BrokerFLError, SettingError
from broker_fl.fleet.inventory import Host

if TYPE_CHECKING:
    import asyncssh

log = logging.getLogger(__name__)
CONNECT_TIMEOUT_S = 20.0
RUN_SCRIPT = (
    "import json, sys; given = json.load(sys.stdin); scope = {'__name__': 'machine'}; "
    "exec(given['script'], scope); print(json.dumps(scope['main'](given['request'])))"
)


class HostFailed(BrokerFLError):
    """Something could not be done on a machine."""


class Remote:
    """A machine that is connected."""

    def __init__(self, connection: asyncssh.SSHClientConnection, host: Host) -> None:
        self._connection = connection
        self._host = host

    async def do(self, action: str, timeout_s: float, **request: Any) -> dict[str, Any]:
        """Have it done by ``machine.py``.

        Raises:
            HostFailed: it could not be done.
        """
        script = importlib.resources.files("broker_fl.fleet").joinpath("machine.py").read_text("utf-8")
        given = {"script": script, "request": {"action": action, "folder": self._host.folder, **request}}
        import asyncssh

        try:
            done = await self._connection.run(
                f"{_quoted(self._host.python)} -c {_quoted(RUN_SCRIPT)}",
                input=json.dumps(given),
                timeout=timeout_s,
            )
        except asyncssh.TimeoutError as error:
            raise HostFailed(f"{action}: no answer within {timeout_s:.0f} s") from error
        except (asyncssh.Error, OSError) as error:
            raise HostFailed(f"{action}: {error}") from error
        return _answer(action, done, self._host.python)

    async def send(self, source: Path, target: str) -> None:
        """Copy a file there.

        Raises:
            HostFailed: it could not be written.
        """
        import asyncssh

        try:
            async with self._connection.start_sftp_client() as sftp:
                await sftp.put(str(source), target)
                await sftp.chmod(target, 0o600)
        except (asyncssh.Error, OSError) as error:
            raise HostFailed(f"{source.name} could not be sent: {error}") from error


def _answer(action: str, done: asyncssh.SSHCompletedProcess, python: str) -> dict[str, Any]:
    said = str(done.stdout or "").strip()
    try:
        answer: dict[str, Any] = json.loads(said.splitlines()[-1]) if said else {}
    except ValueError:
        answer = {}
    if not answer and done.exit_status != 0:
        words = str(done.stderr or "").strip().splitlines()[-1:] or [f"exit code {done.exit_status}"]
        raise HostFailed(f"{action}: {python} said: {words[0]}")
    if "error" in answer:
        raise HostFailed(str(answer["error"]))
    return answer


@asynccontextmanager
async def connected(host: Host, known_hosts: Path | None) -> AsyncIterator[Remote]:
    """Connect to a machine; OpenSSH's own configuration, agent and keys are used as ``ssh`` uses them.

    Raises:
        HostFailed: it is not reached, not known, or lets nobody in.
        SettingError: the extra is not installed, or the key cannot be read.
    """
    try:
        import asyncssh
    except ImportError as error:
        raise SettingError("fleet needs the package asyncssh: pip install 'broker-fl[fleet]'") from error
    try:
        connection = await asyncssh.connect(host.address, **_options(host, known_hosts))
    except asyncssh.HostKeyNotVerifiable as error:
        where = known_hosts or "~/.ssh/known_hosts"
        raise HostFailed(
            f"its host key is not the one in {where}, or there is none ({error}): compare its fingerprint "
            "with what its operator says, and add it"
        ) from error
    except asyncssh.PermissionDenied as error:
        raise HostFailed(f"it lets nobody in with this key: {error}") from error
    except (asyncssh.KeyImportError, FileNotFoundError) as error:
        raise SettingError(f"a key cannot be read: {error}") from error
    except (asyncssh.Error, OSError, TimeoutError) as error:
        raise HostFailed(f"it is not reached: {_why_not(host, error)}") from error
    async with connection:
        yield Remote(connection, host)


def _why_not(host: Host, error: Exception) -> str:
    text = str(error)
    if f"[Errno {errno.ECONNREFUSED}]" in text:  # of several addresses, too, where asyncio has a text only
        port = f"port {host.port}" if host.port is not None else "its SSH port"
        return f"nothing listens at {host.address}, {port} (connection refused)"
    return text or f"no answer within {CONNECT_TIMEOUT_S:.0f} s"


def _options(host: Host, known_hosts: Path | None) -> dict[str, Any]:
    """What is not given is left to OpenSSH's configuration."""
    given = {
        "known_hosts": known_hosts,
        "port": host.port,
        "username": host.user,
        "client_keys": host.identity_file,
    }
    return {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalive_interval": 15,
        "preferred_auth": "publickey",  # nobody is there to type a password
        **{name: value if isinstance(value, int) else str(value) for name, value in given.items() if value},
    }


def _quoted(word: str) -> str:
    """For a POSIX shell."""
    return "'" + word.replace("'", "'\\''") + "'"
