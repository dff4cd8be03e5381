"""Whole jobs, from the first command to the model."""

from __future__ import annotations

import json

import pytest

from broker_fl.model import Model
from tests.integration.cli.apps import JOB, start_learners, write_own_rule
from tests.integration.daemons import Daemon
from tests.integration.shell import Shell

SCAFFOLD_APP = """
import numpy as np
from broker_fl import Update
from broker_fl.frameworks import ControlVariate

def train(model, task):  # 1/2 a (w - b)^2, with another a and b at each learner: FedAvg would end elsewhere
    a, b = [(0.3, 1.0), (1.0, -2.0), (3.0, 5.0)][int(task.learner[-1])]
    w, control = model["w"], ControlVariate(task)
    for _ in range(20):
        w -= 0.05 * control.corrected("w", a * (w - b))
    return Update(model={"w": w}, num_examples=1, num_steps=20, control=control.result())

def evaluate(model, task):
    return {}

def initial_model():
    return {"w": np.zeros(2)}
"""
OPTIMUM = (0.3 * 1.0 + 1.0 * -2.0 + 3.0 * 5.0) / (0.3 + 1.0 + 3.0)


def test_a_whole_job_with_three_learner_processes(shell: Shell, controller: Daemon) -> None:
    learners = start_learners(shell)
    shown = shell.run("submit", "job.toml", "--watch", "--out", "runs")
    job = shown.splitlines()[0]
    (run,) = (shell.folder / "runs").iterdir()
    assert Model.load(run / "model.safetensors")["w"].tolist() == [5.0] * 1000
    assert {path.name for path in run.iterdir()} == {
        "events.jsonl", "settings.json", "model.safetensors", "report.html",
    }  # fmt: skip

    (listed,) = json.loads(shell.run("jobs", "--json"))
    assert (listed["job"], listed["state"], listed["version"]) == (job, "done", 5)
    assert job in shell.run("jobs")
    there = json.loads(shell.run("learners", "--json"))
    assert sorted(one["learner"] for one in there) == ["site-0", "site-1", "site-2"]
    assert "site-2" in shell.run("learners")
    assert [one["version"] for one in json.loads(shell.run("models", "list", "latest", "--json"))] == [
        3,
        4,
        5,
    ]
    assert "version" in shell.run("models", "list", job)
    shell.run("models", "export", job[:12], "--version", "4", "--out", "made/four.safetensors")
    assert Model.load(shell.folder / "made" / "four.safetensors")["w"][0] == 4
    kinds = [json.loads(line)["kind"] for line in shell.run("watch", job, "--json").splitlines()]
    assert (kinds[0], kinds[-1], kinds.count("version_committed")) == ("job_submitted", "job_finished", 5)

    for learner in learners:
        learner.terminate()
    controller.wait_said("left: its process was asked to end")
    controller.terminate()


def test_the_own_rule_of_the_documentation_runs_embedded_and_over_rabbitmq(shell: Shell) -> None:
    """Of 1000 examples 40 count, of 10 all: a round adds (40 * 1 + 10 * 0) / 50 = 0.8."""
    write_own_rule(shell)
    shell.run("run", "app.py", "--job", "job.toml", "--learners", "2", "--no-live")
    (run,) = (shell.folder / "runs").iterdir()
    assert Model.load(run / "model.safetensors")["w"].tolist() == pytest.approx([2.4] * 3)

    shell.start("controller", "--app", "app.py").wait_said("is active")
    for learner in ("learner-0", "learner-1"):
        shell.start("learner", "app.py", "--id", learner).wait_said("takes tasks")
    job_id = shell.run("submit", "job.toml", "--watch").split()[0]
    shell.run("models", "export", job_id, "--out", "final.safetensors")
    assert Model.load(shell.folder / "final.safetensors")["w"].tolist() == pytest.approx([2.4] * 3)
    job = shell.folder / "job.toml"
    job.write_text(job.read_text("utf-8").replace("Capped", "Caped"), "utf-8")
    told = shell.refusal("submit", "job.toml", code=2)
    assert "app.py has no rule 'Caped'" in told
    assert "it has Capped" in told


def test_scaffold_finds_the_optimum_of_all_embedded_and_over_rabbitmq(shell: Shell) -> None:
    (shell.folder / "app.py").write_text(SCAFFOLD_APP, "utf-8")
    settings = {"model": 'app = "app.py"', "rule": 'name = "scaffold"', "protocol": "min_learners = 3"}
    tables = [f"[{table}]\n{fields}\n" for table, fields in settings.items()]
    (shell.folder / "job.toml").write_text("".join(tables) + "[termination]\nrounds = 60\n", "utf-8")
    shell.run("run", "app.py", "--job", "job.toml", "--learners", "3", "--no-live")
    (run,) = (shell.folder / "runs").iterdir()
    embedded = Model.load(run / "model.safetensors")["w"]
    assert embedded.tolist() == pytest.approx([OPTIMUM] * 2, abs=1e-5)

    shell.start("controller").wait_said("is active")
    for index in range(3):
        shell.start("learner", "app.py", "--id", f"learner-{index}").wait_said("takes tasks")
    job_id = shell.run("submit", "job.toml", "--watch").split()[0]
    shell.run("models", "export", job_id, "--out", "final.safetensors")
    found = Model.load(shell.folder / "final.safetensors")["w"]
    assert found.tolist() == pytest.approx(embedded.tolist(), rel=1e-12)


def test_virtual_learners_have_numbered_ids_and_attributes(shell: Shell, controller: Daemon) -> None:
    host = shell.start("learner", "app.py", "--id", "many", "--count", "3", "-a", "region=eu", "-a", "gpus=2")
    host.wait_said("2 more take tasks")
    shell.run("submit", "job.toml", "--watch")
    there = {one["learner"]: one["attributes"] for one in json.loads(shell.run("learners", "--json"))}
    assert there == {f"many-{index}": {"region": "eu", "gpus": 2} for index in range(3)}
    host.terminate()
    controller.terminate()


def test_a_group_is_a_host_of_learners_that_are_made_when_needed(shell: Shell, controller: Daemon) -> None:
    host = shell.start("learner", "app.py", "--group", "many", "--count", "200", "-a", "region=eu")
    host.wait_said("199 more take tasks")
    job = shell.run("submit", "job.toml", "--watch").split()[0]
    there = {one["learner"]: one["attributes"] for one in json.loads(shell.run("learners", "--json"))}
    assert there == {f"many-{index}": {"region": "eu"} for index in range(200)}
    events = [json.loads(line) for line in shell.run("watch", job, "--json").splitlines()]
    committed = [event for event in events if event["kind"] == "version_committed"]
    assert [event["num_learners"] for event in committed] == [200] * 5
    host.terminate()
    controller.terminate()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--count", "3"), "give one of --id and --group"),
        (("--id", "a", "--group", "b"), "give one of --id and --group"),
        (
            ("--id", "a", "--count", "20000"),
            "20000 learners with a mailbox each are too many for one process",
        ),
    ],
)
def test_a_learner_or_a_group_is_named(shell: Shell, arguments: tuple[str, ...], reason: str) -> None:
    assert reason in " ".join(shell.refusal("learner", "app.py", *arguments, code=2).split())


def test_a_job_can_be_stopped_and_keeps_what_it_committed(shell: Shell, controller: Daemon) -> None:
    start_learners(shell)
    (shell.folder / "job.toml").write_text(JOB.replace("rounds = 5", "rounds = 100000"), "utf-8")
    job = shell.run("submit", "job.toml", "--app", "app.py").strip()
    watching = shell.start("watch", job, "--json")
    watching.wait_said('"version_committed"')
    assert shell.run("stop", "latest").startswith(f"{job}: stopped")
    watching.ended(1)
    assert json.loads(shell.run("jobs", "--json"))[0]["state"] == "stopped"
    shell.run("models", "export", job)
    assert Model.load(shell.folder / "model.safetensors")["w"][0] >= 1
