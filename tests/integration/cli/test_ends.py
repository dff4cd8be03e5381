"""Signals, and who takes over."""

from __future__ import annotations

import signal

import pytest

from tests.integration.cli.apps import JOB, start_learners
from tests.integration.daemons import Daemon
from tests.integration.shell import Shell

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


def test_a_learner_that_cannot_have_its_id_says_so(shell: Shell, controller: Daemon) -> None:
    start_learners(shell, 1)
    second = shell.start("learner", "app.py", "--id", "site-0", "--takeover-timeout", "8")
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


def test_a_standby_takes_over_when_the_controller_ends(shell: Shell, controller: Daemon) -> None:
    standby = shell.start("controller")
    standby.wait_said("standing by")
    controller.terminate()
    standby.wait_said("epoch 2")
    standby.terminate()
