"""Trackers on the command line, and what a user reads who ends watching."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from broker_fl.cli.jobs import watch_job
from broker_fl.interfaces import Metrics, TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.record.runfolder import RunFolder
from broker_fl.simulation import Federation
from broker_fl.wire.events import Event
from broker_fl.wire.job import JobSpec, Termination
from tests.unit.cli.calling import call

RUN = ("run", "app.py:make_learner", "--learners", "2", "--rounds", "3", "--no-live")


def test_a_run_is_also_in_tensorboard(folder: Path) -> None:
    assert call(*RUN, "--tensorboard", "boards").exit_code == 0
    (board,) = (folder / "boards").iterdir()
    (run,) = (folder / "runs").iterdir()
    assert board.name == next(RunFolder.open(run).events()).job
    assert [path.name.startswith("events.out.tfevents") for path in board.iterdir()] == [True]


def test_a_password_for_mlflow_is_not_typed(folder: Path) -> None:
    there = sorted(folder.iterdir())
    done = call(*RUN, "--mlflow", "https://ana:s3cret@mlflow.example.org")
    assert done.exit_code == 2
    assert "BROKER_FL_MLFLOW" in done.stderr
    assert "s3cret" not in done.output
    assert sorted(folder.iterdir()) == there


@pytest.mark.parametrize(("option", "package"), [("--tensorboard", "tensorboardX"), ("--mlflow", "mlflow")])
def test_a_tracker_that_is_not_installed_is_told_before_anything_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, option: str, package: str
) -> None:
    for name in (package, f"{package}.tracking"):
        monkeypatch.setitem(sys.modules, name, None)  # what import finds of a package that is not there
    (folder / "job.toml").write_text("[model]\napp = 'app.py'\n", "utf-8")
    there = sorted(folder.iterdir())
    submit = ("submit", "job.toml", "--watch", "--broker", "amqp://a:b@127.0.0.1:1/")
    for command in (RUN, submit, ("watch", "latest", *submit[3:])):
        result = call(*command, option, "x")
        assert result.exit_code == 2, result.output
        assert "is not installed: pip install 'broker-fl[" in result.stderr
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == there


def test_a_tracker_that_cannot_be_written_does_not_end_the_run(folder: Path) -> None:
    result = call(*RUN, "--tensorboard", "app.py/boards")
    assert result.exit_code == 0
    assert "round 3 of 3" in result.output
    assert result.stderr.count("gets no more events of this job, which goes on: NotADirectoryError") == 1


def test_the_history_of_runs_is_json_a_line_each(folder: Path) -> None:
    assert call(*RUN).exit_code == 0
    (run,) = map(str, (folder / "runs").iterdir())
    lines = call("report", run, run, "--json").output.splitlines()
    assert [len(json.loads(line)["rounds"]) for line in lines] == [4, 4]
    assert call("report", run, "--json", "--out", "history.json").output == "history.json\n"
    whole = json.loads((folder / "history.json").read_text())
    assert [task["round_trip_s"] > 0 for task in whole["tasks"]] == [True] * 8
    assert [version["parent"] for version in whole["versions"]] == [None, 0, 1, 2]


class Adder:
    def train(self, model: Arrays, task: TaskContext) -> Update:
        return Update(model={"w": model["w"] + 1}, num_examples=1)

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        return {}


def test_who_ends_watching_is_told_that_the_job_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    spec = JobSpec(evaluate=False, termination=Termination(rounds=2))
    with Federation({"a": Adder()}) as federation:
        job = federation.submit(spec, {"w": np.zeros(2, np.float32)})
        with pytest.raises(click.exceptions.Exit) as ended:
            watch_job(job, interrupted, live=False, as_json=False, out=None)
        assert ended.value.exit_code == 130
        assert job.wait().state == "done"
    told = capsys.readouterr().err
    assert f"job {job.id} goes on" in told
    assert f"broker-fl stop {job.id}" in told
