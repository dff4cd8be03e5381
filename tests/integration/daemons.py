"""Daemons that a test starts as a user would, and reads from outside: their log, their pages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEADLINE_S = 120.0
APP = """
import logging
import numpy as np
from broker_fl import Update

log = logging.getLogger("app")

class Adder:
    def train(self, model, task):
        log.info("training on my own data")
        if task.parameters.get("poison") and task.learner.endswith("1"):
            return Update(model={"w": model["w"] * float("nan")}, num_examples=1)
        return Update(model={"w": model["w"] + 1}, num_examples=1)

    def evaluate(self, model, task):
        return {"level": float(model["w"][0])}

def make_learner(context):
    return Adder()

def initial_model():
    return {"w": np.zeros(1000, "f4")}
"""


def adding_job(*, min_learners: int, rounds: int) -> str:
    """A job file for ``app.py``."""
    return f"""
name = "adding"
[model]
app = "app.py"
[protocol]
min_learners = {min_learners}
[termination]
rounds = {rounds}
"""


def command(*args: str) -> list[str]:
    """``broker-fl`` as a command line, which everybody here may read: no URL in it has a password."""
    assert not [word for word in args if re.search(r"://[^/@]*:[^/@]+@", word)], "use BROKER_FL_… for it"
    return [sys.executable, "-m", "broker_fl.cli", *args]


class Daemon:
    """``broker-fl`` with its standard error in a file."""

    def __init__(self, folder: Path, name: str, *args: str, environment: dict[str, str]) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command(*args),
                cwd=folder,
                env=inherited() | environment,
                stdout=log,
                stderr=log,
            )

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8")

    def wait_said(self, text: str) -> None:
        until(lambda: text in self.said or self.process.poll() is not None, lambda: self.said)
        assert text in self.said, self.said

    def ended(self, code: int) -> str:
        """Wait for its end; what it said."""
        assert self.process.wait(DEADLINE_S) == code, self.said
        assert "Traceback" not in self.said
        return self.said

    def terminate(self, code: int = 0) -> str:
        self.process.terminate()
        return self.ended(code)

    def end(self) -> None:
        """At once, if it runs."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log, as JSON."""
        return [json.loads(line) for line in self.said.splitlines()]

    @property
    def url(self) -> str:
        """Where its pages are."""
        until(lambda: "/readyz are at" in self.said or self.process.poll() is not None, lambda: self.said)
        found = re.search(r"/readyz are at (http://[\d.:]+)", self.said)
        assert found, self.said
        return found[1]

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of one of its pages."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=DEADLINE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except urllib.error.URLError as error:
            raise AssertionError(f"{error}; exit code {self.process.poll()}; {self.said}") from error

    def samples(self) -> dict[str, float]:
        """Its metrics: name with labels → value."""
        status, text = self.page("/metrics")
        assert status == 200
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def is_ready(self) -> bool:
        return self.page("/readyz")[0] == 200


@contextmanager
def started(folder: Path, environment: dict[str, str]) -> Iterator[Callable[..., Daemon]]:
    """Start daemons by name and arguments, and what only its environment may say: everybody on the machine
    sees a command line. All have ended when the block has.
    """
    daemons: list[Daemon] = []

    def start(name: str, *args: str, **own: str) -> Daemon:
        daemons.append(Daemon(folder, name, *args, environment=environment | own))
        return daemons[-1]

    try:
        yield start
    finally:
        for daemon in daemons:
            daemon.end()


def until(condition: Callable[[], object], why: Callable[[], object] = lambda: "it did not happen") -> None:
    """Wait for something that is not told of."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_at, why()
        time.sleep(0.02)


def inherited() -> dict[str, str]:
    """The environment of whoever runs the tests, without settings of broker-fl."""
    return {name: value for name, value in os.environ.items() if not name.startswith("BROKER_FL_")}
