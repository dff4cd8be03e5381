"""What a join file opens, and what it does not."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from broker_fl.apps import load_app
from broker_fl.errors import AccessDenied, LoginRefused, RequestRefused, SettingError
from broker_fl.identity.joinfile import read_join_file
from broker_fl.roles.driver import Driver
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.topology import MAX_GENERATIONS
from broker_fl.transports.rabbitmq import link
from broker_fl.wire import messages as m
from broker_fl.wire.job import JobSpec
from broker_fl.workers.connecting import BrokerAccess
from broker_fl.workers.learner import LearnerOptions, run_learners
from broker_fl.workers.process import exit_code
from tests.integration.daemons import APP, adding_job, inherited
from tests.servers.enrolling import DEADLINE_S, Adds, Operator, eventually


def spec(**settings: Any) -> JobSpec:
    return JobSpec.model_validate({"termination": {"rounds": 2}, **settings})


def test_everybody_with_an_account_of_their_own_runs_a_job(operator: Operator) -> None:
    operator.controller()
    for name in ("hospital-a", "hospital-b"):
        assert operator.learner(operator.enroll(name)).wait_welcomed(DEADLINE_S)
    assert operator.learner(operator.enroll("site", "group"), group="site", count=3).wait_welcomed(DEADLINE_S)
    driver = operator.driver()
    job = driver.submit(spec(protocol={"min_learners": 5}), {"w": np.zeros(3, np.float32)})
    assert job.wait().state == "done"
    np.testing.assert_array_equal(job.model()["w"], np.full(3, 2.0, np.float32))
    assert len(driver.learners()) == 5


def test_an_observer_watches_and_may_do_nothing_else(operator: Operator) -> None:
    operator.controller()
    assert operator.learner(operator.enroll("hospital-a")).wait_welcomed(DEADLINE_S)
    job = operator.driver().submit(spec(), {"w": np.zeros(3, np.float32)})
    observer = operator.driver("bob", "observer")
    seen = observer.job(job.id)
    assert [event.KIND for event in seen.events()][-1] == "job_finished"
    assert len(observer.learners()) == 1
    for forbidden in (seen.stop, seen.model):
        with pytest.raises(RequestRefused, match="only watches"):
            forbidden()


def test_a_mailbox_that_is_lost_is_declared_again_for_who_may_not_declare_it(operator: Operator) -> None:
    operator.controller()
    path = operator.enroll("hospital-a")
    mailbox = operator.topology.mailbox("hospital-a")
    operator.api.delete_queue(operator.vhost, mailbox)
    assert operator.learner(path).wait_welcomed(DEADLINE_S)
    operator.api.delete_queue(operator.vhost, mailbox)  # while it is read
    job = operator.driver().submit(spec(), {"w": np.zeros(3, np.float32)})
    assert job.wait().state == "done"


def test_the_mailbox_of_who_was_revoked_stays_deleted(
    operator: Operator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although a controller hears from it what had waited, and answers; others get theirs back."""
    names = operator.topology
    account = read_join_file(operator.enroll("hospital-a")).account
    gone, lost = names.mailbox("hospital-a"), names.mailbox("hospital-b")
    transport = operator.connect(operator.folder / "learner-hospital-a.join")
    for _ in range(30):
        beat = m.Heartbeat(learner="hospital-a", session="s").pack()
        transport.publish(names.reports, ["hospital-a.heartbeat"], beat, persistent=True)
    assert transport.flush(DEADLINE_S)
    operator.run("revoke", "hospital-a")
    eventually(lambda: not operator.api.connections().get(account.user), "connections being closed")
    transport.close()

    # Not at the root, where commands put handlers of their own.
    monkeypatch.setattr(logging.getLogger("broker_fl"), "handlers", [caplog.handler])
    operator.controller()
    eventually(lambda: "the mailbox of hospital-a is not there" in caplog.text, "an answer coming back")
    path = operator.enroll("hospital-b")
    operator.api.delete_queue(operator.vhost, lost)
    assert operator.learner(path).wait_welcomed(DEADLINE_S)  # by the same thread, later
    assert operator.api.queue(operator.vhost, lost) is not None
    assert operator.api.queue(operator.vhost, gone) is None


def test_an_account_works_for_nobody_else(operator: Operator) -> None:
    path = operator.enroll("hospital-a")
    settings = LearnerSettings(federation=operator.federation)
    host = LearnerHost(operator.connect(path), {"hospital-b": Adds()}, settings)
    with pytest.raises(SettingError, match="this is learner hospital-b"):
        host.start()
    host.abandon()
    with pytest.raises(SettingError, match="no driver"):
        Driver(operator.connect(path), operator.federation)


def test_rotation_closes_what_the_old_password_opened(operator: Operator) -> None:
    old = operator.enroll("hospital-a")
    transport = operator.connect(old)
    account = read_join_file(old).account
    eventually(lambda: operator.api.connections().get(account.user) == 2, "two connections")
    new = operator.folder / "new.join"
    operator.run("rotate", "hospital-a", "--out", str(new))
    eventually(lambda: not operator.api.connections().get(account.user), "connections being closed")
    transport.close()
    with pytest.raises(AccessDenied):
        operator.connect(old)
    operator.connect(new)


def test_revocation_takes_account_connections_and_mailbox(operator: Operator) -> None:
    path = operator.enroll("hospital-a")
    transport = operator.connect(path)
    names = operator.topology
    for who in (("hospital-a", MAX_GENERATIONS + 4), ("hospital-a-1", 0)):  # the first by earlier software
        operator.api.declare(operator.vhost, names.for_learner(*who))
    operator.run("revoke", "hospital-a")
    account = read_join_file(path).account
    left = {queue for queue in operator.api.queues(operator.vhost) if "hospital-a" in queue}
    assert left == {names.mailbox("hospital-a-1")}
    eventually(lambda: not operator.api.connections().get(account.user), "connections being closed")
    assert operator.api.queue(operator.vhost, operator.topology.mailbox("hospital-a")) is None
    transport.close()
    with pytest.raises(AccessDenied):
        operator.connect(path)
    assert "revoked" in operator.run("members").output
    operator.run("enroll", "hospital-a", "--out", str(path), "--force")
    operator.connect(path)


def test_a_revocation_that_was_broken_off_is_finished_by_the_next(operator: Operator) -> None:
    account = read_join_file(operator.enroll("hospital-a")).account
    mailbox = operator.topology.mailbox("hospital-a")
    operator.api.delete_user(account.user)  # and there it was killed
    assert "missing" in operator.run("members").output
    assert "not enrolled" in operator.run("rotate", "hospital-a", ok=False).output
    operator.run("revoke", "hospital-a")
    assert operator.api.queue(operator.vhost, mailbox) is None
    assert "revoked" in operator.run("members").output
    assert "not enrolled" in operator.run("revoke", "hospital-a", ok=False).output


def test_a_daemon_whose_account_is_gone_ends_and_says_what_helps(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "MAX_REFUSED_LOGINS", 2)  # as many as in about a minute would be too slow here
    path = operator.enroll("hospital-a")
    (operator.folder / "app.py").write_text(APP, encoding="utf-8")
    file = read_join_file(path)
    options = LearnerOptions(
        broker=BrokerAccess(url=file.url),
        ids=["hospital-a"],
        settings=LearnerSettings(federation=operator.federation),
    )

    start, takes_tasks = LearnerHost.start, threading.Event()

    def start_and_say(host: LearnerHost) -> None:
        start(host)
        takes_tasks.set()

    monkeypatch.setattr(LearnerHost, "start", start_and_say)

    def revoke() -> None:
        user = file.account.user
        assert takes_tasks.wait(DEADLINE_S)  # who is refused before that is told of permissions
        eventually(lambda: operator.api.connections().get(user) == 2, "two connections")
        operator.api.delete_user(user)
        operator.api.close_connections(user)

    thread = threading.Thread(target=revoke)
    thread.start()
    with pytest.raises(LoginRefused, match=r"revoke.*new join file") as caught:
        run_learners(load_app(f"{operator.folder / 'app.py'}:make_learner"), options)
    thread.join()
    assert exit_code(caught.value) == 2
    assert "rabbitmqctl" not in str(caught.value)


def test_processes_need_nothing_but_their_join_files(operator: Operator, redis_url: str) -> None:
    """What a site types: no URL, no federation, no name, and nothing secret."""
    roles = {"main": "controller", "ana": "driver", "hospital-a": "learner", "site": "group"}
    files = {name: operator.enroll(name, role) for name, role in roles.items()}
    (operator.folder / "app.py").write_text(APP, encoding="utf-8")
    job = adding_job(min_learners=2, rounds=2)
    (operator.folder / "job.toml").write_text(job, encoding="utf-8")
    environment = inherited() | {"BROKER_FL_STORE": redis_url, "BROKER_FL_TIMEOUT": "120"}

    def command(*arguments: str) -> list[str]:
        assert not any(str(read_join_file(file).password) in " ".join(arguments) for file in files.values())
        return [sys.executable, "-m", "broker_fl.cli", *arguments]

    daemons = [
        subprocess.Popen(command(*arguments), cwd=operator.folder, env=environment, stderr=subprocess.DEVNULL)
        for arguments in (
            ("controller", "--join", str(files["main"])),
            ("learner", "--join", str(files["hospital-a"]), "app.py:make_learner"),
            ("learner", "--join", str(files["site"]), "--count", "2", "app.py:make_learner"),
        )
    ]
    try:
        submit = command("submit", "job.toml", "--join", str(files["ana"]), "--app", "app.py", "--watch")
        done = subprocess.run(
            submit,
            cwd=operator.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "'protocol.deadline_s' is not given" in done.stderr
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(60)
