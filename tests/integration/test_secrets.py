"""No password stands in a command line, a log, an event, a report or an error: everything is searched.

Broker, Redis and proxy have passwords of their own; daemons and commands run at ``-vv``, a whole job is done,
and things go wrong.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

import pytest
from click.testing import CliRunner

from broker_fl.cli.main import commands
from broker_fl.stores.redis import RedisStore
from broker_fl.workers.servers import RedisNode
from tests.integration.test_cli import APP, JOB, Shell, command_lines
from tests.servers.proxies import ProxyServer, proxy_server
from tests.servers.secured import SecuredRabbitMQ

PROXY = f"pr0xy-{token_hex(6)}"
WRONG = f"wr0ng-{token_hex(6)}"


@dataclass
class Searched:
    """A shell that remembers what was said, and the secrets that must not be in it."""

    shell: Shell
    secrets: set[str]
    said: dict[str, str] = field(default_factory=dict)

    def run(self, *args: str, code: int = 0, says: str = "", **environment: str) -> None:
        """A command, in this process: a process for each would take seconds."""
        mine = {key: value for key, value in self.shell.environment.items() if key.startswith("BROKER_FL_")}
        done = CliRunner().invoke(commands, [*args, "-vv"], env=mine | environment)
        assert done.exit_code == code, done.output
        assert re.search(says, done.output), done.output
        self.said[f"{len(self.said)}: {' '.join(args)}"] = done.output

    def everything(self) -> Iterator[tuple[str, str]]:
        """What was said and written, by where."""
        yield from self.said.items()
        for path in self.shell.folder.rglob("*"):
            if path.is_file() and path.suffix != ".safetensors":
                yield str(path), path.read_text("utf-8", errors="replace")

    def check(self, found: Iterator[tuple[str, str]]) -> int:
        searched = 0
        for where, text in found:
            searched += len(text)
            for secret in self.secrets:
                assert secret not in text, (
                    f"{where} holds {secret!r}: {text[max(0, text.find(secret) - 200) :][:400]}"
                )
        return searched


@pytest.fixture
def proxy(server_root: Path) -> Iterator[ProxyServer]:
    with proxy_server(server_root / "proxy-secrets", account=f"site:{PROXY}") as server:
        yield server


@pytest.fixture
def searched(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    secured_rabbitmq: SecuredRabbitMQ,
    private_redis: RedisNode,
    proxy: ProxyServer,
    federation: str,
) -> Iterator[Searched]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(APP, "utf-8")
    (tmp_path / "job.toml").write_text(JOB.replace("min_learners = 3", "min_learners = 1"), "utf-8")
    mine = secured_rabbitmq.certificates.of("anybody")
    surroundings = {
        "BROKER_FL_BROKER": secured_rabbitmq.url(secured_rabbitmq.administrator),
        "BROKER_FL_STORE": private_redis.url,
        "BROKER_FL_FEDERATION": federation,
        "BROKER_FL_TLS_CA": str(mine.ca_file),
        "BROKER_FL_TLS_CERT": str(mine.cert_file),
        "BROKER_FL_TLS_KEY": str(mine.key_file),
        "BROKER_FL_PROXY": proxy.url(f"site:{PROXY}"),
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("BROKER_FL_")}
    shell = Shell(tmp_path, inherited | surroundings)
    redis_password = private_redis.url.partition("://:")[2].partition("@")[0]
    secrets = {secured_rabbitmq.node.password, redis_password, PROXY, WRONG}
    assert all(len(secret) > 8 for secret in secrets)
    tokens = {base64.b64encode(f"site:{word}".encode()).decode() for word in (PROXY, WRONG)}
    yield Searched(shell, secrets | tokens)
    shell.end()


@pytest.mark.timeout(240)
def test_no_secret_is_said_or_written_anywhere(
    searched: Searched, secured_rabbitmq: SecuredRabbitMQ, private_redis: RedisNode, proxy: ProxyServer
) -> None:
    shell, server = searched.shell, secured_rabbitmq
    controller = shell.start("controller", "-vv")
    controller.wait_said("is active")
    learner = shell.start("learner", "app.py", "--id", "site-0", "-vv")
    learner.wait_said("takes tasks")
    searched.check(command_lines())  # of these two, and of RabbitMQ, Redis and the proxy
    searched.run("submit", "job.toml", "--watch", says="done")
    for command in (["jobs"], ["learners"], ["doctor"], ["models", "list", "latest"], ["audit", "show"]):
        searched.run(*command)
    store = RedisStore(private_redis.url, federation=shell.environment["BROKER_FL_FEDERATION"])
    try:
        for job in store.jobs():
            events = b"".join(store.read_events(job, after=0, limit=10_000))
            searched.said[f"events of {job}"] = events.decode("utf-8", errors="replace")
        searched.said["states"] = repr(store.jobs())
    finally:
        store.close()
    assert proxy.connects()

    wrong = {"BROKER_FL_BROKER": server.url(f"nobody:{WRONG}")}
    brief = ["--connect-timeout", "0.1"]
    searched.run("jobs", code=2, says="password is wrong", **wrong)
    searched.run("learner", "app.py", "--id", "b", code=2, says="password is wrong", **wrong)
    searched.run("doctor", code=1, says="", **wrong)
    through = {"BROKER_FL_PROXY": proxy.url(f"site:{WRONG}")}
    searched.run("jobs", code=2, says="it wants other credentials", **through)
    nowhere = {"BROKER_FL_PROXY": f"http://site:{WRONG}@127.0.0.1:1"}
    searched.run("learner", "app.py", "--id", "b", *brief, code=3, says="proxy http://site@", **nowhere)
    for url in (f"amqps://u:{WRONG}@far/a/b", f"amqp://u:{WRONG}@far", f"amqps://u:{WRONG}@far:port"):
        searched.run("jobs", code=2, says="broker|amqps", BROKER_FL_BROKER=url)
    searched.run("jobs", code=2, says="proxy: it must look", BROKER_FL_PROXY=f"https://u:{WRONG}@far")
    host = private_redis.url.rpartition("@")[2]
    for store_url, code, says in (
        (f"redis://:{WRONG}@{host}", 2, "refused access"),
        (f"redis://:{WRONG}@127.0.0.1:1/0", 3, "does not answer"),
        (f"redis://:{WRONG}@far:port/0", 2, "Redis URL"),
        (f"redis://:{WRONG}@far/0", 2, "insecure-plaintext"),
        (f"rediss://:{WRONG}@far/0?ssl_cert_reqs=none", 2, "TLS is not set in the URL"),
    ):
        searched.run("controller", *brief, code=code, says=says, BROKER_FL_STORE=store_url)
    server.node.control("close_all_connections", "maintenance")
    controller.wait_said("connecting again")
    for daemon in (learner, controller):
        daemon.process.terminate()
        assert daemon.process.wait(60) == 0
    assert searched.check(searched.everything()) > 50_000, "there was something to search"


def test_a_password_on_the_command_line_is_warned_of(searched: Searched) -> None:
    searched.run("jobs", "--broker", f"amqp://u:{WRONG}@127.0.0.1:1/", "--proxy", "none", code=2)
    (told,) = searched.said.values()
    assert "password in --broker can be read by everybody" in told
    assert WRONG not in told
