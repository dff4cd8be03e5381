"""``broker-fl run`` and ``demo``, embedded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result

from broker_fl.model import Model
from broker_fl.record.runfolder import RunFolder
from tests.unit.cli.calling import APP, call


def run_folder(folder: Path) -> Path:
    (path,) = (folder / "runs").iterdir()
    return path


def test_a_run_ends_with_the_right_model_and_everything_in_its_folder(folder: Path) -> None:
    result = call("run", "app.py:make_learner", "--learners", "3", "--rounds", "4", "--no-live")
    assert result.exit_code == 0, result.output
    run = run_folder(folder)
    assert Model.load(run / "model.safetensors")["w"].tolist() == [8.0, 8.0, 8.0]
    kinds = [json.loads(line)["kind"] for line in (run / "events.jsonl").read_text("utf-8").splitlines()]
    assert (kinds[0], kinds[-1], kinds.count("version_committed")) == ("job_submitted", "job_finished", 4)
    assert json.loads((run / "settings.json").read_text("utf-8"))["app"] == "app.py:make_learner"
    assert "<svg" in (run / "report.html").read_text("utf-8")
    assert str(run.name) in result.output
    assert "  model.safetensors (version 4)\n" in result.output


def test_a_job_file_says_what_the_command_line_does_not(folder: Path) -> None:
    (folder / "job.toml").write_text(
        'name = "mine"\n[termination]\nrounds = 7\n[parameters]\na = 1\nb = 2', encoding="utf-8"
    )
    call("run", "app.py", "--job", "job.toml", "--learners", "2", "-p", "b=3", "-p", "c=text", "--no-live")
    job = json.loads((run_folder(folder) / "settings.json").read_text("utf-8"))["job"]
    assert (job["name"], job["termination"]["rounds"], job["protocol"]["min_learners"]) == ("mine", 7, 2)
    assert job["parameters"] == {"a": 1, "b": 3, "c": "text"}


def test_a_run_may_start_from_a_model_file(folder: Path) -> None:
    call("run", "app.py", "--learners", "1", "--rounds", "1", "--no-live", "--out", "first")
    (first,) = (folder / "first").iterdir()
    (folder / "job.toml").write_text(f'model.file = "{first}/model.safetensors"', encoding="utf-8")
    call("run", "app.py", "--job", "job.toml", "--learners", "1", "--rounds", "1", "--no-live")
    assert Model.load(run_folder(folder) / "model.safetensors")["w"].tolist() == [2.0, 2.0, 2.0]


def test_a_job_that_fails_is_exit_code_1_and_says_why(folder: Path) -> None:
    (folder / "bad.py").write_text(
        APP.replace("return Update", "raise ValueError('no data today'); return Update"), "utf-8"
    )
    result = call("run", "bad.py", "--learners", "2", "--rounds", "2", "--no-live")
    assert result.exit_code == 1
    assert "failed" in result.output
    assert "no data today" in result.output
    assert "  model.safetensors (the initial model: no version was made from it)\n" in result.output
    assert Model.load(run_folder(folder) / "model.safetensors")["w"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["nowhere.py"], "nowhere.py: no such file"),
        (["app.py:make_lerner"], "make_lerner"),
        (["syntax.py"], "SyntaxError"),
        (["raises.py"], "make_learner() raised RuntimeError: no disk"),
        (["app.py", "--job", "nowhere.toml"], "the job file nowhere.toml cannot be read"),
        (["app.py", "--job", "bad.toml"], "unknown field 'rouns'"),
        (["app.py", "-p", "epochs"], "'epochs' is not NAME=VALUE"),
        (["app.py", "-p", "x=nan"], "the job's settings: parameters.x: nan is not a finite number"),
        (["app.py", "--learners", "0"], "0 is not in the range"),
        (["app.py", "--out", "app.py"], "cannot be made"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder: Path, args: list[str], told: str) -> None:
    (folder / "syntax.py").write_text("def make_learner(:", "utf-8")
    (folder / "raises.py").write_text(
        APP.replace("return Adder", "raise RuntimeError('no disk'); return Adder"), "utf-8"
    )
    (folder / "bad.toml").write_text("rouns = 3", "utf-8")
    result = call("run", *args, "--no-live")
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert sum("Error: " in line for line in result.stderr.splitlines()) == 1


def test_a_missing_report_extra_is_said_and_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = call("run", "app.py", "--learners", "1", "--rounds", "1", "--no-live")
    assert result.exit_code == 0, result.output
    assert "pip install" in result.stderr
    assert (run_folder(folder) / "model.safetensors").is_file()
    assert not (run_folder(folder) / "report.html").exists()


def test_the_same_seed_gives_the_same_model(folder: Path) -> None:
    (folder / "seeded.py").write_text(
        APP.replace("np.zeros(3, 'f4')", "np.random.rand(3).astype('f4')"), "utf-8"
    )
    digests = set()
    for out in ("a", "b"):
        call("run", "seeded.py", "--learners", "2", "--rounds", "2", "--seed", "7", "--no-live", "--out", out)
        (path,) = (folder / out).iterdir()
        digests.add(Model.load(path / "model.safetensors").digest)
    assert len(digests) == 1


def test_the_report_command_compares_runs(folder: Path) -> None:
    for out in ("a", "b"):
        call("run", "app.py", "--learners", "1", "--rounds", "1", "--no-live", "--out", out)
    runs = [str(next((folder / out).iterdir())) for out in ("a", "b")]
    assert call("report", *runs).output == "report.html\n"
    assert (folder / "report.html").is_file()
    told = call("report", "app.py")
    assert (told.exit_code, "is no run folder" in told.stderr) == (2, True)


SLOW = APP.replace(
    "return Update", "import time; print('training', flush=True); time.sleep(0.1); return Update"
)


def test_ctrl_c_stops_the_job_and_keeps_what_was_committed(folder: Path) -> None:
    (folder / "slow.py").write_text(SLOW, "utf-8")
    command = [
        sys.executable,
        "-m",
        "broker_fl.cli",
        "run",
        "slow.py",
        "--learners",
        "1",
        "--rounds",
        "9999",
        "--no-live",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "round 2 " in line:  # the app prints too, at the same time
                break
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    assert "stopped" in out
    assert Model.load(run_folder(folder) / "model.safetensors")["w"][0] >= 2


def run_with_files_up_to(num_bytes: int, *args: str) -> subprocess.CompletedProcess[str]:
    """What ``broker-fl`` does where no file can grow beyond that, as on a disk that is full."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes}, {num_bytes})); "
        "from broker_fl.cli import main; main()"
    )
    # What a process measures of its coverage could not be written either.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.parametrize("num_bytes", [100_000, 3_000_000, 10_000_000])
def test_a_full_disk_ends_the_run_and_is_named(folder: Path, num_bytes: int) -> None:
    """At the store's beginning, at the initial model, and at a later version."""
    (folder / "large.py").write_text(APP.replace("np.zeros(3, 'f4')", "np.zeros(1_000_000, 'f4')"), "utf-8")
    done = run_with_files_up_to(
        num_bytes, "run", "large.py", "--learners", "2", "--rounds", "9999", "--no-live"
    )
    assert done.returncode == 3, done.stderr
    assert "state.sqlite" in done.stderr
    assert "make room on its disk" in done.stderr
    assert "Traceback" not in done.stderr
    assert (
        "no controller" not in done.stderr
    )  # which is what a driver says that has waited for an answer in vain


def test_the_demo_shows_that_a_federation_is_better_than_training_alone(folder: Path) -> None:
    result = call("demo", "--rounds", "3", "--learners", "4", "--no-live")
    assert result.exit_code == 0, result.output
    cells = [[cell.strip() for cell in line.split("│")] for line in result.output.splitlines()]
    accuracy = {row[1]: float(row[2]) for row in cells if len(row) == 5}
    federation, alone = accuracy["the federation"], accuracy["one learner alone, mean of 4"]
    assert federation > alone
    assert (run_folder(folder) / "report.html").is_file()


SIMULATION = """
protocol.quorum = 0.5
[simulation]
step_s = 0.01
heartbeat_s = 0.5
speeds = { name = "spread", low = 0.1, high = 1.0 }
links = { down_bytes_s = 1e6, latency_s = 0.001 }
faults = [{ name = "kill", learners = ["learner-1"], at_round = 1 }]
"""


def simulate(folder: Path, *args: str, text: str = SIMULATION) -> Result:
    (folder / "counts.py").write_text(APP.replace("num_examples=1", "num_examples=1, num_steps=3"), "utf-8")
    (folder / "job.toml").write_text(text, "utf-8")
    return call("run", "counts.py", "--job", "job.toml", "--learners", "3", "--no-live", *args)


def test_a_run_is_in_the_world_that_the_job_file_describes_and_its_folder_says_which(folder: Path) -> None:
    result = simulate(folder, "--rounds", "3", "--seed", "5")
    assert result.exit_code == 0, result.output
    path = run_folder(folder)
    settings = json.loads((path / "settings.json").read_text("utf-8"))
    assert (settings["simulation"]["seed"], settings["simulation"]["step_s"]) == (5, 0.01)
    assert [one["kills"] for one in settings["learners"]] == [[], [{"at_round": 1}], []]
    assert settings["job"]["protocol"]["min_learners"] == 2  # the round after the death need not wait
    history = RunFolder.open(path).history()
    contributors = [record.contributors for record in history.committed]
    assert contributors == [("learner-0", "learner-1", "learner-2"), *[("learner-0", "learner-2")] * 2]
    for one in settings["learners"]:
        task = history.rounds[0].tasks[one["learner"]]
        assert task.train_s is not None
        assert task.train_s >= 3 * 0.01 / one["speed"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("simulation.sped = 1", "job.toml: unknown field 'simulation.sped': did you mean 'speeds'?"),
        ("simulation.speeds = [0.1]", "simulation.speeds: 1 values were given for 3 learners"),
        (
            SIMULATION.replace("learner-1", "learner-7"),
            "simulation.faults, number 1: there is no learner 'learner-7'",
        ),
    ],
)
def test_a_world_that_cannot_be_is_told_before_anything_is_made(folder: Path, text: str, told: str) -> None:
    result = simulate(folder, text=text)
    assert (result.exit_code, told in result.stderr) == (2, True), result.stderr
    assert not (folder / "runs").exists()


def test_real_learners_have_no_simulated_world(folder: Path) -> None:
    (folder / "job.toml").write_text(SIMULATION, "utf-8")
    result = call("submit", "job.toml")
    assert result.exit_code == 2
    assert "has a table [simulation], which only broker-fl run follows" in result.stderr
