"""Other systems to measure against: each with its version, its set-up and its rounds.

A peer has a virtual environment of its own under ``BROKER_FL_BENCH_CACHE``
(``~/.cache/broker_fl-benchmarks``). Its module (or package) is imported here for ``PEER`` and run there, by
the peer's Python, for the measurement; so what is imported here imports nothing but the standard library at
its top, and this module does the same.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ending

ROOT = Path(__file__).parents[2]
SETUP_TIMEOUT_S = 1800
TAIL = 1500
"""Characters of a failed peer's last words that are kept."""


class PeerFailed(Exception):
    """A peer could not be installed, or did not finish its rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another system."""

    name: str
    """Of its folder, and of its module in this package."""
    title: str
    packages: tuple[str, ...]
    """What pip installs, versions pinned."""
    environment: Mapping[str, str]
    """Variables that its processes get: no telemetry, no look for updates."""

    @property
    def folder(self) -> Path:
        """Where its virtual environment is."""
        cache = os.environ.get("BROKER_FL_BENCH_CACHE") or Path.home() / ".cache" / "broker_fl-benchmarks"
        return Path(cache) / self.name

    @property
    def is_there(self) -> bool:
        """Whether it was set up, in these versions."""
        made = self.folder / ".made"
        return made.exists() and made.read_text() == "\n".join(self.packages)

    def set_up(self) -> None:
        """Make its virtual environment, unless it is there.

        Raises:
            PeerFailed: with the last words of pip.
        """
        if self.is_there:
            return
        print(f"Installing {self.title} into {self.folder}: some minutes", flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        pip = [self._python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *self.packages]
        for command in ([sys.executable, "-m", "venv", str(self.folder)], pip):
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=SETUP_TIMEOUT_S
            )
            if done.returncode != 0:
                said = [line for line in done.stderr.splitlines() if "WARNING" not in line]
                raise PeerFailed(f"{self.title} cannot be installed here: {' '.join(said)[-TAIL:]}")
        (self.folder / ".made").write_text("\n".join(self.packages))

    def versions(self) -> dict[str, str]:
        """Of everything in its environment."""
        listing = [self._python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
        done = subprocess.run(listing, capture_output=True, text=True, check=True)
        return {one["name"]: one["version"] for one in json.loads(done.stdout)}

    def run(self, arguments: Sequence[str], timeout_s: float, *, module: str = "") -> dict[str, Any]:
        """Run its module, or another, in its environment; what it measured comes back.

        Raises:
            PeerFailed: with the last words it wrote.
        """
        return run_script(
            self._python,
            module or f"benchmarks.peers.{self.name}",
            arguments,
            timeout_s,
            self.environment,
        )

    @property
    def _python(self) -> str:
        return str(self.folder / "bin" / "python")


def run_script(
    python: str,
    module: str,
    arguments: Sequence[str],
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a module that measures and writes JSON to ``--out``, in a session of its own, which ends with it.

    Raises:
        PeerFailed: with the last words it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "out.json", Path(folder) / "log.txt"
        bin_folder = str(Path(python).parent)
        settings = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            **(environment or {}),
            ending.MARK: (run := f"{os.environ.get(ending.MARK, '')}.{uuid.uuid4().hex}"),
        }
        settings.pop("PYTHONDONTWRITEBYTECODE", None)  # else every start would compile what was changed last
        with log.open("wb") as words:
            process = subprocess.Popen(
                [python, "-m", module, *arguments, "--out", str(out)],
                cwd=folder,
                env=settings,
                stdout=words,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(timeout_s)
                failure = f"status {process.returncode}"
            except subprocess.TimeoutExpired:
                failure = f"not done after {timeout_s:.0f} s"
            finally:
                _end_session(process)
                ending.kill_all(run)
        if out.exists():
            measured: dict[str, Any] = json.loads(out.read_text())
            return measured
        said = log.read_text(errors="replace").strip()[-TAIL:]
        raise PeerFailed(f"{module} {' '.join(arguments)}: {failure}: {said}")


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """What is left of it: daemons that it started, or itself if it hangs."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
