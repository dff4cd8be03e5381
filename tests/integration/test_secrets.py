"""No password stands in a command line, a log, an event, a report or an error: everything is searched.

Broker, Redis, proxy, management, each account and each token have secrets of their own; daemons and commands
run at ``-vv``, a whole job is done, and things go wrong.
"""

from __future__ import annotations

import base64
import os
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from urllib.parse import urlsplit

import pika
import pytest
from click.testing import CliRunner

from broker_fl.cli.main import commands
from broker_fl.identity.joinfile import read_join_file
from broker_fl.identity.management import ManagementApi
from broker_fl.identity.tokens import read_token
from broker_fl.roles.controller.auditing import stored_lines
from broker_fl.stores.redis import RedisStore
from broker_fl.topology import Topology
from broker_fl.workers.servers import RedisNode
from tests.integration.cli.apps import APP, JOB
from tests.integration.daemons import Daemon
from tests.integration.shell import Shell, command_lines
from tests.servers.enrolling import Operator, eventually
from tests.servers.provision import Broker
from tests.servers.proxies import ProxyServer, proxy_server
from tests.servers.secured import SecuredRabbitMQ

PROXY = f"pr0xy-{token_hex(6)}"
WRONG = f"wr0ng-{token_hex(6)}"
FLEET = """package = "broker-fl"
[hosts.nowhere]
address = "127.0.0.1"
port = 1
[learners.site-0]
host = "nowhere"
app = "app.py:make_learner"
join = "new.join"
"""


@dataclass
class Searched:
    """A shell that remembers what was said, and the secrets that must not be in it."""

    shell: Shell
    secrets: set[str]
    said: dict[str, str] = field(default_factory=dict)

    def run(self, *args: str, code: int = 0, says: str = "", **environment: str) -> str:
        """A command, in this process: a process for each would take seconds."""
        mine = {key: value for key, value in self.shell.environment.items() if key.startswith("BROKER_FL_")}
        done = CliRunner().invoke(commands, [*args, "-vv"], env=mine | environment)
        assert done.exit_code == code, done.output
        assert re.search(says, done.output), done.output
        self.said[f"{len(self.said)}: {' '.join(args)}"] = done.output
        return done.output

    def everything(self) -> Iterator[tuple[str, str]]:
        """What was said and written, by where."""
        yield from self.said.items()
        for path in self.shell.folder.rglob("*"):
            if path.is_file() and path.suffix != ".safetensors":
                yield str(path), path.read_text("utf-8", errors="replace")

    def read_store(self, url: str) -> None:
        """What is in Redis, as texts."""
        store = RedisStore(url, federation=self.shell.environment["BROKER_FL_FEDERATION"])
        try:
            for job in store.jobs():
                events = b"".join(store.read_events(job, after=0, limit=10_000))
                self.said[f"events of {job}"] = events.decode("utf-8", errors="replace")
            self.said["states"] = repr(store.jobs())
            self.said["audit log"] = b"".join(stored_lines(store)).decode("utf-8", errors="replace")
        finally:
            store.close()

    def reports(self, runs: str) -> None:
        """Of the run in this folder; what it holds, and the page, are searched with all files."""
        (folder,) = (self.shell.folder / runs).iterdir()
        self.run("report", str(folder))
        self.run("report", str(folder), "--json")
        pages = {path.name for path in folder.iterdir() if path.stat().st_size > 200}
        assert {"report.html", "events.jsonl"} <= pages, pages

    def read_pages(self, *daemons: Daemon) -> None:
        """What daemons tell a monitor."""
        for daemon in daemons:
            (url,) = set(re.findall(r"/readyz are at (http://[\d.:]+)", daemon.said))
            for page in ("/metrics", "/healthz"):
                with urllib.request.urlopen(url + page, timeout=60) as answer:
                    self.said[url + page] = answer.read().decode()

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


def test_no_secret_is_said_or_written_anywhere(
    searched: Searched, secured_rabbitmq: SecuredRabbitMQ, private_redis: RedisNode, proxy: ProxyServer
) -> None:
    shell, server = searched.shell, secured_rabbitmq
    controller = shell.start("controller", "-vv")
    controller.wait_said("is active")
    learner = shell.start("learner", "app.py", "--id", "site-0", "-vv")
    learner.wait_said("takes tasks")
    searched.check(command_lines())  # of these two, and of RabbitMQ, Redis and the proxy
    searched.run("submit", "job.toml", "--watch", "--out", "runs", says="done")
    searched.reports("runs")
    searched.run("run", "app.py", "--learners", "1", "--rounds", "1", "--out", "alone", says="done")
    searched.reports("alone")
    for command in (["jobs"], ["learners"], ["doctor"], ["models", "list", "latest"], ["audit", "show"]):
        searched.run(*command)
    searched.read_store(private_redis.url)
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
    assert "--broker: the password in it can be read by everybody" in told
    assert WRONG not in told


# ---------------------------------------------------------------- accounts of their own


@dataclass
class Enrolled:
    """An operator and sites. Their secrets lie in a folder that is not searched: files of mode 0600."""

    by: Searched
    """With the management's password in the environment."""
    site: Searched
    """With nothing but files."""
    files: Path
    api: ManagementApi
    vhost: str
    store: str

    @property
    def federation(self) -> str:
        return self.by.shell.environment["BROKER_FL_FEDERATION"]

    def keep(self, path: Path, secret: str | None) -> Path:
        """Its secret must not be anywhere else from now on."""
        assert secret is not None
        assert len(secret) > 40
        assert path.stat().st_mode & 0o777 == 0o600
        self.by.secrets.add(secret)
        return path

    def account(self, command: str, name: str, role: str = "learner", file: str = "") -> Path:
        """What ``enroll`` or ``rotate`` writes."""
        path = self.files / (file or f"{name}.join")
        self.by.run(command, name, "--role", role, "--out", str(path))
        return self.keep(path, read_join_file(path).password)

    def by_token(self, name: str) -> Path:
        """A site that draws its own password."""
        token, path = self.files / f"{name}.token", self.files / f"{name}.join"
        self.by.run("token", name, "--out", str(token))
        self.keep(token, read_token(token).token)
        typed = f"http://u:{WRONG}@127.0.0.1:1"
        warning = "--proxy: the password in it can be read by everybody"
        self.site.run("join", str(token), "--proxy", typed, "--out", str(path), code=3, says=warning)
        self.site.run("join", str(token), "--out", str(path), "--force", says="fingerprint")
        self.keep(path, read_join_file(path).password)
        for body, user in self.api.look_at_messages(self.vhost, Topology(self.federation).enrolment, 9):
            self.by.said[f"request of {user}"] = body.decode()
        self.by.run("accept", "--yes", says="accepted")
        return path

    def refuse_something(self) -> None:
        """A message that is kept as a dead letter, since it says nothing of who sent it."""
        topology = Topology(self.federation)
        with pika.BlockingConnection(
            pika.URLParameters(self.by.shell.environment["BROKER_FL_BROKER"])
        ) as connection:
            connection.channel().basic_publish(topology.reports, "site-0.join", b"junk")
        found: list[bytes] = []

        def look() -> bool:
            found[:] = [body for body, _ in self.api.look_at_messages(self.vhost, topology.dead, 9)]
            return bool(found)

        eventually(look, "a dead letter")
        self.by.said["dead letters"] = b"".join(found).decode(errors="replace")

    def misread(self, path: Path, *command: str) -> None:
        """The same file with mistakes; its errors must not show what stands beside them."""
        text = path.read_text("utf-8")
        (secret,) = (one for one in self.by.secrets if one in text)
        quoted = f'"{secret}"'
        for mistake in (
            text.replace(quoted, quoted[:-1]),
            text.replace(quoted, f"[{quoted}]"),
            text.replace(quoted, quoted + f"\nmore = {quoted}"),
            text.replace("format = 1", "format = 2"),
            text.replace('broker = "amqp', f'broker = "{secret}'),
        ):
            wrong = self.files / "wrong"
            wrong.write_text(mistake, "utf-8")
            self.site.run(*command, str(wrong), code=2, says="wrong is no join")


@pytest.fixture
def enrolled(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    rabbitmq: Broker,
    amqp_url: str,
    private_redis: RedisNode,
    federation: str,
) -> Iterator[Enrolled]:
    if rabbitmq.management is None:
        pytest.skip("needs a management interface")
    searched, files = tmp_path / "searched", tmp_path / "files"
    searched.mkdir()
    files.mkdir()
    monkeypatch.chdir(searched)
    (searched / "app.py").write_text(APP, "utf-8")
    (searched / "job.toml").write_text(JOB.replace("min_learners = 3", "min_learners = 2"), "utf-8")
    broker = urlsplit(amqp_url)
    mine = {key: value for key, value in os.environ.items() if not key.startswith("BROKER_FL_")}
    operators = {
        "BROKER_FL_MANAGEMENT": f"http://{broker.username}@{urlsplit(rabbitmq.management.place).netloc}",
        "BROKER_FL_MANAGEMENT_PASSWORD": str(broker.password),
        "BROKER_FL_BROKER": amqp_url,
        "BROKER_FL_FEDERATION": federation,
        "BROKER_FL_AUDIT": str(searched / "audit.jsonl"),
    }
    redis_password = private_redis.url.partition("://:")[2].partition("@")[0]
    secrets = {str(broker.password), redis_password, WRONG}
    assert all(len(secret) > 8 for secret in secrets)
    by, site = Searched(Shell(searched, mine | operators), secrets), Searched(Shell(searched, mine), secrets)
    vhost = broker.path[1:]
    with Operator(searched, amqp_url, rabbitmq.management, federation):  # deletes the accounts in the end
        yield Enrolled(by, site, files, rabbitmq.management, vhost, private_redis.url)
        site.shell.end()


def test_no_secret_of_accounts_is_said_or_written_but_in_their_files(enrolled: Enrolled) -> None:
    by, site, shell = enrolled.by, enrolled.site, enrolled.site.shell
    main, ana = enrolled.account("enroll", "main", "controller"), enrolled.account("enroll", "ana", "driver")
    old = enrolled.account("enroll", "site-0")
    new = enrolled.account("rotate", "site-0", file="new.join")
    drawn = enrolled.by_token("site-1")
    for command in (["members"], ["members", "--json"], ["enroll", "site-0", "--repair"]):
        by.run(*command)

    served = ("--metrics-port", "0", "-vv")
    controller = shell.start("controller", "--join", str(main), *served, BROKER_FL_STORE=enrolled.store)
    controller.wait_said("is active")
    daemons = [shell.start("learner", "--join", str(one), "app.py", *served) for one in (new, drawn)]
    for daemon in daemons:
        daemon.wait_said("takes tasks")
    site.run("submit", "job.toml", "--join", str(ana), "--watch", says="done")
    by.check(command_lines())
    by.read_pages(controller, *daemons)
    for words in (["jobs"], ["learners"], ["doctor"], ["models", "list", "latest"]):
        site.run(*words, "--join", str(ana))
    by.read_store(enrolled.store)

    enrolled.refuse_something()
    listed = by.run("dead", "list", "--json", says="user_id")
    (letter,) = re.findall(r'"id": "(\w+)"', listed)
    by.run("dead", "replay", letter, code=2, says="Nothing was sent")
    for words in (["list"], ["show", letter], ["drop", "--all"]):
        by.run("dead", *words)
    site.run("learner", "--join", str(old), "app.py", code=2, says="password is wrong")
    by.run("members", code=2, says="refuse|wrong|401", BROKER_FL_MANAGEMENT_PASSWORD=WRONG)
    nowhere = {"BROKER_FL_MANAGEMENT": "http://admin@127.0.0.1:1"}
    by.run("accept", code=3, says="127.0.0.1:1", **nowhere)
    enrolled.misread(new, "jobs", "--join")
    enrolled.misread(enrolled.files / "site-1.token", "join")
    inventory = enrolled.files / "hosts.toml"
    inventory.write_text(FLEET, "utf-8")
    (enrolled.files / "app.py").write_text(APP, "utf-8")
    for word in ("status", "deploy"):
        site.run("fleet", word, str(inventory), code=1)
    by.run("revoke", "site-1")
    by.run("audit", "show", "--file", str(shell.folder / "audit.jsonl"), says="fingerprint")
    for daemon in (controller, daemons[0]):
        daemon.terminate()
    daemons[1].process.kill()
    searched = by.check(by.everything()) + site.check(iter(site.said.items()))
    assert searched > 20_000, "there was something to search"
