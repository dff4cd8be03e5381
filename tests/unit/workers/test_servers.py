"""The private nodes: they start, come back with their data, and end without a trace."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pika
import pytest
from redis import Redis

from broker_fl.errors import (
    AccessDenied,
    BrokerUnavailable,
    ServerUnavailable,
    SettingError,
    StoreUnavailable,
)
from broker_fl.workers.servers import ManagementApi, RabbitMQNode, RedisNode
from broker_fl.workers.servers.process import ServerProcess, find_program, free_port, write_private
from tests.servers import provision


def _redis(node: RedisNode) -> Redis:
    return Redis.from_url(node.url, socket_timeout=60)


def _declare(url: str, *, passive: bool = False) -> None:
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = 60
    with pika.BlockingConnection(parameters) as connection:
        connection.channel().queue_declare("letters", durable=True, passive=passive)


def test_a_free_port_is_outside_the_range_of_outgoing_connections() -> None:
    port = free_port()
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", port))
        client.bind(("127.0.0.1", 0))
        assert client.getsockname()[1] > port


def test_a_port_is_given_once_to_all_processes() -> None:
    ours = {free_port() for _ in range(50)}
    assert len(ours) == 50
    others = (
        "from broker_fl.workers.servers.process import free_port; print(*(free_port() for _ in range(500)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", others], capture_output=True, text=True, check=True, timeout=110
    )
    assert ours.isdisjoint(int(port) for port in printed.stdout.split())


def test_a_private_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "new"


def test_a_program_that_dies_while_starting_is_reported_at_once_with_what_it_said(tmp_path: Path) -> None:
    process = ServerProcess("brief", tmp_path)
    process.start([sys.executable, "-c", "print('no such disk')"], environment=os.environ)
    with pytest.raises(ServerUnavailable, match=r"brief ended while it started(.|\n)*no such disk"):
        process.wait_ready(lambda: False, deadline_s=60)


def test_a_program_that_is_never_ready_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    process = ServerProcess("idle", tmp_path)
    process.start([sys.executable, "-c", "import time; time.sleep(600)"], environment=os.environ)
    try:
        with pytest.raises(ServerUnavailable, match=r"idle was not ready in 0\.1 s"):
            process.wait_ready(lambda: False, deadline_s=0.1)
    finally:
        process.kill()
    assert process.pid is None


def test_a_program_that_does_not_exist_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot start /no/such/program"):
        ServerProcess("absent", tmp_path).start(["/no/such/program"], environment={})


def test_a_program_that_ignores_the_request_to_stop_is_killed(tmp_path: Path) -> None:
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    deaf = f"{ignore}; print('deaf', flush=True); time.sleep(600)"
    process = ServerProcess("deaf", tmp_path)
    process.start([sys.executable, "-c", deaf], environment=os.environ)
    process.wait_ready(lambda: "deaf" in process.log_tail(), deadline_s=60)
    process.stop(deadline_s=0.05)
    assert process.pid is None


def test_a_process_that_only_has_the_number_of_an_old_one_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        (tmp_path / "ours.pid").write_text(f'{{"pid": {stranger.pid}, "born": "another day"}}')
        ours = ServerProcess("ours", tmp_path)
        assert ours.pid is None
        ours.kill()
        ours.stop(deadline_s=1)
        assert stranger.poll() is None
        stranger.communicate(b"\n", timeout=30)


@pytest.mark.parametrize("damage", ["", "{", '{"pid": 1}'])
def test_a_damaged_pid_file_means_that_nothing_runs(tmp_path: Path, damage: str) -> None:
    (tmp_path / "ours.pid").write_text(damage)
    assert ServerProcess("ours", tmp_path).pid is None


def test_redis_keeps_its_data_and_address_when_it_is_killed_and_restarted(private_redis: RedisNode) -> None:
    url = private_redis.url
    with _redis(private_redis) as client:
        client.set("model", b"weights")
        client.execute_command("WAITAOF", 1, 0, 10_000) if _redis_version(client) >= (
            7,
            2,
        ) else client.bgrewriteaof()
    private_redis.stop()
    private_redis.start()
    private_redis.kill()
    assert private_redis.pid is None
    private_redis.restart()
    assert private_redis.url == url
    with _redis(private_redis) as client:
        assert client.get("model") == b"weights"


def _redis_version(client: Redis) -> tuple[int, ...]:
    return tuple(int(part) for part in client.info("server")["redis_version"].split("."))


def test_redis_never_evicts_and_takes_only_its_password(private_redis: RedisNode) -> None:
    with _redis(private_redis) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("append*")["appendonly"] == "yes"
    with (
        Redis(port=private_redis.port) as stranger,
        pytest.raises(Exception, match=r"(?i)authenticat"),
    ):
        stranger.ping()


def test_who_freezes_a_group_waits_until_each_of_its_processes_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that gets the signal later than its parent does."""
    process, send = ServerProcess("pair", tmp_path), ServerProcess.send

    def states() -> list[str]:
        listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True)
        rows = [line.split() for line in listed.stdout.splitlines()]
        return [state[0] for group, state in rows if group == str(process.pid)]

    def late(one: ServerProcess, number: signal.Signals) -> None:
        if number != signal.SIGSTOP or one.pid is None:
            send(one, number)
            return
        os.kill(one.pid, number)
        threading.Timer(0.3, send, [one, number]).start()

    process.start(["/bin/sh", "-c", "sleep 600 & wait"], environment={"PATH": os.environ["PATH"]})
    try:
        process.wait_ready(lambda: len(states()) == 2, deadline_s=60)
        monkeypatch.setattr(ServerProcess, "send", late)
        process.freeze()
        assert states() == ["T", "T"]
        process.thaw()
        process.wait_ready(lambda: "T" not in states(), deadline_s=60)
    finally:
        process.kill()


def test_a_frozen_redis_answers_after_it_is_thawed(private_redis: RedisNode) -> None:
    with socket.create_connection(("127.0.0.1", private_redis.port), timeout=60) as client:
        private_redis.freeze()
        client.settimeout(0.2)
        client.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            client.recv(100)
        private_redis.thaw()
        client.settimeout(60)
        assert client.recv(100).startswith(b"-NOAUTH")


def test_a_frozen_redis_can_be_stopped(private_redis: RedisNode) -> None:
    private_redis.freeze()
    private_redis.stop()
    assert private_redis.pid is None


def test_another_process_finds_and_ends_a_node_by_its_folder(private_redis: RedisNode) -> None:
    script = "import sys; from broker_fl.workers.servers import RedisNode; RedisNode(sys.argv[1]).stop()"
    subprocess.run([sys.executable, "-c", script, str(private_redis.directory)], check=True, timeout=110)
    assert private_redis.pid is None


def test_a_node_that_runs_is_not_started_twice(private_redis: RedisNode) -> None:
    with pytest.raises(SettingError, match="runs already"):
        RedisNode(private_redis.directory).start()
    assert private_redis.pid is not None


def test_redis_says_why_it_did_not_start(tmp_path: Path) -> None:
    if find_program("redis-server") is None:
        pytest.skip("no redis-server")
    node = RedisNode(tmp_path / "redis", settings={"maxmemory-policy": "no-such-policy"})
    with pytest.raises(StoreUnavailable, match="no-such-policy"):
        node.start()
    assert node.pid is None


def test_rabbitmq_keeps_durable_queues_and_its_address_when_it_is_killed(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str
) -> None:
    _declare(private_amqp_url)
    private_rabbitmq.flush()
    private_rabbitmq.kill()
    assert private_rabbitmq.pid is None
    private_rabbitmq.restart()
    _declare(private_amqp_url, passive=True)


def test_rabbitmq_listens_on_loopback_only(private_rabbitmq: RabbitMQNode) -> None:
    listeners = private_rabbitmq.control(
        "eval", "[{I, P} || {_, _, _, _, I, P, _} <- rabbit_networking:active_listeners()]."
    )
    assert "{0,0,0,0}" not in listeners
    assert str(private_rabbitmq.port) in listeners


def test_a_frozen_rabbitmq_is_silent_until_it_is_thawed(private_rabbitmq: RabbitMQNode) -> None:
    with socket.create_connection(("127.0.0.1", private_rabbitmq.port), timeout=60) as client:
        private_rabbitmq.freeze()
        client.settimeout(0.2)
        client.sendall(b"AMQP\x00\x00\x09\x01")
        with pytest.raises(TimeoutError):
            client.recv(1)
        private_rabbitmq.thaw()
        client.settimeout(60)
        assert client.recv(1) == b"\x01"


def test_virtual_hosts_are_made_and_deleted_over_http(private_rabbitmq: RabbitMQNode) -> None:
    url = private_rabbitmq.add_vhost("of/a test")
    _declare(url)
    private_rabbitmq.delete_vhost("of/a test")
    with pytest.raises(pika.exceptions.AMQPError):
        _declare(url)


def test_the_management_interface_refuses_a_wrong_password(private_rabbitmq: RabbitMQNode) -> None:
    stranger = ManagementApi(private_rabbitmq.management_url, user=private_rabbitmq.user, password="guess")
    with pytest.raises(AccessDenied, match="401"):
        stranger.add_vhost("mine")


def test_the_management_interface_of_a_stopped_node_is_unavailable() -> None:
    with pytest.raises(BrokerUnavailable, match=r"nothing listens there.*management interface"):
        ManagementApi(f"http://127.0.0.1:{free_port()}", user="a", password="b").add_vhost("mine")


def test_control_says_what_went_wrong(private_rabbitmq: RabbitMQNode) -> None:
    with pytest.raises(BrokerUnavailable, match="rabbitmqctl delete_vhost"):
        private_rabbitmq.control("delete_vhost", "no-such-vhost")


def test_rabbitmq_says_why_it_did_not_start_and_leaves_nothing_behind(tmp_path: Path) -> None:
    if find_program("rabbitmq-server") is None:
        pytest.skip("no rabbitmq-server")
    node = RabbitMQNode(tmp_path / "rabbitmq", settings={"no.such.setting": "1"})
    with pytest.raises(BrokerUnavailable, match=r"no\.such\.setting"):
        node.start()
    assert node.pid is None
    assert ServerProcess("epmd", node.directory).pid is None


def test_the_servers_of_a_killed_test_session_are_ended_by_the_next(tmp_path: Path) -> None:
    if find_program("redis-server") is None:
        pytest.skip("no redis-server")
    node = RedisNode(tmp_path / "root" / "redis").start()
    provision.end_servers(tmp_path / "root")
    assert node.pid is None
    assert not (tmp_path / "root").exists()


def test_a_dead_process_of_another_parent_counts_as_ended(private_redis: RedisNode) -> None:
    watcher = RedisNode(private_redis.directory)
    assert watcher.pid == private_redis.pid
    os.kill(int(watcher.pid or 0), signal.SIGKILL)
    watcher.kill()
    assert watcher.pid is None


def test_an_ended_server_leaves_no_zombie_behind(private_redis: RedisNode) -> None:
    pid = private_redis.pid or 0
    private_redis.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
