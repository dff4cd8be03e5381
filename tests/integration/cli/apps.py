"""Apps and jobs that a user may have, in files of a shell's folder."""

from __future__ import annotations

import re
from pathlib import Path

from tests.integration.daemons import Daemon, adding_job
from tests.integration.shell import Shell

APP = """
import os
import time
import numpy as np
from broker_fl import Update

class Adder:
    def train(self, model, task):
        time.sleep(float(task.parameters.get("pause_s", 0)))
        with open("trained.log", "a") as log:
            log.write(f"{task.learner} {task.round}\\n")
        return Update(model={"w": model["w"] + 1}, num_examples=1)

    def evaluate(self, model, task):
        return {"level": float(model["w"][0])}

def make_learner(context):
    return Adder()

def initial_model():
    return {"w": np.zeros(1000, "f4")}
"""
JOB = adding_job(min_learners=3, rounds=5)
ROOT = Path(__file__).parents[3]
RULES_PAGE = (ROOT / "docs" / "rules.md").read_text("utf-8")
OWN_LEARNER = """
import numpy as np
from broker_fl import Update

def train(model, task):
    first = task.learner.endswith("0")
    return Update(model={"w": model["w"] + int(first)}, num_examples=1000 if first else 10)

def evaluate(model, task):
    return {}

def initial_model():
    return {"w": np.zeros(3, "f8")}
"""


def start_learners(shell: Shell, count: int = 3) -> list[Daemon]:
    learners = [shell.start("learner", "app.py", "--id", f"site-{index}") for index in range(count)]
    for learner in learners:
        learner.wait_said("takes tasks")
    return learners


def write_own_rule(shell: Shell) -> None:
    """The documentation's rule with learners, and its job."""
    source, job = (
        re.search(rf"## A rule of your own.*?```{language}\n(.*?)```", RULES_PAGE, re.DOTALL)[1]  # type: ignore[index]
        for language in ("python", "toml")
    )
    (shell.folder / "app.py").write_text(f"{OWN_LEARNER}\n{source}", "utf-8")
    rest = '[model]\napp = "app.py"\n[protocol]\nmin_learners = 2\n[termination]\nrounds = 3\n'
    (shell.folder / "job.toml").write_text(job + rest, "utf-8")
