"""What is done on a machine of a fleet: sent there over SSH, run by that machine's Python (3.11 or newer).

Standard library only: nothing is installed there yet. ``main`` takes a request and gives an answer, both
JSON. A daemon's folder has its files, ``daemon.json`` (what to run), ``pid.json`` (what runs) and ``log``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LOG_BYTES = 16 << 20
KEPT_VENVS = 2


class Failure(Exception):
    """Said to who asked."""


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Do it; an answer with ``error`` if that fails."""
    try:
        os.umask(0o077)
        folder = Path.home() / request["folder"]
        answer: dict[str, Any] = ACTIONS[request["action"]](folder, request)
    except (Failure, OSError, subprocess.SubprocessError) as error:
        return {"error": str(error)}
    return answer


# ---------------------------------------------------------------- deploying


def look(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What has to be sent: files that are not there, or are others."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the machine's, not ours
        raise Failure(f"its Python is {sys.version.split()[0]}; 3.11 or newer is needed (setting python)")
    incoming = folder / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    wanted = [
        [daemon["name"], file["name"]]
        for daemon in request["daemons"]
        for file in daemon["files"]
        if _digest(_home(folder, daemon["name"]) / file["name"]) != file["digest"]
    ]
    return {
        "has_venv": (_venv(folder, request) / "done").exists(),
        "wanted": wanted,
        "incoming": str(incoming),
    }


def install(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Make the virtual environment, whole or not at all."""
    venv = _venv(folder, request)
    shutil.rmtree(venv, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(venv)], "make a virtual environment")
    requirement = request["requirement"]
    if request["is_file"]:
        requirement = str(folder / "incoming" / requirement)
    if request["extras"]:
        requirement += f"[{','.join(request['extras'])}]"
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    _run([*pip, *request["pip_options"], requirement], "install the package")
    (venv / "done").touch()
    return {}


def place(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Put what was sent where it belongs; ``changed`` names the daemons that are not what they were."""
    changed = []
    for daemon in request["daemons"]:
        home = _home(folder, daemon["name"])
        home.mkdir(parents=True, exist_ok=True)
        for file in daemon["files"]:
            arrived = folder / "incoming" / f"{daemon['name']}.{file['name']}"
            if arrived.exists():
                arrived.chmod(file["mode"])
                arrived.replace(home / file["name"])
            (home / file["name"]).chmod(file["mode"])
        plan = {
            "program": str(_venv(folder, request) / "bin" / "broker-fl"),
            "arguments": daemon["arguments"],
            "environment": daemon["environment"],
            "files": {file["name"]: file["digest"] for file in daemon["files"]},
        }
        if _read(home / "daemon.json") != plan:
            _write(home / "daemon.json", plan)
            changed.append(daemon["name"])
    _tidy(folder, request)
    return {"changed": changed}


def _tidy(folder: Path, request: dict[str, Any]) -> None:
    """Forget older virtual environments, but for the newest of them and those that a daemon runs from."""
    shutil.rmtree(folder / "incoming", ignore_errors=True)
    used = {_venv(folder, request)}
    for home in (folder / "daemons").iterdir():
        for name in ("daemon.json", "pid.json"):
            if program := _read(home / name).get("program"):
                used.add(Path(program).parent.parent)
    others = [path for path in (folder / "venvs").iterdir() if path not in used]
    others.sort(key=lambda path: path.stat().st_mtime)
    for path in others[: -KEPT_VENVS + 1]:
        shutil.rmtree(path, ignore_errors=True)


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Failure(f"could not {what}: {' '.join(done.stdout.strip().splitlines()[-3:])}")


# ---------------------------------------------------------------- running


def start(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Start a daemon unless it runs, and wait until it is ready; it outlives who asked."""
    name = request["name"]
    home = _home(folder, name)
    plan = _read(home / "daemon.json")
    if not plan:
        raise Failure(f"{name} is not deployed here")
    if (pid := _pid(home)) is not None:
        return {"state": "running", "pid": pid, "was_running": True}
    log = home / "log"
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(home / "log.1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hears, log.open("ab") as output:
        # As systemd does (sd_notify(3)): the daemon says READY=1. An abstract address leaves no file.
        address = f"broker-fl-{os.getpid()}-{name}"
        hears.bind(f"\0{address}")
        process = subprocess.Popen(
            [*_scope(), plan["program"], *plan["arguments"]],
            cwd=home,
            env={**os.environ, **plan["environment"], "NOTIFY_SOCKET": f"@{address}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        _write(home / "pid.json", {"pid": process.pid, "began": _began(process.pid), **plan})
        is_ready = _is_ready(process, hears, request["ready_s"])
    if (code := process.poll()) is not None:
        raise Failure(f"{name} ended at once with exit code {code}: {_last_words(log)}")
    return {"state": "running", "pid": process.pid, "was_running": False, "is_ready": is_ready}


def _is_ready(process: subprocess.Popen[bytes], hears: socket.socket, ready_s: float) -> bool:
    """Wait until it says so, or ends, or it takes too long."""
    hears.settimeout(0.1)
    give_up_at = time.monotonic() + ready_s
    while process.poll() is None and time.monotonic() < give_up_at:
        with contextlib.suppress(TimeoutError):
            if hears.recv(256) == b"READY=1":
                return True
    return False


def status(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Of each daemon that is deployed or asked for."""
    return {"daemons": {name: _status(_home(folder, name)) for name in request["names"]}}


def _status(home: Path) -> dict[str, Any]:
    plan = _read(home / "daemon.json")
    if not plan:
        return {"state": "not deployed"}
    ran = _read(home / "pid.json")
    pid = _pid(home)
    if pid is None:
        # Who is asked to stop takes the file away: one that is left is of a daemon that ended by itself.
        return {"state": "ended", "last": _last_words(home / "log")} if ran else {"state": "stopped"}
    outdated = any(ran.get(name) != plan[name] for name in plan)
    return {"state": "running", "pid": pid, "for_s": _age_s(home), "outdated": outdated}


def stop(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Ask a daemon to end in good order; after ``patience_s`` it is killed."""
    home = _home(folder, request["name"])
    pid = _pid(home)
    if pid is None:
        (home / "pid.json").unlink(missing_ok=True)
        return {"state": "stopped", "was_running": False}
    was_killed = not _ended_after(home, pid, signal.SIGTERM, request["patience_s"])
    if was_killed and not _ended_after(home, pid, signal.SIGKILL, 10.0):
        raise Failure(f"{request['name']} (process {pid}) does not end")
    (home / "pid.json").unlink(missing_ok=True)
    return {"state": "stopped", "was_running": True, "was_killed": was_killed}


def _ended_after(home: Path, pid: int, number: int, timeout_s: float) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    give_up_at = time.monotonic() + timeout_s
    while _pid(home) is not None:
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.1)
    return True


def _scope() -> list[str]:
    """Where logind ends what a session leaves behind, a scope of its own keeps the daemon."""
    if shutil.which("systemd-run") is None or shutil.which("loginctl") is None:
        return []
    asked = subprocess.run(
        ["loginctl", "show-user", "--property=Linger", str(os.getuid())],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return (
        ["systemd-run", "--user", "--scope", "--quiet", "--"] if asked.stdout.strip() == "Linger=yes" else []
    )


def _pid(home: Path) -> int | None:
    """Of the daemon, while it runs; a process that has its number by chance began at another time."""
    ran = _read(home / "pid.json")
    pid: int | None = ran.get("pid")
    return pid if pid is not None and _began(pid) == ran["began"] is not None else None


def _began(pid: int) -> str | None:
    """When a process began, in the kernel's ticks (proc(5), stat, field 22); None if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _age_s(home: Path) -> float:
    return max(0.0, time.time() - (home / "pid.json").stat().st_mtime)


def _last_words(log: Path) -> str:
    """The last line of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:500] if lines else ""


# ---------------------------------------------------------------- files


def _venv(folder: Path, request: dict[str, Any]) -> Path:
    return folder / "venvs" / str(request["venv"])


def _home(folder: Path, name: str) -> Path:
    return folder / "daemons" / name


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _write(path: Path, value: dict[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value, indent=1), "utf-8")
    new.replace(path)


ACTIONS = {"look": look, "install": install, "place": place, "start": start, "status": status, "stop": stop}
