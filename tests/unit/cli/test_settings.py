"""Where options come from: flag, environment, settings file, default; and mistakes in them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from broker_fl.cli import commands
from broker_fl.identity.joinfile import JoinFile
from tests.unit.cli.calling import call

APP = """
from broker_fl import Update

class Adder:
    def train(self, model, task):
        return Update(model={"w": model["w"] + task.parameters.get("step", 1)}, num_examples=1)

    def evaluate(self, model, task):
        return {"level": float(model["w"][0])}

def make_learner():
    return Adder()

def initial_model():
    import numpy as np
    return {"w": np.zeros(3, "f4")}
"""


@pytest.fixture
def folder(folder: Path) -> Path:
    (folder / "app.py").write_text(APP, encoding="utf-8")
    return folder


def settings_of_run(folder: Path) -> dict[str, object]:
    (path,) = (folder / "runs").glob("*/settings.json")
    settings: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return settings


def num_learners(folder: Path, *args: str, **environment: str) -> object:
    result = call("run", "app.py", "--no-live", "--rounds", "1", *args, **environment)
    assert result.exit_code == 0, result.output
    return settings_of_run(folder)["num_learners"]


def test_the_file_wins_over_the_default(folder: Path) -> None:
    (folder / "broker-fl.toml").write_text("learners = 2", encoding="utf-8")
    assert num_learners(folder) == 2


def test_the_environment_wins_over_the_file(folder: Path) -> None:
    (folder / "broker-fl.toml").write_text("learners = 2", encoding="utf-8")
    assert num_learners(folder, BROKER_FL_LEARNERS="3") == 3


def test_the_flag_wins_over_the_environment(folder: Path) -> None:
    assert num_learners(folder, "--learners", "4", BROKER_FL_LEARNERS="3") == 4


def test_a_table_of_a_command_wins_over_what_is_for_all(folder: Path) -> None:
    (folder / "broker-fl.toml").write_text("learners = 2\n[run]\nlearners = 5", encoding="utf-8")
    assert num_learners(folder) == 5


def test_another_file_may_be_named_before_or_behind_the_command_or_in_the_environment(folder: Path) -> None:
    (folder / "broker-fl.toml").write_text("nonsense = 1", encoding="utf-8")
    other = folder / "other.toml"
    other.write_text("rounds = 1\nlearners = 2\n[run]\nlive = false", encoding="utf-8")
    for args, environment in (
        (("--config", str(other), "run", "app.py"), {}),
        (("run", "app.py", "--config", str(other)), {}),
        (("run", "app.py"), {"BROKER_FL_CONFIG": str(other)}),
    ):
        result = call(*args, **environment)
        assert result.exit_code == 0, result.output
        assert "2 of 2 learners" in result.output


def test_named_values_may_be_a_table(folder: Path) -> None:
    (folder / "broker-fl.toml").write_text("[run]\nparameter = { step = 5 }", encoding="utf-8")
    result = call("run", "app.py", "--no-live", "--rounds", "2", "--learners", "1")
    assert "level 10" in result.output


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lerners = 2", "unknown setting 'lerners': did you mean 'learners'?"),
        ("tls-ca = 'a.pem'", "unknown setting 'tls-ca': did you mean 'tls_ca'?"),
        ("zzz = 2", "unknown setting 'zzz': no command has an option of that name"),
        ("[run]\nbroker = 2", "unknown setting 'run.broker': allowed are job, learners, "),
        ("[models.export]\nversoin = 2", "unknown setting 'models.export.versoin': did you mean 'version'?"),
        ("[runn]\nlearners = 2", "unknown setting 'runn': did you mean 'run'?"),
        ("learners = ", "is not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_names_file_and_key_and_what_is_allowed(
    folder: Path, text: str, told: str
) -> None:
    (folder / "broker-fl.toml").write_text(text, encoding="utf-8")
    result = call("run", "app.py")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: broker-fl.toml")
    assert told in result.stderr


def test_a_wrong_value_says_where_it_is_from(folder: Path) -> None:
    (folder / "broker-fl.toml").write_text('learners = "many"', encoding="utf-8")
    assert "(from broker-fl.toml)" in call("run", "app.py").stderr
    told = call("run", "app.py", BROKER_FL_LEARNERS="some").stderr
    assert "(from environment variable BROKER_FL_LEARNERS)" in told


def test_a_file_that_is_named_must_be_there(folder: Path) -> None:
    result = call("--config", "nowhere.toml", "jobs")
    assert result.exit_code == 2
    assert (
        result.stderr == "Error: the settings file nowhere.toml cannot be read: No such file or directory\n"
    )


def test_every_command_has_help_and_the_version_is_told() -> None:
    names = commands.list_commands(click.Context(commands))
    assert {"run", "controller", "learner", "submit", "watch", "up", "doctor"} <= set(names)
    for command in ([], *([name] for name in names), ["models", "list"], ["models", "export"]):
        result = call(*command, "--help")
        assert result.exit_code == 0, result.output
        assert "--verbose" in result.output or "Commands:" in result.output
    assert call("--version").output.startswith("broker-fl 0.")


def test_an_unknown_command_is_refused() -> None:
    result = call("runn")
    assert result.exit_code == 2
    assert "No such command 'runn'" in result.stderr


# ---------------------------------------------------------------- secrets, and join files


def test_a_file_with_a_password_that_others_can_read_is_warned_of(folder: Path) -> None:
    path = folder / "broker-fl.toml"
    for text in ('management_password = "geheim"', 'broker = "amqps://site:geheim@h/"', 'federation = "f"'):
        path.write_text(text, encoding="utf-8")
        for mode in (0o600, 0o644):
            path.chmod(mode)
            told = call("learner", "app.py", "--id", "a b").stderr
            assert ("holds a password" in told) is (mode == 0o644 and "geheim" in text)
            assert "geheim" not in told


JOBS, TOKEN = ("jobs",), ("join", "no.token")
CONTROLLER = ("controller", "--connect-timeout", "0.01", "--broker", "amqp://127.0.0.1:1/")


@pytest.mark.parametrize(
    ("command", "option", "url", "instead"),
    [
        (JOBS, "broker", "amqps://site:geheim@far.example.org/fl", r"or a join file \(--join FILE\)"),
        (JOBS, "broker", "amqps://site:geheim@localhost,far:5671/fl", "BROKER_FL_BROKER"),
        (JOBS, "broker", "amqps://site:ge@heim@far", "settings file of mode 0600"),
        (JOBS, "broker", "amqps://site:geheim@localhost.example.org", "BROKER_FL_BROKER"),
        (JOBS, "proxy", "http://site:geheim@10.0.0.7:3128", "BROKER_FL_PROXY"),
        (JOBS, "proxy", "site:geheim@gate:3128", "BROKER_FL_PROXY"),
        (TOKEN, "proxy", "http://site:geheim@gate:3128", "BROKER_FL_PROXY"),
        (CONTROLLER, "store", "rediss://:geheim@far/0", r"BROKER_FL_STORE, or in a settings file of mode"),
        (CONTROLLER, "store", "rediss://far/0?password=geheim", "BROKER_FL_STORE"),
    ],
)
def test_a_password_for_another_machine_is_not_taken_from_a_command_line(
    folder: Path, command: tuple[str, ...], option: str, url: str, instead: str
) -> None:
    told = call(*command, f"--{option}", url)
    assert told.exit_code == 2
    assert f"Invalid value for '--{option}'" in told.stderr
    assert "can be read by everybody on this machine" in told.stderr
    assert re.search(instead, " ".join(told.stderr.split()))
    assert not re.search("ge@?heim", told.output)


@pytest.mark.parametrize(
    ("command", "option", "url"),
    [
        (JOBS, "broker", "amqp://u:geheim@127.0.0.1:1/"),
        (JOBS, "broker", "amqp://u:geheim@[::1]:1,localhost:1/"),
        (CONTROLLER, "store", "redis://:geheim@127.0.0.1:1/0"),
    ],
)
def test_one_for_this_machine_is_warned_of(
    folder: Path, command: tuple[str, ...], option: str, url: str
) -> None:
    told = call(*command, f"--{option}", url)
    assert told.exit_code == 3, "there is nobody"
    assert f"Warning: --{option}: the password in it can be read by everybody" in told.stderr
    assert "geheim" not in told.output


@pytest.mark.parametrize("url", ["amqp://127.0.0.1:1/", "amqp://site@127.0.0.1:1/fl?heartbeat=5"])
def test_a_url_without_a_password_may_be_typed(folder: Path, url: str) -> None:
    assert "can be read by everybody" not in call(*JOBS, "--broker", url).stderr


@pytest.fixture
def joined(folder: Path) -> Path:
    path = folder / "a.join"
    JoinFile(
        federation="hospitals", role="learner", name="a", broker="amqp://127.0.0.1:1/fl", password="geheim"
    ).write(path)
    return path


def test_a_join_file_wins_over_the_environment_and_not_over_what_is_typed(folder: Path, joined: Path) -> None:
    others = {"BROKER_FL_BROKER": "amqp://127.0.0.1:2/", "BROKER_FL_FEDERATION": "other"}
    learner = ("learner", "app.py", "--join", str(joined), "--connect-timeout", "0.01")
    told = call(*learner, **others)
    assert told.exit_code == 3
    assert "hospitals.learner.a@127.0.0.1:1 (virtual host 'fl')" in told.stderr
    assert "leave out --broker\n" in call(*learner, "--broker", "amqp://h/", **others).stderr


def test_a_controller_needs_the_join_file_of_one(folder: Path, joined: Path) -> None:
    told = call("controller", "--join", str(joined))
    assert told.exit_code == 2
    assert "that of learner 'a' of federation 'hospitals'; a controller needs" in told.stderr


def test_only_a_join_file_is_called_a_secret(folder: Path, joined: Path) -> None:
    (folder / "app.py").chmod(0o644)
    told = call("controller", "--join", "app.py").stderr
    assert "is no join file" in told
    assert "secret" not in told
    joined.chmod(0o644)
    assert "a.join holds a secret" in call("controller", "--join", str(joined)).stderr
