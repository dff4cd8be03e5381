"""``broker-fl doctor``."""

from __future__ import annotations

import json

from broker_fl.workers.servers import RabbitMQNode
from tests.integration.cli.apps import start_learners
from tests.integration.daemons import Daemon
from tests.integration.shell import Shell


def test_doctor_finds_nothing_wrong_where_nothing_is(shell: Shell, controller: Daemon) -> None:
    findings = json.loads(shell.run("doctor", "--json"))
    assert {one["level"] for one in findings if one["about"] == "Broker"} == {"ok"}
    shown = shell.run("doctor")
    assert "a controller is connected" in shown
    assert "✓ the server's clock and this machine's are " in shown
    for role in ("learner", "driver"):
        shell.run("doctor", "--role", role)


def test_doctor_says_what_is_wrong_and_no_password(shell: Shell, amqp_url: str) -> None:
    wrong = amqp_url.replace("://", "://x", 1).replace("@", "s3cret@", 1)
    shown = shell.run(
        "doctor", code=3, BROKER_FL_BROKER=wrong, BROKER_FL_STORE="redis://:s3cret@127.0.0.1:1/0"
    )
    assert "user or password is wrong" in shown
    assert "redis://127.0.0.1:1/0 does not answer: nothing listens there; is Redis running" in shown
    assert "s3cret" not in shown + shell.stderr
    shell.run("doctor", code=1, BROKER_FL_BROKER=wrong)


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
