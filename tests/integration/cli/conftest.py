"""The command line as a user has it: processes, a real broker, a real store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli.apps import APP, JOB
from tests.integration.daemons import Daemon
from tests.integration.shell import Shell


@pytest.fixture
def shell(tmp_path: Path, amqp_url: str, redis_url: str, federation: str) -> Iterator[Shell]:
    (tmp_path / "app.py").write_text(APP, "utf-8")
    (tmp_path / "job.toml").write_text(JOB, "utf-8")
    mine = {"BROKER_FL_BROKER": amqp_url, "BROKER_FL_STORE": redis_url, "BROKER_FL_FEDERATION": federation}
    shell = Shell(tmp_path, mine)
    yield shell
    shell.end()


@pytest.fixture
def controller(shell: Shell) -> Daemon:
    daemon = shell.start("controller", "--lease", "300")  # however long this machine holds it up
    daemon.wait_said("is active")
    return daemon
