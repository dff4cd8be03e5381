"""A site that asks with a token to be enrolled, by the real commands on a real broker."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from pika import exceptions as pika_errors

from broker_fl.errors import AccessDenied
from broker_fl.identity.joinfile import read_join_file
from broker_fl.identity.tokens import read_token
from broker_fl.topology import ENROLMENT_MAX_BYTES
from tests.servers import raw_amqp
from tests.servers.enrolling import DEADLINE_S, Operator
from tests.servers.provision import Broker


@pytest.fixture
def by(tmp_path: Path, rabbitmq: Broker, amqp_url: str, federation: str) -> Iterator[Operator]:
    if rabbitmq.management is None:
        pytest.skip("needs a management interface")
    with Operator(tmp_path, amqp_url, rabbitmq.management, federation) as operator:
        yield operator


def invited(by: Operator, name: str = "hospital-a", *more: str) -> Path:
    path = by.folder / f"{name}.token"
    by.run("token", name, "--out", str(path), "--force", *more)
    return path


def asked(by: Operator, token: Path, out: str = "a.join") -> tuple[Path, str]:
    """The join file, and the fingerprint that the site is shown."""
    path = by.folder / out
    done = by.run("join", str(token), "--out", str(path))
    found = re.search(r"fingerprint: ([0-9a-f-]{19})", done.output)
    assert found is not None
    return path, found[1]


def test_a_site_draws_its_own_password_and_takes_part_once_it_is_accepted(by: Operator) -> None:
    token = invited(by)
    join, fingerprint = asked(by, token)
    password = str(read_join_file(join).password)
    (body,) = (body for body, _ in by.api.look_at_messages(by.vhost, by.topology.enrolment, 10))
    assert password.encode() not in body
    with pytest.raises(AccessDenied):
        by.connect(join)
    done = by.run("accept", "hospital-a", "--fingerprint", fingerprint)
    assert "accepted" in done.output
    by.controller()
    assert by.learner(join).wait_welcomed(DEADLINE_S)
    assert not by.api.look_at_messages(by.vhost, by.topology.enrolment, 10)


def test_a_token_is_for_one_use(by: Operator) -> None:
    token = invited(by)
    asked(by, token)
    by.run("accept", "--yes")
    done = by.run("join", str(token), "--out", str(by.folder / "b.join"), ok=False)
    assert "user or password is wrong" in done.output
    assert not (by.folder / "b.join").exists()


def test_a_token_opens_nothing_but_the_way_to_ask(by: Operator) -> None:
    by.enroll("hospital-b")
    token = read_token(invited(by))
    connection = pika.BlockingConnection(pika.URLParameters(token.url))
    names, codes = by.topology, []
    attempts = [
        lambda c: c.basic_publish(names.reports, "hospital-a.join", b""),
        lambda c: c.basic_publish("", names.mailbox("hospital-b"), b""),
        lambda c: c.basic_get(names.mailbox("hospital-b")),
        lambda c: c.basic_get(names.enrolment),
        lambda c: c.queue_declare("mine"),
    ]
    for attempt in attempts:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(pika_errors.ChannelClosedByBroker) as refused:
            attempt(channel)  # type: ignore[no-untyped-call]
        codes.append(refused.value.reply_code)
    connection.close()
    assert codes == [403] * len(attempts)


def test_a_token_whose_time_is_over_asks_for_nothing(by: Operator) -> None:
    token = invited(by)
    text = token.read_text(encoding="utf-8")
    token.write_text(re.sub(r"expires = .*", "expires = 1.0", text), encoding="utf-8")
    done = by.run("join", str(token), "--out", str(by.folder / "a.join"), ok=False)
    assert "no longer valid" in done.output
    token.write_text(text, encoding="utf-8")
    asked(by, token)
    user = f"{by.federation}.candidate.hospital-a"
    _over(by, user)  # the site's clock may say what it likes
    assert "nobody asks" in by.run("accept", "--yes").output
    assert user not in by.api.users()


def _over(by: Operator, user: str) -> None:
    record = by.api.records("broker_fl.")[user]
    by.api.put_record(f"broker_fl.{user}", {**record, "expires": 1.0})


def test_whatever_an_operator_does_deletes_tokens_that_are_too_old(by: Operator) -> None:
    late = f"{by.federation}.learner.late"
    by.enroll("late")
    commands = (
        ["members"],
        ["accept", "--yes"],
        ["enroll", "another", "--out", str(by.folder / "another.join")],
        ["token", "other", "--out", str(by.folder / "other.token")],
        ["revoke", "--expired"],
    )
    for command in commands:
        invited(by)
        user = f"{by.federation}.candidate.hospital-a"
        assert user in by.api.users()
        _over(by, user)
        _over(by, late)
        said = by.run(*command).output
        assert user not in by.api.users(), command
        assert ("1 account can still log in although the time is over (late)" in said) is (
            command[0] != "revoke"
        )
    assert late not in by.api.users()
    assert f"{by.federation}.candidate.other" in by.api.users()
    entries = json.loads(by.run("audit", "show", "--file", "own", "--json").stdout)
    assert [one["action"] for one in entries].count("expire_token") == 2 * len(commands)


def test_who_fills_the_queue_loses_its_token_and_the_others_are_heard(by: Operator) -> None:
    """With bodies of any size, none at all, and headers that nobody can read."""
    thief = read_token(invited(by, "thief"))
    user = f"{by.federation}.candidate.thief"
    connection = pika.BlockingConnection(pika.URLParameters(thief.url))
    channel = connection.channel()
    channel.confirm_delivery()
    tables = [raw_amqp.RawProperties(one) for one in raw_amqp.tables(user).values()]
    for properties in (*tables, *[pika.BasicProperties(user_id=user)] * 1_100):
        channel.basic_publish(by.topology.enrolment, "", b"", properties)
    channel.basic_publish(by.topology.enrolment, "", bytes(4_000_000))
    with pytest.raises(pika_errors.NackError):
        channel.basic_publish(by.topology.enrolment, "", bytes(300_000))
    connection.close()
    token = invited(by)
    by.run("accept", "--yes")  # the operator is told that no request arrives
    assert user not in by.api.users()
    join, fingerprint = asked(by, token)
    assert fingerprint in by.run("accept", "--yes").output
    by.connect(join)
    assert not by.api.look_at_messages(by.vhost, by.topology.enrolment, 10)


def test_two_long_messages_keep_nobody_from_asking_once_accept_was_run(by: Operator) -> None:
    """One says with which token it came, the other does not; an undecided request is in front of both."""
    first, first_fingerprint = asked(by, invited(by, "hospital-b"), "b.join")
    ((waiting, _),) = by.api.look_at_messages(by.vhost, by.topology.enrolment, 10)
    thief = read_token(invited(by, "thief"))
    user = f"{by.federation}.candidate.thief"
    connection = pika.BlockingConnection(pika.URLParameters(thief.url))
    channel = connection.channel()
    channel.confirm_delivery()
    rest = ENROLMENT_MAX_BYTES - 4_000_000 - len(waiting) - 50  # a request is longer
    for num_bytes, properties in ((4_000_000, pika.BasicProperties(user_id=user)), (rest, None)):
        channel.basic_publish(by.topology.enrolment, "", bytes(num_bytes), properties)
    with pytest.raises(pika_errors.NackError):
        channel.basic_publish(by.topology.enrolment, "", waiting)
    connection.close()

    token = invited(by)
    assert "hospital-b" not in by.run("accept", "hospital-a", "--yes").output  # hospital-b stays undecided
    assert user not in by.api.users()
    second, second_fingerprint = asked(by, token)
    said = by.run("accept", "--yes").output
    assert first_fingerprint in said
    assert second_fingerprint in said
    for join in (first, second):
        by.connect(join)
    assert not by.api.look_at_messages(by.vhost, by.topology.enrolment, 10)


def test_a_token_that_brought_what_is_no_request_is_taken_back_and_that_is_written_down(by: Operator) -> None:
    thief = read_token(invited(by, "thief"))
    user = f"{by.federation}.candidate.thief"
    connection = pika.BlockingConnection(pika.URLParameters(thief.url))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.basic_publish(by.topology.enrolment, "", b"{}", pika.BasicProperties(user_id=user))
    connection.close()
    assert "a message that is no request came with its token" in by.run("accept", "--yes").output
    assert user not in by.api.users()
    entries = json.loads(by.run("audit", "show", "--file", "own", "--json").stdout)
    assert (entries[-2]["action"], entries[-1]["details"]["outcome"]) == ("cancel_token", "done")


def test_two_requests_with_one_token_are_decided_by_the_fingerprint_alone(by: Operator) -> None:
    token = invited(by)
    thief, _ = asked(by, token, "thief.join")
    mine, fingerprint = asked(by, token, "mine.join")
    done = by.run("accept", "--yes")
    assert "somebody else may have it" in done.output
    by.run("accept", "hospital-a", "--fingerprint", fingerprint)
    by.connect(mine)
    with pytest.raises(AccessDenied):
        by.connect(thief)


def test_what_was_asked_with_an_earlier_token_is_not_heard(by: Operator) -> None:
    asked(by, invited(by), "old.join")
    new = invited(by)
    assert "nobody asks" in by.run("accept", "--yes").output
    join, fingerprint = asked(by, new, "new.join")
    assert fingerprint in by.run("accept", "--yes").output
    by.connect(join)


def test_a_cancelled_token_and_a_refused_request_come_to_nothing(by: Operator) -> None:
    token = invited(by)
    by.run("token", "hospital-a", "--cancel")
    for nobody in ("hospital-a", "nobody"):
        assert "has no token" in by.run("token", nobody, "--cancel", ok=False).stderr
    by.run("join", str(token), "--out", str(by.folder / "a.join"), ok=False)
    join, _ = asked(by, invited(by, "hospital-b"), "b.join")
    by.run("accept", input="n\n")
    with pytest.raises(AccessDenied):
        by.connect(join)
    assert tomllib.loads(join.read_text(encoding="utf-8"))["name"] == "hospital-b"


def test_who_was_let_in_by_a_token_is_written_down_with_the_fingerprint(by: Operator) -> None:
    token = invited(by)
    _, fingerprint = asked(by, token)
    by.run("accept", "hospital-a", "--fingerprint", fingerprint)
    by.run("enroll", "hospital-a", "--repair")
    _, refused = asked(by, invited(by, "hospital-b"), "b.join")
    by.run("accept", input="n\n")
    invited(by, "hospital-c")
    by.run("token", "hospital-c", "--cancel")
    entries = json.loads(by.run("audit", "show", "--file", "own", "--json").stdout)
    user = f"account {by.federation}.learner.hospital"
    assert all(entries[one["details"]["of_entry"] - 1]["subject"] == one["subject"] for one in entries[1::2])
    assert {one["details"]["outcome"] for one in entries[1::2]} == {"done"}
    entries = entries[::2]
    assert [(one["action"], one["subject"], one["details"].get("fingerprint")) for one in entries] == [
        ("invite", f"{user}-a", None),
        ("enroll", f"{user}-a", fingerprint),
        ("repair", f"{user}-a", None),
        ("invite", f"{user}-b", None),
        ("refuse_request", f"{user}-b", refused),
        ("invite", f"{user}-c", None),
        ("cancel_token", f"{user}-c", None),
    ]
    assert entries[0]["details"]["token"] == entries[1]["details"]["token"] == read_token(token).id


def test_nobody_is_let_in_unwritten(by: Operator) -> None:
    unwritable = ["--audit", str(by.folder / "file" / "audit.jsonl")]
    (by.folder / "file").write_text("", encoding="utf-8")
    never = by.folder / "never.token"
    by.run("token", "hospital-b", "--out", str(never), *unwritable, ok=False)
    assert not never.exists()
    join, _ = asked(by, invited(by))
    by.run("accept", "--yes", *unwritable, ok=False)
    with pytest.raises(AccessDenied):
        by.connect(join)
    by.run("accept", "--yes")
    by.connect(join)
