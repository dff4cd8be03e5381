"""What goes wrong: one line of words, an exit code, and no password."""

from __future__ import annotations

import re

import pytest
from redis import Redis

from broker_fl.workers.servers import RedisNode
from tests.integration.cli.apps import start_learners
from tests.integration.daemons import Daemon
from tests.integration.shell import Shell

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


def test_who_waits_for_a_controller_is_told_for_what_and_until_when(shell: Shell) -> None:
    shell.run("jobs", "--timeout", "2.5", code=3)
    (waiting,) = [line for line in shell.stderr.splitlines() if line.startswith("waiting for the answer of")]
    assert re.fullmatch(r".* federation \S+, until \d{4}-.*Z \(\d s; --timeout\)", waiting)


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
