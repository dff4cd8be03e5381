"""A rolling upgrade, with a release of before: its code as it is in the history, in processes of its own.

What may be older or newer than the controller are learners. Drivers and controllers go together
(docs/operations.md), so what the old controller is asked comes from the old command line.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_fl import connect
from broker_fl.coordination.state import JobState
from broker_fl.interfaces import Record
from broker_fl.model import Model
from broker_fl.roles.driver import Job
from broker_fl.wire.job import JobSpec
from tests.integration.daemons import DEADLINE_S, Daemon, started, until

BEFORE = "45bffe77fe408415e7cdd8e790bfd0ec1ea87750"
"""Before answers had an exchange of their own, and before tasks travelled inside of chunks."""
ROOT = Path(__file__).parents[2]
NUM_ROUNDS = 4
SIZE = 5_000
APP = f"""
import time
from pathlib import Path

import broker_fl
import numpy as np
from broker_fl import Update

HERE = Path(__file__).parent


class Site:
    def __init__(self, name):
        self.name, self.number = name, int(name[-1])
        (HERE / f"{{name}}.code").write_text(broker_fl.__file__)

    def train(self, model, task):
        if task.round == 2 and (HERE / "gate").exists():
            (HERE / f"{{self.name}}.holds").touch()
            while (HERE / "gate").exists():
                time.sleep(0.02)
        steps = np.arange({SIZE}, dtype="f4") % 7
        return Update(model={{"w": model["w"] + (self.number + 1) * steps}}, num_examples=(1, 3)[self.number])

    def evaluate(self, model, task):
        return {{"level": float(model["w"].sum())}}


def make_learner(context):
    return Site(context.learner)


def initial_model():
    return {{"w": np.zeros({SIZE}, "f4")}}
"""
EXPECTED = NUM_ROUNDS * np.float32((1 * 1 + 3 * 2) / 4) * (np.arange(SIZE, dtype="f4") % 7)
"""All of it exact in float32: sums and means of such learners have no rounding."""
SPECS: dict[str, dict[str, Any]] = {
    "in one message with its task": {},
    "in chunks": {"transfer": {"chunk_bytes": 4096}},
    "as changes": {"transfer": {"form": "changes"}},
}


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it was."""
    if shutil.which("git") is None or _git("cat-file", "-e", f"{BEFORE}^{{commit}}").returncode:
        pytest.skip(f"the history with commit {BEFORE[:7]} is not here (a shallow clone, or no clone)")
    folder = tmp_path_factory.mktemp("before")
    packed = _git("archive", BEFORE, "broker_fl", "workers")
    assert packed.returncode == 0, packed.stderr
    subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
    return folder


def _git(*args: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", ROOT, *args], capture_output=True, check=False)


def _has_text(path: Path) -> bool:
    return path.exists() and path.read_text() != ""


class Both:
    """Starts daemons and commands of either code."""

    def __init__(self, folder: Path, before: Path, urls: tuple[str, str, str]) -> None:
        amqp_url, redis_url, federation = urls
        self.folder, self._roots = folder, {"old": before, "new": ROOT}
        self._common = {
            "BROKER_FL_BROKER": amqp_url,
            "BROKER_FL_STORE": redis_url,
            "BROKER_FL_FEDERATION": federation,
        }
        self._starters = {age: started(folder, self._environment(age)) for age in self._roots}
        self._start = {age: starter.__enter__() for age, starter in self._starters.items()}
        (folder / "app.py").write_text(APP)

    def _environment(self, age: str) -> dict[str, str]:
        return self._common | {"PYTHONPATH": str(self._roots[age])}

    def controller(self, age: str) -> Daemon:
        return self._start[age](f"controller-{age}", "controller", "--heartbeat", "5", "--lease", "15")

    def learners(self, *ages: str) -> None:
        """One of each age; it is seen to that they run the code that they should."""
        for number, age in enumerate(ages):
            self._start[age](f"site-{number}", "learner", "app.py", "--id", f"site-{number}")
        for number, age in enumerate(ages):
            code = self.folder / f"site-{number}.code"
            until(partial(_has_text, code))
            assert Path(code.read_text()).is_relative_to(self._roots[age])

    def run(self, age: str, *args: str) -> str:
        """A command, to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "broker_fl.cli", *args],
            cwd=self.folder,
            env=dict(os.environ) | self._environment(age),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        for starter in self._starters.values():
            starter.__exit__(None, None, None)


@pytest.fixture
def both(tmp_path: Path, before: Path, amqp_url: str, redis_url: str, federation: str) -> Iterator[Both]:
    both = Both(tmp_path, before, (amqp_url, redis_url, federation))
    yield both
    both.close()


def _spec(**settings: Any) -> JobSpec:
    return JobSpec.model_validate(
        {"protocol": {"min_learners": 2}, "termination": {"rounds": NUM_ROUNDS}, **settings}
    )


def _check(job: Job) -> None:
    """It ended as if all were new: the same model, bit for bit, and nothing refused or sent again."""
    finished = job.wait()
    assert (finished.state, finished.version) == ("done", NUM_ROUNDS), finished.reason
    assert job.model()["w"].tobytes() == EXPECTED.tobytes()
    assert [event.KIND for event in job.events() if event.KIND in ("task_late", "round_retried")] == []


@pytest.mark.parametrize("ages", [("old", "old"), ("old", "new")], ids="-".join)
def test_older_learners_work_with_todays_controller(
    both: Both, ages: tuple[str, str], amqp_url: str, federation: str
) -> None:
    # Who joins while it asks who is there joins twice, and may be sent its first task twice.
    both.controller("new").wait_said("is active")
    both.learners(*ages)
    with connect(amqp_url, federation, timeout_s=DEADLINE_S) as driver:
        for settings in SPECS.values():
            _check(driver.submit(_spec(**settings), Model.of({"w": np.zeros(SIZE, "f4")})))


def test_a_round_that_an_older_controller_began_goes_on_under_todays(
    both: Both, amqp_url: str, federation: str
) -> None:
    gate, holds = both.folder / "gate", [both.folder / f"site-{number}.holds" for number in (0, 1)]
    gate.touch()
    (both.folder / "job.toml").write_text(
        f'model.app = "app.py"\nprotocol.min_learners = 2\ntermination.rounds = {NUM_ROUNDS}\n'
    )
    old = both.controller("old")
    old.wait_said("is active")
    both.learners("old", "new")  # of which the newer one was ahead of its controller
    job = both.run("old", "submit", "job.toml").strip()
    until(lambda: all(path.exists() for path in holds), lambda: old.said)
    old.process.send_signal(signal.SIGTERM)
    assert old.process.wait(DEADLINE_S) == 0, old.said
    both.controller("new")
    with connect(amqp_url, federation, timeout_s=DEADLINE_S) as driver:
        until(lambda: len(driver.learners()) == 2)
        gate.unlink()
        _check(driver.job(job))
        kinds = [event.KIND for event in driver.job(job).events()]
        assert kinds.count("job_resumed") == 1
        assert kinds.count("version_committed") == NUM_ROUNDS


def test_older_software_says_that_it_cannot_read_a_state_of_today(before: Path) -> None:
    """It would train on without what it does not know of; and it must not die of it, with all other jobs."""
    state = JobState(job="j", spec=_spec(), driver="d", update_bytes=1, submitted_at=time.time())
    state.unsaid, state.records["site-1"] = (3, b"event"), Record(num_tasks=1)
    code = (
        "import sys\n"
        "from broker_fl.coordination.state import JobState\n"
        "from broker_fl.errors import FrameRefused\n"
        "try:\n    JobState.unpack(sys.stdin.buffer.read(), 0.0)\n"
        "except FrameRefused as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=state.pack(),
        env=dict(os.environ) | {"PYTHONPATH": str(before)},
        cwd=before,
        capture_output=True,
        check=False,
    )
    assert b"is not readable here" in done.stdout, done.stderr
