"""What an operator does with accounts, and is told."""

from __future__ import annotations

import json
import stat
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from broker_fl.cli.main import commands
from broker_fl.errors import AccessDenied
from broker_fl.identity.accounts import Account
from broker_fl.identity.joinfile import read_join_file
from tests.servers.enrolling import Operator, eventually


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


def test_members_are_listed_with_connections_and_expiry(operator: Operator) -> None:
    path = operator.enroll("hospital-a")
    operator.connect(path)
    user = read_join_file(path).account.user
    eventually(lambda: operator.api.connections().get(user) == 2, "two connections")
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
