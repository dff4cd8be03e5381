"""A user's shell: commands as processes, in a folder of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.daemons import DEADLINE_S, Daemon, command, inherited


@dataclass
class Shell:
    """Runs ``broker-fl`` in a folder, with settings in its environment, and ends what is still running."""

    folder: Path
    environment: dict[str, str]
    daemons: list[Daemon] = field(default_factory=list)
    timeout_s: float = DEADLINE_S
    """Of a command."""

    def run(self, *args: str, code: int = 0, **environment: str) -> str:
        """The command's standard output; its standard error is in ``self.stderr``."""
        done = subprocess.run(
            command(*args),
            cwd=self.folder,
            env=inherited() | self.environment | environment,
            capture_output=True,
            text=True,
            timeout=self.timeout_s,
            check=False,
        )
        self.stderr = done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def refusal(self, *args: str, code: int, **environment: str) -> str:
        """The one line that a command which is not done says."""
        self.run(*args, code=code, **environment)
        lines = [line for line in self.stderr.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, self.stderr
        return lines[0]

    def start(self, *args: str, **environment: str) -> Daemon:
        name = f"daemon-{len(self.daemons)}"
        self.daemons.append(Daemon(self.folder, name, *args, environment=self.environment | environment))
        return self.daemons[-1]

    def end(self) -> None:
        for daemon in self.daemons:
            daemon.end()


def command_lines() -> Iterator[tuple[str, str]]:
    """Of every process there is."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        yield f"the command line of {entry.name}", line
