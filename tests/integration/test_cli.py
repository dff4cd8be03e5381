"""The command line as a user has it: processes, a real broker, a real store."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from broker_fl.model import Model
from broker_fl.workers.servers import RabbitMQNode, RedisNode, rabbitmq_available, redis_available
from tests.integration.daemons import Daemon, adding_job
from tests.integration.shell import Shell, command_lines

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
ROOT = Path(__file__).parents[2]
RULES_PAGE = (ROOT / "docs" / "rules.md").read_text("utf-8")
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
    daemon = shell.start("controller")
    daemon.wait_said("is active")
    return daemon


def start_learners(shell: Shell, count: int = 3) -> list[Daemon]:
    learners = [shell.start("learner", "app.py", "--id", f"site-{index}") for index in range(count)]
    for learner in learners:
        learner.wait_said("takes tasks")
    return learners


# ---------------------------------------------------------------- whole jobs


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
    controller.terminate()
    assert "left: its process was asked to end" in controller.said


def write_own_rule(shell: Shell) -> None:
    """The documentation's rule with learners, and its job."""
    source, job = (
        re.search(rf"## A rule of your own.*?```{language}\n(.*?)```", RULES_PAGE, re.DOTALL)[1]  # type: ignore[index]
        for language in ("python", "toml")
    )
    (shell.folder / "app.py").write_text(f"{OWN_LEARNER}\n{source}", "utf-8")
    rest = '[model]\napp = "app.py"\n[protocol]\nmin_learners = 2\n[termination]\nrounds = 3\n'
    (shell.folder / "job.toml").write_text(job + rest, "utf-8")


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


# ---------------------------------------------------------------- ends


def test_sigterm_lets_a_learner_finish_its_task(shell: Shell, controller: Daemon) -> None:
    (learner,) = start_learners(shell, 1)
    slow = JOB.replace("min_learners = 3", "min_learners = 1").replace("rounds = 5", "rounds = 1")
    (shell.folder / "job.toml").write_text(slow + "[parameters]\npause_s = 4.0\n", "utf-8")
    job = shell.run("submit", "job.toml").strip()
    watching = shell.start("watch", job, "--json")
    watching.wait_said('"task_accepted"')
    learner.terminate()
    assert (shell.folder / "trained.log").read_text("utf-8") == "site-0 0\n"
    watching.wait_said('"version_committed"')


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_a_learner_at_once(
    shell: Shell,
    controller: Daemon,
    number: signal.Signals,
    code: int,
) -> None:
    (learner,) = start_learners(shell, 1)
    slow = JOB.replace("min_learners = 3", "min_learners = 1") + "[parameters]\npause_s = 3600.0\n"
    (shell.folder / "job.toml").write_text(slow, "utf-8")
    watching = shell.start("watch", shell.run("submit", "job.toml").strip(), "--json")
    watching.wait_said('"task_accepted"')
    learner.process.send_signal(number)
    learner.wait_said("finishing what is being worked on")
    learner.process.send_signal(number)
    learner.ended(code)


def test_a_learner_whose_task_takes_too_long_hands_it_back(shell: Shell, controller: Daemon) -> None:
    learner = shell.start("learner", "app.py", "--id", "slow", "--drain", "0.5")
    learner.wait_said("takes tasks")
    slow = JOB.replace("min_learners = 3", "min_learners = 1") + "[parameters]\npause_s = 3600.0\n"
    (shell.folder / "job.toml").write_text(slow, "utf-8")
    watching = shell.start("watch", shell.run("submit", "job.toml").strip(), "--json")
    watching.wait_said('"task_accepted"')
    learner.terminate()
    watching.wait_said('"learner_left"')


def test_a_daemon_that_waits_for_its_broker_ends_at_a_signal(shell: Shell) -> None:
    learner = shell.start("learner", "app.py", "--id", "a", BROKER_FL_BROKER="amqp://a:b@127.0.0.1:1/")
    learner.wait_said("trying again")
    learner.terminate()


# ---------------------------------------------------------------- what goes wrong


NOBODY = "amqp://user:s3cret@127.0.0.1:1/"


@pytest.mark.parametrize(
    "args",
    [["jobs"], ["learner", "app.py", "--id", "a", "--connect-timeout", "0.1"], ["submit", "job.toml"]],
)
def test_no_broker_is_exit_code_3(shell: Shell, args: list[str]) -> None:
    told = shell.refusal(*args, code=3, BROKER_FL_BROKER=NOBODY)
    assert "nothing listens there" in told
    assert "s3cret" not in shell.stderr


@pytest.mark.parametrize("args", [["jobs"], ["controller"], ["learner", "app.py", "--id", "a"]])
def test_a_wrong_password_is_exit_code_2(shell: Shell, amqp_url: str, args: list[str]) -> None:
    host = amqp_url.rpartition("@")[2]
    told = shell.refusal(*args, code=2, BROKER_FL_BROKER=f"amqp://nobody:s3cret@{host}")
    assert "user or password is wrong" in told
    assert "s3cret" not in shell.stderr


def test_a_url_that_is_none_is_exit_code_2(shell: Shell) -> None:
    assert "broker URL: it must look like" in shell.refusal("jobs", "--broker", "localhost:5672", code=2)
    assert "not a usable Redis URL" in shell.refusal("controller", "--store", "http://a", code=2)


def test_an_unreachable_store_is_exit_code_3(shell: Shell) -> None:
    store = "redis://:s3cret@127.0.0.1:1/0"
    told = shell.refusal("controller", "--connect-timeout", "0.1", code=3, BROKER_FL_STORE=store)
    assert "redis://127.0.0.1:1/0" in told
    assert "s3cret" not in shell.stderr


def test_a_store_that_evicts_is_exit_code_2(shell: Shell, private_redis: RedisNode) -> None:
    with Redis.from_url(private_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    told = shell.refusal("controller", code=2, BROKER_FL_STORE=private_redis.url)
    assert "maxmemory-policy 'allkeys-lru'" in told
    assert "CONFIG SET maxmemory-policy noeviction" in told


def test_an_app_that_is_not_usable_is_exit_code_2(shell: Shell) -> None:
    (shell.folder / "broken.py").write_text("import nowhere_to_be_found", "utf-8")
    (shell.folder / "raises.py").write_text("def make_learner():\n    raise OSError('no disk')", "utf-8")
    told = shell.refusal("learner", "broken.py", "--id", "a", code=2)
    assert "broken.py:1: no module 'nowhere_to_be_found'" in told
    assert "no disk" in shell.refusal("learner", "raises.py", "--id", "a", code=2)
    assert "no such file" in shell.refusal("learner", "nothing.py", "--id", "a", code=2)


def test_a_learner_that_cannot_have_its_id_says_so(shell: Shell, controller: Daemon) -> None:
    start_learners(shell, 1)
    second = shell.start("learner", "app.py", "--id", "site-0", "--takeover-timeout", "0.5")
    told = second.ended(2)
    assert "is another learner site-0 running?" in told.splitlines()[-1]
    assert "waiting for up to" in told


def test_a_learner_takes_over_when_the_other_one_ends(shell: Shell, controller: Daemon) -> None:
    (first,) = start_learners(shell, 1)
    second = shell.start("learner", "app.py", "--id", "site-0")
    second.wait_said("is another learner site-0 running?")
    first.terminate()
    second.wait_said("takes tasks")
    second.terminate()


def test_bad_names_and_values_are_usage_errors(shell: Shell) -> None:
    assert "'a b' must be 1 to 64 letters" in shell.refusal("learner", "app.py", "--id", "a b", code=2)
    assert "is not NAME=VALUE" in shell.refusal("learner", "app.py", "--id", "a", "-a", "eu", code=2)
    assert "must be 1 to 64 letters" in shell.refusal("jobs", "--federation", "a.b", code=2)


def test_an_unknown_job_is_exit_code_1(shell: Shell, controller: Daemon) -> None:
    for command in (["watch"], ["stop"], ["models", "list"], ["models", "export"]):
        assert "has no job 'nope'; it has none" in shell.refusal(*command, "nope", code=1)
    start_learners(shell)
    job = shell.run("submit", "job.toml", "--watch").split()[0]
    assert f"the newest are {job}" in shell.refusal("watch", "nope", code=1)
    assert "version" in shell.refusal("models", "export", job, "--version", "77", code=1)


def test_no_controller_is_exit_code_3(shell: Shell) -> None:
    told = shell.refusal("jobs", "--timeout", "0.5", code=3)
    assert "no controller of federation" in told
    assert "is one running (broker-fl controller)?" in told


def test_a_job_without_an_initial_model_is_refused(shell: Shell) -> None:
    (shell.folder / "job.toml").write_text("", "utf-8")
    assert "job.toml names no initial model" in shell.refusal("submit", "job.toml", code=2)
    assert "nowhere.safetensors" in shell.refusal(
        "submit",
        "job.toml",
        "--model",
        "nowhere.safetensors",
        code=2,
    )


def test_a_standby_takes_over_when_the_controller_ends(shell: Shell, controller: Daemon) -> None:
    standby = shell.start("controller")
    standby.wait_said("standing by")
    controller.terminate()
    standby.wait_said("epoch 2")
    standby.terminate()


# ---------------------------------------------------------------- doctor


def test_doctor_finds_nothing_wrong_where_nothing_is(shell: Shell, controller: Daemon) -> None:
    findings = json.loads(shell.run("doctor", "--json"))
    assert {one["level"] for one in findings if one["about"] == "Broker"} == {"ok"}
    assert "a controller is connected" in shell.run("doctor")
    for role in ("learner", "driver"):
        shell.run("doctor", "--role", role)


def test_doctor_says_what_is_wrong_and_no_password(shell: Shell, amqp_url: str) -> None:
    wrong = amqp_url.replace("://", "://x", 1).replace("@", "s3cret@", 1)
    shown = shell.run(
        "doctor", code=1, BROKER_FL_BROKER=wrong, BROKER_FL_STORE="redis://:s3cret@127.0.0.1:1/0"
    )
    assert "user or password is wrong" in shown
    assert "redis://127.0.0.1:1/0 does not answer" in shown
    assert "s3cret" not in shown + shell.stderr


def test_doctor_tells_a_mailbox_in_use(shell: Shell, controller: Daemon) -> None:
    start_learners(shell, 1)
    shown = shell.run("doctor", "--role", "learner", "--id", "site-0")
    assert "a learner of this name is running" in shown


def test_doctor_names_missing_permissions_and_leaves_nothing(
    shell: Shell,
    private_rabbitmq: RabbitMQNode,
    private_amqp_url: str,
    federation: str,
) -> None:
    vhost = private_amqp_url.rpartition("/")[2]
    private_rabbitmq.control("add_user", federation, "weak")
    private_rabbitmq.control("set_permissions", "-p", vhost, federation, "", "", ".*")
    try:
        url = f"amqp://{federation}:weak@127.0.0.1:{private_rabbitmq.port}/{vhost}"
        shown = shell.run("doctor", "--role", "learner", code=1, BROKER_FL_BROKER=url)
        assert f"configure queue bfl.{federation}.learner.doctor-" in shown
        assert "rabbitmqctl set_permissions" in shown
        shell.run("doctor", BROKER_FL_BROKER=private_amqp_url)
        listed = private_rabbitmq.control("list_queues", "-p", vhost, "--quiet", "name")
        listed += private_rabbitmq.control("list_exchanges", "-p", vhost, "--quiet", "name")
        assert "bfl." not in listed
    finally:
        private_rabbitmq.control("delete_user", federation)


# ---------------------------------------------------------------- a cluster in a folder


UP_TIMEOUT_S = 200.0
"""`up` starts two servers and, in processes of their own, an app that imports scikit-learn: 15 s of two idle
cores, a minute and more of busy ones. What it does not find in time it says itself.
"""


@pytest.fixture
def cluster(shell: Shell) -> Iterator[Path]:
    if not (rabbitmq_available() and redis_available()):
        pytest.skip("rabbitmq-server and redis-server are not installed")
    shell.timeout_s = UP_TIMEOUT_S
    yield shell.folder / ".cluster"
    shell.run("down")


@pytest.mark.timeout(300)
def test_up_runs_a_job_and_down_ends_what_it_started(shell: Shell, cluster: Path) -> None:
    """By the words that README.md and `up` itself give, on the example that is the default."""
    shown = shell.run("up", "--learners", "3")
    settings = cluster / "broker-fl.toml"
    assert (settings.stat().st_mode & 0o777, cluster.stat().st_mode & 0o777) == (0o600, 0o700)
    password = settings.read_text("utf-8").partition("broker-fl:")[2].partition("@")[0]
    assert password
    assert password not in shown + shell.stderr
    logs = "".join(path.read_text("utf-8") for path in cluster.glob("*.out"))
    assert password not in "".join(line for _, line in command_lines()) + logs

    clean = {f"BROKER_FL_{name}": "" for name in ("BROKER", "STORE", "FEDERATION")}
    example = str(ROOT / "examples" / "job.toml")
    shell.run("--config", str(settings), "submit", example, "--watch", **clean)  # type: ignore[arg-type]
    assert shell.run("status").count("learner-") >= 3
    assert "run already" in shell.refusal("up", code=2)

    shell.run("down")
    assert shell.run("status") == "nothing runs in .cluster\n"
    shell.run("down", "--delete")
    assert not cluster.exists()


@pytest.mark.timeout(300)
def test_up_gives_the_controller_the_rules_of_its_app(shell: Shell, cluster: Path) -> None:
    write_own_rule(shell)
    shell.run("up", "--learners", "2", "--app", "app.py")
    clean = {f"BROKER_FL_{name}": "" for name in ("BROKER", "STORE", "FEDERATION")}
    settings = ["--config", str(cluster / "broker-fl.toml")]
    done = shell.run(*settings, "submit", "job.toml", "--watch", **clean)  # type: ignore[arg-type]
    shell.run(*settings, "models", "export", done.split()[0], "--out", "final.safetensors", **clean)  # type: ignore[arg-type]
    assert Model.load(shell.folder / "final.safetensors")["w"].tolist() == pytest.approx([2.4] * 3)


def test_up_that_fails_half_way_leaves_nothing(shell: Shell, cluster: Path) -> None:
    (shell.folder / "app.py").write_text(APP.replace("return Adder()", "raise OSError('no disk')"), "utf-8")
    told = shell.refusal("up", "--learners", "2", "--app", "app.py", code=2)
    assert "ended while it started" in told
    assert "no disk" in told
    assert shell.run("status") == "nothing runs in .cluster\n"


def test_down_ends_no_process_that_reused_a_number(shell: Shell, cluster: Path) -> None:
    cluster.mkdir()
    with subprocess.Popen(["sleep", "60"]) as other:
        (cluster / "learner-0.pid").write_text(json.dumps({"pid": other.pid, "born": "1"}), "utf-8")
        shell.run("down")
        assert other.poll() is None
        other.kill()
