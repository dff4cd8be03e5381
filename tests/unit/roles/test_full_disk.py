"""The disk under the store fills up while a job runs, and room is made again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

GOES_ON = """
import logging, resource, sqlite3, sys
from pathlib import Path
from tests.unit.roles.stage import WAIT_S, Adds, Stage, done, eventually, model_of, same

logging.basicConfig(level=logging.WARNING, filename=sys.argv[2])
UNLIMITED = resource.getrlimit(resource.RLIMIT_FSIZE)
SIZE = 300_000


def versions(path):
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)
        return [number for (number,) in db.execute("SELECT version FROM versions ORDER BY version")]


with Stage(Path(sys.argv[1])) as stage:
    fast, slow = Adds(1.0), Adds(3.0)
    controller = stage.controller()
    stage.host({"fast": fast, "slow": slow})
    slow.gate.clear()
    job = stage.submit(model_of(0.0, size=SIZE), rounds=3, min_learners=2, keep_versions=4)
    assert slow.at_work.wait(WAIT_S)
    # A limit on file sizes makes the kernel refuse a write as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, UNLIMITED[1]))
    slow.gate.set()
    eventually(lambda: "trying again" in Path(sys.argv[2]).read_text(), "that the version is refused")
    assert controller.status().is_without_store
    before = versions(stage.path)
    resource.setrlimit(resource.RLIMIT_FSIZE, UNLIMITED)
    done(job)
    same(job.model(), model_of(6.0, size=SIZE))
    assert (before, versions(stage.path)) == ([0], [0, 1, 2, 3])
    assert (fast.num_trained, slow.num_trained, controller.error) == (3, 3, None)
"""


def test_a_job_waits_for_room_on_a_full_disk_and_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """In the middle of a round; nothing of the version that did not fit can be seen."""
    log = tmp_path / "log"
    # What a process measures of its coverage could not be written either.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", GOES_ON, str(tmp_path), str(log)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"trying again: .*state\.sqlite fails: .*make room on its disk", log.read_text())
    assert "Traceback" not in log.read_text() + done.stderr
