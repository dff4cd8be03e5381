"""What ``broker-fl run`` makes of a job file before it begins: defaults of its own, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from broker_fl.cli import commands

APP = """
import numpy as np
from broker_fl import Update
from broker_fl.interfaces import Combined

class Adder:
    def __init__(self, context):
        self.attributes = {"region": "eu" if context.index < 4 else "us"}

    def train(self, model, task):
        return Update(model={"w": model["w"] + 1}, num_examples=1)

    def evaluate(self, model, task):
        return {"level": float(model["w"][0])}

class Capped:
    def __init__(self, most=1.0):
        raise AssertionError("never made")
    def begin(self, given): ...

def make_learner(context):
    return Adder(context)

def initial_model():
    return {"w": np.zeros(3, "f4")}
"""
ASYNCHRONOUS = '[protocol]\nname = "asynchronous"\n[termination]\nversions = 2\n'


@pytest.fixture
def folder(folder: Path) -> Path:
    (folder / "app.py").write_text(APP, encoding="utf-8")
    return folder


def run(folder: Path, job: str, *args: str) -> Result:
    (folder / "job.toml").write_text(job, "utf-8")
    return CliRunner().invoke(commands, ["run", "app.py", "--job", "job.toml", "--no-live", *args])


@pytest.mark.parametrize(
    ("job", "min_learners"),
    [
        ('[rule]\nname = "trimmed_mean"\nmax_attackers = 2', 10),
        ('[rule]\nname = "trimmed_mean"\nmax_attackers = 2\n[protocol]\nname = "semi_synchronous"', 10),
        (f'{ASYNCHRONOUS}[rule]\nname = "fedbuff"\nbuffer_size = 5', 10),
        ('[selector]\nname = "all"\nwhere = {region = "eu"}', 4),
        ('[simulation]\nfaults = [{name = "kill", fraction = 0.3, at_round = 1}]\nheartbeat_s = 0.05', 7),
    ],
)  # fmt: skip
def test_min_learners_are_all_that_can_take_part_unless_the_file_gives_them(
    folder: Path, job: str, min_learners: int
) -> None:
    rounds = () if "asynchronous" in job.splitlines()[1] else ("--rounds", "2")
    result = run(folder, job, *rounds)
    assert result.exit_code == 0, result.output
    (path,) = (folder / "runs").iterdir()
    written = json.loads((path / "settings.json").read_text("utf-8"))["job"]
    assert written["protocol"]["min_learners"] == min_learners


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ("[protocol]\nquorum = 50", "'protocol.quorum' = 50 is more than can ever be there: 10 learners are"),
        ("[protocol]\nmin_learners = 11", "'protocol.min_learners' = 11 is more than can ever be there: 10"),
        (
            '[protocol]\nquorum = 5\n[selector]\nname = "all"\nwhere = {region = "eu"}',
            "'protocol.quorum' = 5 is more than can ever be there: 4 of 10 learners match 'selector.where'",
        ),
        (
            '[selector]\nname = "all"\nwhere = {region = "asia"}',
            "'selector.where' = {'region': 'asia'} matches nobody: 10 learners are there, which tell region",
        ),
        (
            '[simulation]\nfaults = [{name = "kill", fraction = 1.0, at_round = 1}]',
            "'simulation.faults' kill all 10 learners that could train, and none comes back",
        ),
        (
            '[rule]\nname = "own"\nrule = "Caped"',
            "app.py has no rule 'Caped' (a class with the method begin)",
        ),
        ('[rule]\nname = "own"\nrule = "Capped"\nsettings = {mst = 2}', "unexpected keyword argument 'mst'"),
        ("[protocol]\nquorum = 'all'", "it must be a share (a number above 0, to 1) or a count (a whole"),
        ('[simulation]\nspeeds = 3\n[protocol]\nquorum = "x"', "protocol.quorum = 'x'"),
    ],
)
def test_what_could_never_run_is_refused_before_anything_begins(folder: Path, job: str, told: str) -> None:
    result = run(folder, job)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert "tried" not in result.stderr
    assert not (folder / "runs").exists()


def test_learners_who_come_back_or_die_after_the_end_are_no_reason_to_refuse(folder: Path) -> None:
    fault = '{name = "kill", fraction = 1.0, at_round = %s}'
    for when in ("1, back_after_s = 0.1", "3"):
        job = f"[simulation]\nheartbeat_s = 0.05\nfaults = [{fault % when}]"
        result = run(folder, job, "--rounds", "2")
        assert result.exit_code == 0, result.output


def test_a_failure_of_the_simulation_names_no_file_of_this_library(folder: Path) -> None:
    job = '[simulation]\nfaults = [{name = "fail", probability = 1.0}]\n[protocol]\nmax_retries = 0'
    result = run(folder, job, "--learners", "2", "--rounds", "1")
    assert result.exit_code == 1
    (path,) = (folder / "runs").iterdir()
    events = (path / "events.jsonl").read_text("utf-8")
    assert "the simulation has this training fail" in events
    assert ".py" not in events
