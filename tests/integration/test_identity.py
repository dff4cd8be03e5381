"""Enrolled accounts on a real broker: what a join file opens, and what it does not; by the real commands."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from click.testing import CliRunner

from broker_fl.apps import load_app
from broker_fl.cli.main import commands
from broker_fl.errors import AccessDenied, LoginRefused, RequestRefused, SettingError
from broker_fl.identity.accounts import Account
from broker_fl.identity.joinfile import read_join_file
from broker_fl.identity.management import ManagementApi
from broker_fl.roles.driver import Driver
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.topology import MAX_GENERATIONS
from broker_fl.transports.rabbitmq import RabbitMQTransport, link
from broker_fl.wire.job import JobSpec
from broker_fl.workers.connecting import BrokerAccess
from broker_fl.workers.learner import LearnerOptions, run_learners
from broker_fl.workers.process import exit_code
from broker_fl.workers.servers import rabbitmq_available
from tests.integration.daemons import APP, adding_job, inherited
from tests.servers.enrolling import DEADLINE_S, Adds, Operator, eventually
from tests.servers.provision import Broker
from tests.servers.secured import Certificates, SecuredRabbitMQ
from tests.servers.secured import secured_rabbitmq as secured_rabbitmq_node


@pytest.fixture
def operator(tmp_path: Path, rabbitmq: Broker, amqp_url: str, federation: str) -> Iterator[Operator]:
    if rabbitmq.management is None:
        pytest.skip("needs a management interface")
    with Operator(tmp_path, amqp_url, rabbitmq.management, federation) as operator:
        yield operator


def spec(**settings: Any) -> JobSpec:
    return JobSpec.model_validate({"termination": {"rounds": 2}, **settings})


def test_a_join_file_is_for_its_owner_alone_and_is_never_written_over(operator: Operator) -> None:
    path = operator.enroll("hospital-a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    fields = tomllib.loads(path.read_text(encoding="utf-8"))
    assert (fields["name"], fields["federation"], fields["format"]) == ("hospital-a", operator.federation, 1)
    assert "@" not in fields["broker"]
    assert len(fields["password"]) >= 43
    before = path.read_text(encoding="utf-8")
    done = operator.run("enroll", "hospital-b", "--out", str(path), ok=False)
    assert "there already" in done.output
    assert path.read_text(encoding="utf-8") == before
    assert Account.new(operator.federation, "learner", "hospital-b").user not in operator.api.users()
    assert fields["password"] not in done.output


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


def test_the_only_account_of_a_name_is_meant_whatever_its_role(operator: Operator) -> None:
    out = ["--out", str(operator.folder / "new.join"), "--force"]
    operator.enroll("main", "controller")
    operator.run("rotate", "main", *out)
    assert tomllib.loads(Path(out[1]).read_text(encoding="utf-8"))["role"] == "controller"
    for role in ("driver", "learner"):
        operator.enroll("ana", role)
    told = operator.run("revoke", "ana", ok=False).stderr
    assert "give --role learner or --role driver" in told
    operator.run("revoke", "ana", "--role", "driver")
    assert "learner 'ana'" in operator.run("revoke", "ana").stdout


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


def test_members_are_listed_with_connections_and_expiry(operator: Operator) -> None:
    operator.connect(operator.enroll("hospital-a"))
    out = str(operator.folder / "b.join")
    operator.run("enroll", "hospital-b", "--out", out, "--expires", "90d")
    lines = operator.run("members").output.splitlines()
    (first,) = (line.split() for line in lines if "hospital-a" in line)
    (second,) = (line.split() for line in lines if "hospital-b" in line)
    assert (first[-2], first[-1], first[4]) == ("2", "active", "now")
    assert second[-1] == "active"
    assert second[-3] == tomllib.loads(Path(out).read_text(encoding="utf-8"))["expires"].split()[0]
    rows = {one["name"]: one for one in json.loads(operator.run("members", "--json").stdout)}
    assert rows["hospital-b"]["expires"] - rows["hospital-b"]["since"] == pytest.approx(90 * 86_400, abs=60)
    assert rows["hospital-a"]["last_seen"] >= rows["hospital-a"]["since"]
    assert rows["hospital-b"]["last_seen"] is None, "it was never there"
    assert "past its time" in operator.run("revoke", "--expired").output


def test_learners_that_could_be_taken_for_members_of_a_group_are_not_enrolled(operator: Operator) -> None:
    operator.enroll("site", "group")
    for name in ("site-7", "site"):
        done = operator.run("enroll", name, "--out", str(operator.folder / "x.join"), ok=False)
        assert "site" in done.output
    operator.enroll("site-a")
    assert not (operator.folder / "x.join").exists()


@pytest.mark.parametrize(("first", "second"), [("driver", "observer"), ("observer", "driver")])
def test_who_watches_cannot_be_enrolled_under_the_name_of_who_submits(
    operator: Operator, first: str, second: str
) -> None:
    """The queues of both would be named after it, so each could take the other's models and answers."""
    operator.enroll("ana", first)
    token = operator.folder / "ana.token"
    for command in (("enroll", "--out", str(operator.folder / "b.join")), ("token", "--out", str(token))):
        done = operator.run(command[0], "ana", "--role", second, *command[1:], ok=False)
        assert "share its queues" in done.output
    assert f"{operator.federation}.{second}.ana" not in operator.api.users()
    assert not token.exists()
    operator.run("revoke", "ana", "--role", first)
    operator.enroll("ana", second)  # the name is free again


@pytest.mark.parametrize("role", ["learner", "group", "driver", "observer"])
def test_doctor_finds_nothing_wrong_with_an_enrolled_account(operator: Operator, role: str) -> None:
    by = operator.enroll("hospital-a", role)
    operator.forget_environment()
    done = operator.run("doctor", "--join", str(by), "--json")
    found = [one for one in json.loads(done.stdout) if one["about"] == "Broker"]
    wrong = [one for one in found if one["level"] == "error"]
    assert not wrong
    assert any("has the permissions" in one["what"] for one in found)


def test_who_is_refused_is_never_told_to_have_its_narrow_permissions_undone(operator: Operator) -> None:
    """What an error, and doctor, tell an operator to type must not open the mail of all others."""
    by = operator.enroll("hospital-a")
    repair = "broker-fl enroll hospital-a --role learner --repair"
    operator.enroll("hospital-b")
    with pytest.raises(AccessDenied) as caught:
        operator.connect(by).consume(operator.topology.mailbox("hospital-b"), print, prefetch=1)
    assert repair in str(caught.value)
    assert "set_permissions" not in str(caught.value)
    user = read_join_file(by).account.user
    nothing = {"configure": "^$", "write": "^$", "read": "^$"}
    permissions = f"/api/permissions/{quote(operator.vhost, safe='')}/{user}"
    operator.api.request("PUT", permissions, nothing)
    narrow = CliRunner().invoke(commands, ["doctor", "--join", str(by)]).output
    operator.api.request("DELETE", permissions)
    outside = CliRunner().invoke(commands, ["doctor", "--join", str(by)]).output
    for shown in (narrow, outside):
        assert repair in shown
        assert "set_permissions" not in shown
    operator.run(*repair.split()[1:])
    assert "has the permissions" in CliRunner().invoke(commands, ["doctor", "--join", str(by)]).output


def test_a_password_that_is_typed_is_refused(operator: Operator) -> None:
    for typed in (["--management", "http://admin:geheim@127.0.0.1:1"], ["--management-password", "geheim"]):
        done = operator.run("members", *typed, ok=False)
        assert "command line" in done.output
        assert "geheim" not in done.output


def own(operator: Operator) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(
        operator.run("audit", "show", "--file", "own", "--json").stdout
    )
    return entries


def test_what_an_operator_does_is_written_down_with_what_became_of_it(operator: Operator) -> None:
    operator.enroll("hospital-a")
    for command in ("rotate", "revoke"):
        out = ["--out", str(operator.folder / "new.join")] if command == "rotate" else []
        operator.run(command, "hospital-a", *out)
    before = len(own(operator))
    operator.run("enroll", "hospital-b", "--out", str(operator.folder / "new.join"), ok=False)
    for command in ("rotate", "revoke"):
        assert "not enrolled" in operator.run(command, "nobody", ok=False).stderr
    assert len(own(operator)) == before, "what never began is not written down"
    operator.run("enroll", "hospital-c", "--management", "http://guest@127.0.0.1:1", ok=False)
    entries = own(operator)
    assert [one["action"] for one in entries[::2]] == ["enroll", "rotate", "revoke", "enroll"]
    assert [one["details"]["of_entry"] for one in entries[1::2]] == [1, 3, 5, 7]
    assert [one["details"]["outcome"][:6] for one in entries[1::2]] == ["done", "done", "done", "failed"]
    assert {one["subject"] for one in entries[:6]} == {f"account {operator.federation}.learner.hospital-a"}
    assert "8 entries, and all fit" in operator.run("audit", "verify", "--file", "own").output
    unwritable = operator.folder / "no" / "folder"
    (operator.folder / "no").write_text("")
    operator.run("enroll", "hospital-b", "--audit", str(unwritable), "--out", "b.join", ok=False)
    assert not any("hospital-b" in user for user in operator.api.users()), "nothing is done unwritten"


def test_processes_need_nothing_but_their_join_files(operator: Operator, redis_url: str) -> None:
    """What a site types: no URL, no federation, no name, and nothing secret."""
    roles = {"main": "controller", "ana": "driver", "hospital-a": "learner", "site": "group"}
    files = {name: operator.enroll(name, role) for name, role in roles.items()}
    (operator.folder / "app.py").write_text(APP, encoding="utf-8")
    job = adding_job(min_learners=2, rounds=2)
    (operator.folder / "job.toml").write_text(job, encoding="utf-8")
    environment = inherited() | {"BROKER_FL_STORE": redis_url}

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
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "'protocol.deadline_s' is not given" in done.stderr
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(60)


def test_the_lines_of_ca_server_let_in_whom_enroll_makes(
    server_root: Path, tmp_path: Path, certificates: Certificates, federation: str
) -> None:
    """As they are printed: management over HTTPS, a join file with a password, and one with a certificate."""
    if not rabbitmq_available():
        pytest.skip("needs a RabbitMQ of its own, and none is installed here (tests/servers/provide.sh)")
    ca = certificates.authority.file
    folder = server_root / "printed-rabbitmq"
    with secured_rabbitmq_node(folder, certificates, everybody_has_one=False) as server:
        node, place = server.node, f"127.0.0.1:{server.management_port}"
        api = ManagementApi(
            f"https://{place}", user=node.user, password=node.password, security=certificates.ca
        )
        with Operator(tmp_path, node.url, api, federation, shown_url=server.url()) as by:
            at = ["--management", f"https://{node.user}@{place}", "--tls-ca", str(ca)]
            shown = certificates.of(f"{federation}.learner.b")
            login = ["--certificate", str(shown.cert_file), "--key", str(shown.key_file)]
            for name, more in (("a", []), ("b", login)):
                out = tmp_path / f"{name}.join"
                by.run("enroll", name, "--out", str(out), *at, *more)
                file = read_join_file(out)
                assert (file.password is None) is bool(more)
                RabbitMQTransport(file.url, security=file.security(out)).close()


def test_a_certificate_is_the_login_of_an_account_without_a_password(
    tmp_path: Path, secured_rabbitmq: SecuredRabbitMQ, federation: str
) -> None:
    server, user = secured_rabbitmq, f"{federation}.learner.hospital-a"
    node, certificates = server.node, server.certificates
    api = ManagementApi(node.management_url, user=node.user, password=node.password)
    shown = certificates.of(user)
    with Operator(tmp_path, node.url, api, federation, shown_url=server.url()) as by:
        out, ca = tmp_path / "a.join", str(certificates.authority.file)
        by.run(
            *("enroll", "hospital-a", "--out", str(out), "--tls-ca", ca),
            *("--certificate", str(shown.cert_file), "--key", str(shown.key_file)),
        )
        told = by.run("rotate", "hospital-a", "--out", str(out), "--force", ok=False)
        assert "has no password to be changed: give --certificate" in told.stderr
        told = by.run(
            "enroll", "b", "--out", str(out), "--force", "--certificate", str(shown.cert_file), ok=False
        )
        assert f"is of '{user}', and the account is" in told.stderr
        by.run(
            *("rotate", "hospital-a", "--out", str(out), "--force", "--tls-ca", ca),
            *("--certificate", str(shown.cert_file), "--key", str(shown.key_file)),
        )
        assert not by.api.has_password(user)
        file = read_join_file(out)
        assert file.password is None
        transport = RabbitMQTransport(file.url, security=file.security(out))
        transport.consume(by.topology.mailbox("hospital-a"), print, prefetch=1, exclusive=True)
        assert transport.user == user
        transport.close()
        for password in ("", "guess"):
            with pytest.raises(AccessDenied):
                RabbitMQTransport(f"amqp://{user}:{password}@127.0.0.1:{node.port}/")
